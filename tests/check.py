"""`make check`: all fast checks side by side; prints what failed, and how long each took."""

import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent

# In three processes, so that all cores have work.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not redis and not wide"]
CHECKS = {
    "format": [BIN / "ruff", "format", "--check", "-q", "."],
    "lint": [BIN / "ruff", "check", "-q", "."],
    "types": [BIN / "mypy"],
    "imports": [BIN / "lint-imports"],
    "backends": [*PYTEST, "tests/unit/backends", "tests/rules"],
    "unit": [*PYTEST, "tests/unit", "--ignore", "tests/unit/backends"],
    "store": [*PYTEST, "tests/store"],
}


def main() -> int:
    begun = time.monotonic()
    running = {
        name: subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for name, words in CHECKS.items()
    }
    failed = 0
    for name, process in running.items():
        out = process.communicate()[0].decode()
        good = process.returncode == 0
        failed += not good
        print(f"{'ok    ' if good else 'FAILED'} {name:8} {time.monotonic() - begun:5.1f} s")
        if not good:
            print(out.strip()[-6000:])
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
