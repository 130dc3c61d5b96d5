"""Which cases of a search are tried each time, and which by `make test` alone."""

from collections.abc import Iterable
from typing import Any

import pytest


def after(few: int, cases: Iterable[Any]) -> list[Any]:
    """All but the first `few` are marked `wide`. A case of several values is a tuple."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.wide if at >= few else ())
        for at, case in enumerate(cases)
    ]
