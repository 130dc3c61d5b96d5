"""Finds the tools that the tests of deploy/ need; a test without one is skipped, or fails where CLINVK_REQUIRE is set."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = Path(os.environ.get("CLINVK_TEST_TOOLS", str(ROOT / ".tools")))


def missing(what: str) -> NoReturn:
    if os.environ.get("CLINVK_REQUIRE"):
        pytest.fail(what)
    pytest.skip(what)


def linter(name: str) -> str:
    """One of those that `make tools` has installed."""
    path = TOOLS / "linters" / "bin" / name
    return str(path) if path.exists() else missing(f"{name} is not installed; `make tools` installs it from PyPI")


def system(name: str, package: str) -> str:
    """One of Debian's."""
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    return path or missing(f"{name} is not installed: Debian's package {package} has it")
