"""What nobody waits for yet stands behind the rest, and once somebody does, all of it comes forward."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from worker.warm import priority

# A launcher, as npm's of codex is: the CLI itself is its child.
LAUNCHER = ("/bin/sh", "-c", "read go; sleep 300 & echo $!; wait")


def is_low(pid: int) -> bool:
    return os.getpriority(os.PRIO_PROCESS, pid) > 0 or os.sched_getscheduler(pid) == os.SCHED_BATCH


@pytest.fixture
def launcher() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        LAUNCHER, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        yield child
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def start_below(launcher: subprocess.Popen[bytes]) -> int:
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    launcher.stdin.write(b"go\n")
    return int(launcher.stdout.readline())


def test_a_launchers_cli_starts_low_and_comes_forward_with_it(launcher):
    priority.lower(launcher.pid)
    cli = start_below(launcher)
    assert is_low(launcher.pid)
    assert is_low(cli)

    priority.restore(launcher.pid)

    assert not is_low(launcher.pid)
    assert not is_low(cli)


def test_a_process_that_is_gone_does_no_harm(launcher):
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()

    priority.lower(launcher.pid)
    priority.restore(launcher.pid)
