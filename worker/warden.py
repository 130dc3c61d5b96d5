"""Stands over one worker process: outlives it, and ends all that it started when it is gone, however it went.

It holds a pipe whose other end the worker reads (its lifeline): when the warden is killed, the worker sees the
end and ends its runs. `clinvk serve` holds the same kind of pipe towards the warden. Of runs whose worker and warden
were killed at once the next warden on the host knows by their marks. By another pipe the worker says twice a second
that its loop turns: one that is frozen cannot end its runs when their leases run out, so that the warden does.

It is to outlive a host that is out of memory: it imports little and does its waiting in one `poll`.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from _json import encode_basestring_ascii
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from shared import hidden
from worker import tree

LIFELINE = "CLINVK_LIFELINE"
HEARTBEAT = "CLINVK_HEARTBEAT"

_KILL_WITHIN_S = 4.0
_IMPATIENT_S = 5.0
_LONG_LIFE_S = 60.0
_PAUSE_S = 30.0  # the longest between two starts
_BEFORE_LEASE_S = 2.0
_SILENCE_S = 2.0  # at least, before a silent worker is taken for frozen
_LATE_S = 1.0  # where the warden itself stood still, the worker may have too and now gets so long to speak


def watch_lifeline(fd: int, on_end: Callable[[], None]) -> None:
    """Calls `on_end` in a thread of its own when whoever holds the other end is gone. Nobody inherits the pipe."""
    os.set_inheritable(fd, False)

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(fd, 64):
                pass
        on_end()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def run(
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    lifeline: int | None = None,
    restart: bool | None = None,
    lease_s: float = 0.0,
    form: str = "text",
) -> int:
    """Runs the worker until it ends in good order or is told to; a crash is followed by another start, later and later,
    unless the configuration is wrong, or whoever holds our lifeline is there to decide. For a process of its own with
    one thread. `lease_s`: of its runs; 0: nobody minds a frozen one. `form` of its own lines: text or json. Returns its exit code.

    SIGTERM, SIGINT and SIGHUP: the worker may finish what it runs. SIGQUIT or a second one: five seconds to do so.
    """
    tree.become_subreaper()
    if forsaken := tree.end_forsaken():
        _say(form, f"ended processes that an earlier worker left behind: {forsaken}")
    warden = Warden(lifeline, lease_s, form)
    again = lifeline is None if restart is None else restart
    crashes = 0
    while True:
        begun = time.monotonic()
        code = warden.stand_over(argv, environ)
        if warden.told or code in (0, os.EX_CONFIG) or not again:
            return code
        crashes = min(crashes + 1, 10) if time.monotonic() - begun < _LONG_LIFE_S else 1
        pause_s = min(0.1 * 2**crashes, _PAUSE_S)
        _say(form, f"the worker process ended with {code}; starting it again in {pause_s:g} s")
        if not warden.rest(pause_s):
            return code


def become(
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    lifeline: int | None = None,
    lease_s: float = 0.0,
    form: str = "text",
) -> NoReturn:
    """As `run`, in a fresh interpreter that takes this one's place: half the memory. Does not return."""
    if lifeline is not None:
        os.set_inheritable(lifeline, True)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  # pathlib costs 1 MB
    code = f"import sys; sys.path.insert(0, {root!r}); from worker.warden import main; sys.exit(main(sys.argv[1:]))"
    # No site-packages, nothing from PYTHON*: the worker itself gets both again.
    line = [
        sys.executable,
        "-S",
        "-E",
        "-c",
        code,
        "-" if lifeline is None else str(lifeline),
        str(lease_s),
        form,
        *argv,
    ]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, line, dict(environ))  # noqa: S606  # that is what it is for


def main(args: Sequence[str]) -> int:
    """`LIFELINE|- LEASE text|json WORD...`: what `become` says to itself."""
    hidden.hide()
    lifeline = None if args[0] == "-" else int(args[0])
    if lifeline is not None:
        os.set_inheritable(lifeline, False)
    return run(args[3:], os.environ, lifeline=lifeline, lease_s=float(args[1]), form=args[2])


class Warden:
    """`told` counts how often it was told to end: twice is impatient, the end of the lifeline is at once."""

    def __init__(self, lifeline: int | None, lease_s: float = 0.0, form: str = "text") -> None:
        self._form = form
        self.told = 0
        self._child = 0
        self._kill_at: float | None = None
        self._lifeline = lifeline
        self._silence_s = max(lease_s - _BEFORE_LEASE_S, _SILENCE_S) if lease_s else 0.0
        self._beats = -1
        self._silent_at: float | None = None  # when it is taken for frozen; None: it has not spoken yet, or is ending
        self._signals, wakeup = os.pipe()
        for fd in (self._signals, wakeup):
            os.set_blocking(fd, False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, _note)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, _note)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(self._signals, select.POLLIN)
        if lifeline is not None:
            self._poll.register(lifeline, select.POLLIN)

    def stand_over(self, argv: Sequence[str], environ: Mapping[str, str]) -> int:
        """One life of the worker process. When this returns, nothing lives of what it started."""
        read, write = os.pipe()
        os.set_inheritable(read, True)
        self._beats, beat = os.pipe()
        os.set_blocking(self._beats, False)
        os.set_inheritable(beat, True)
        self._silent_at = None
        self._poll.register(self._beats, select.POLLIN)
        env = {**environ, LIFELINE: str(read), HEARTBEAT: str(beat), tree.WARDEN: tree.warden_mark(os.getpid())}
        try:
            # A group of its own: a terminal's Ctrl-C comes to the warden alone.
            try:
                self._child = os.posix_spawnp(argv[0], list(argv), env, setpgroup=0)
            finally:
                os.close(read)
                os.close(beat)
            while (code := self._reap()) is None:
                due = [at for at in (self._kill_at, self._silent_at) if at is not None]
                self._wait(min(due) - time.monotonic() if due else None)
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    self._send(signal.SIGKILL)
                    self._kill_at += 0.1
                self._judge_silence()
            return code
        except OSError as error:  # it cannot even be started
            self._say(f"cannot start {argv[0]!r}: {error.strerror}")
            return 127
        finally:
            self._child = 0
            if not tree.kill_below(os.getpid(), _KILL_WITHIN_S):
                self._say("some processes of the worker do not die")
            os.close(write)
            self._listen_no_more()

    def _judge_silence(self) -> None:
        now = time.monotonic()
        if self._silent_at is None or now < self._silent_at:
            return
        if now > self._silent_at + _LATE_S:
            self._silent_at = now + _LATE_S
            return
        self._say(f"the worker process has not moved for {self._silence_s:g} s; killing it with all below it")
        self._silent_at = None
        self._send(signal.SIGKILL)

    def _listen_no_more(self) -> None:
        if self._beats >= 0:
            self._poll.unregister(self._beats)
            os.close(self._beats)
        self._beats, self._silent_at = -1, None

    def rest(self, limit_s: float) -> bool:
        """Waits; False, and at once, when told to end."""
        until = time.monotonic() + limit_s
        while not self.told and (left_s := until - time.monotonic()) > 0:
            self._wait(left_s)
        return not self.told

    def _wait(self, limit_s: float | None) -> None:
        for fd, _ in self._poll.poll(None if limit_s is None else max(limit_s, 0) * 1000):
            if fd == self._signals:
                for number in os.read(fd, 64):
                    if number != signal.SIGCHLD:
                        self._hear(number)
            elif fd == self._beats:
                if not os.read(fd, 4096):
                    self._listen_no_more()
                elif self._silence_s:
                    self._silent_at = time.monotonic() + self._silence_s
            elif not os.read(fd, 64):
                self._poll.unregister(fd)
                self.told += 2
                self._kill_at = time.monotonic()

    def _hear(self, number: int) -> None:
        self.told += 2 if number == signal.SIGQUIT else 1
        if self.told > 1 and self._kill_at is None:
            self._kill_at = time.monotonic() + _IMPATIENT_S
        self._send(signal.SIGTERM)

    def _say(self, text: str) -> None:
        _say(self._form, text)

    def _send(self, number: int) -> None:
        if self._child:  # not reaped yet, so that the number is still its own
            os.kill(self._child, number)

    def _reap(self) -> int | None:
        """Reaps whatever is dead. Returns the worker's exit code once it is."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return None
                if pid == self._child:
                    self._child = 0
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
        return 255  # somebody else has reaped it


def _note(*_: object) -> None:
    """The number stands in the wakeup pipe."""


def _say(form: str, text: str) -> None:
    line = f"clinvk worker: {text}"
    if form == "json":  # as shared.log writes it, which with all that it imports would double this process
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = (
            f'{{"time": "{at}", "level": "warning", "process": "warden", "pid": {os.getpid()}, '
            f'"logger": "worker.warden", "message": {encode_basestring_ascii(text)}}}'
        )
    with contextlib.suppress(OSError, ValueError):  # a terminal may be gone
        print(line, file=sys.stderr, flush=True)
