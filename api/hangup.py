"""SIGHUP: the keys are read again; or the terminal that the service was started on is gone, and it ends."""

import asyncio
import os
import signal
from collections.abc import Callable

_GONE_WITHIN_S = 1.0


class Hangups:
    """Takes the signal from its making on, as early as can be: until then it ends the process."""

    def __init__(self) -> None:
        outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup
        self._terminal = not outlives and _on_a_terminal()
        self._early = False
        signal.signal(signal.SIGHUP, self._note)

    def _note(self, *_: object) -> None:
        self._early = True

    def attend(self, loop: asyncio.AbstractEventLoop, ask: Callable[[], None], end: Callable[[], None]) -> None:
        """From now on each signal calls `ask`, or `end` where there was a terminal and is none any more."""

        def look() -> None:
            if self._terminal and not _on_a_terminal():
                end()

        def on_signal() -> None:
            ask()
            look()
            loop.call_later(_GONE_WITHIN_S, look)  # a shell that ends sends the signal before it lets the terminal go

        loop.add_signal_handler(signal.SIGHUP, on_signal)
        if self._early:
            on_signal()


def _on_a_terminal() -> bool:
    """Whether the process has a controlling terminal, whatever its output goes to."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))
    except OSError:
        return False
    return True
