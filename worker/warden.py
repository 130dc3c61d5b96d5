"""Stands over one worker process: outlives it, and ends all that it started when it is gone, however it went.

It holds a pipe whose other end the worker reads (its lifeline): when the warden is killed, the worker sees the
end and ends its runs. `clinvk serve` holds the same kind of pipe towards the warden.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from worker import tree

LIFELINE = "CLINVK_LIFELINE"

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_KILL_WITHIN_S = 4.0
_IMPATIENT_S = 5.0
_RESTARTS = 5  # in a row, within a minute each


def watch_lifeline(fd: int, on_end: Callable[[], None]) -> None:
    """Calls `on_end` in a thread of its own when whoever holds the other end is gone."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(fd, 64):
                pass
        on_end()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def run(argv: Sequence[str], environ: Mapping[str, str], *, lifeline: int | None = None) -> int:
    """Runs the worker until it ends in good order or is told to; a crash is followed by another start.

    Returns the exit code.
    """
    tree.become_subreaper()
    forsaken = tree.end_forsaken()
    if forsaken:
        print(f"ended processes that an earlier worker left behind: {forsaken}", file=sys.stderr)
    crashes = 0
    while True:
        begun = time.monotonic()
        code, told = _once(argv, environ, lifeline)
        if told or code == 0:
            return code
        crashes = crashes + 1 if time.monotonic() - begun < 60 else 1
        if crashes > _RESTARTS or lifeline is not None:
            return code
        print(f"the worker process ended with {code}; starting it again", file=sys.stderr)
        time.sleep(min(0.2 * 2**crashes, 5.0))


def _once(argv: Sequence[str], environ: Mapping[str, str], lifeline: int | None) -> tuple[int, bool]:
    read, write = os.pipe()
    signals = os.pipe()
    for fd in signals:
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(signals[1], warn_on_full_buffer=False)
    for number in _FORWARDED:
        signal.signal(number, lambda *_: None)
    env = {**environ, LIFELINE: str(read), tree.WARDEN: tree.warden_mark(os.getpid())}
    child = subprocess.Popen(list(argv), env=env, pass_fds=(read,))
    os.close(read)
    pidfd = os.pidfd_open(child.pid)
    told = 0
    kill_at: float | None = None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(pidfd, selectors.EVENT_READ, "child")
            selector.register(signals[0], selectors.EVENT_READ, "signal")
            if lifeline is not None:
                selector.register(lifeline, selectors.EVENT_READ, "lifeline")
            while child.poll() is None:
                for key, _ in selector.select(timeout=1.0):
                    if key.data == "signal":
                        for code in os.read(signals[0], 64):
                            told += 1
                            child.send_signal(signal.SIGTERM if code == signal.SIGINT else code)
                        if told > 1 and kill_at is None:
                            kill_at = time.monotonic() + _IMPATIENT_S
                    elif key.data == "lifeline" and not os.read(key.fd, 64):
                        told += 1
                        child.kill()
                if kill_at is not None and time.monotonic() > kill_at:
                    child.kill()
                _reap_orphans(child.pid)
    finally:
        tree.kill_below(os.getpid(), _KILL_WITHIN_S)
        _reap_orphans(-1)
        signal.set_wakeup_fd(-1)
        for fd in (write, pidfd, *signals):
            os.close(fd)
    ended = child.returncode
    return (ended if ended >= 0 else 128 - ended), told > 0


def _reap_orphans(child: int) -> None:
    for pid in tree.orphans():
        if pid != child:
            tree.reap(pid)
