import pytest

pytest.register_assert_rewrite("tests.system.sdks.suite")
