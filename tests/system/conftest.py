"""What the tests of the whole service share."""

import pytest


@pytest.fixture(scope="module")
def way(request: pytest.FixtureRequest) -> str:
    """cold or warm: how the CLIs of a module's service carry out runs."""
    return str(request.param)
