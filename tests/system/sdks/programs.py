"""Client programs that stay for several scenarios, since some SDKs need seconds to be imported."""

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any


class Program:
    """Takes one scenario after the other on its stdin; what is no JSON object on its stdout is passed over."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the program
        self._rest = b""
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0
        )

    def see(self, words: Sequence[str], limit_s: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        deadline = time.monotonic() + limit_s
        while True:
            line = self._line(deadline)
            if line.startswith(b"{"):
                found: dict[str, Any] = json.loads(line)
                return found

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            assert data, f"{'it is gone' if ready else 'no answer in time'}: {self._said()}"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode()[-4000:]

    def close(self) -> None:
        with self._process, contextlib.suppress(BrokenPipeError):
            self._process.kill()
        self._errors.close()


class Programs:
    """Those that have been started, by their command."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, ...], Program] = {}

    def see(
        self, command: Sequence[str], env: Mapping[str, str], words: Sequence[str], limit_s: float
    ) -> dict[str, Any]:
        name = tuple(command)
        if name not in self._running:
            self._running[name] = Program(command, env)
        try:
            return self._running[name].see(words, limit_s)
        except BaseException:
            self._running.pop(name).close()
            raise

    def close(self) -> None:
        while self._running:
            self._running.popitem()[1].close()
