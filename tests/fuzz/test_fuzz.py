"""Each place where foreign bytes come in takes or refuses them; `make fuzz MINUTES=n` tries for longer."""

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.targets import REFUSALS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_taken_or_refused(name):
    strategy, check = TARGETS[name]

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def one(value):
        with contextlib.suppress(REFUSALS):
            check(value)

    one()
