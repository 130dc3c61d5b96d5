"""Starts a CLI, moves its bytes, and ends it with all that it started. Lives in a stdlib asyncio loop."""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from shared.errors import TryLater
from worker import tree
from worker.backends.base import Exit, Launch

_READ_BYTES = 256 * 1024
_BUFFER_BYTES = 1 << 20
_STDERR_BYTES = 64 * 1024
_LINGER_S = 0.2  # how long a pipe is read after the CLI's exit, where something else still holds it
_TAIL_S = 0.01
_STEP_S = 0.005
_GONE_WITHIN_S = 3.0
_F_SETPIPE_SZ = 1031


class StartFailed(TryLater):
    """The CLI could not be started; the text says why."""

    code = "backend_unavailable"


class Process:
    """`async with await Process.start(…)`: when the block is left, nothing of it lives."""

    def __init__(self, run_id: str, child: "subprocess.Popen[bytes]", stdin: bytes, tail: int | None) -> None:
        self.run_id = run_id
        self.pid = child.pid
        self._loop = asyncio.get_running_loop()
        self._child = child
        self._known: set[tree.Seen] = set()
        self._buffer = bytearray()
        self._stderr = bytearray()
        self._stdin = memoryview(stdin)
        self._wake = asyncio.Event()
        self._exited = asyncio.Event()
        self._out_open = True
        self._err_open = True
        self._paused = False
        self._tail = tail
        self._tailing: asyncio.Task[None] | None = None
        self._pidfd = os.pidfd_open(child.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)
        assert child.stdin is not None
        assert child.stderr is not None
        self._in, self._err = child.stdin.fileno(), child.stderr.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._err, False)
        self._loop.add_reader(self._err, self._on_stderr)
        self._write()
        if tail is None:
            assert child.stdout is not None
            self._out = child.stdout.fileno()
            os.set_blocking(self._out, False)
            self._loop.add_reader(self._out, self._on_stdout)
        else:
            self._out = tail
            self._tailing = asyncio.create_task(self._follow_file(), name=f"tail-{run_id}")

    @classmethod
    async def start(cls, launch: Launch, *, run_id: str, instance: str, scratch: str) -> "Process":
        """Raises: StartFailed."""
        env = {**launch.env, tree.RUN: run_id, "CLINVK_INSTANCE": instance}
        if warden := os.environ.get(tree.WARDEN):
            env[tree.WARDEN] = warden
        tail: int | None = None
        out: int = subprocess.PIPE
        try:
            if launch.stdout == "file":
                path = Path(scratch) / "stdout"
                out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
                tail = os.open(path, os.O_RDONLY)
            # vfork and exec: a millisecond, shorter than any way around it.
            child = subprocess.Popen(  # noqa: ASYNC220  # see above
                list(launch.argv),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.PIPE,
                cwd=launch.cwd,
                env=env,
                start_new_session=True,
                bufsize=0,
            )
        except (OSError, ValueError) as error:
            if tail is not None:
                os.close(tail)
            what = f"cannot start {launch.argv[0]!r}"
            raise StartFailed(f"{what}: {getattr(error, 'strerror', None) or error}", retry_after_s=30) from error
        finally:
            if out != subprocess.PIPE:
                os.close(out)
        if tail is None and child.stdout is not None:
            with contextlib.suppress(OSError):  # the limit for all pipes of a user may be reached
                fcntl.fcntl(child.stdout.fileno(), _F_SETPIPE_SZ, _BUFFER_BYTES)
        return cls(run_id, child, launch.stdin, tail)

    async def __aenter__(self) -> "Process":
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            if not self._exited.is_set():
                await self.end(grace_s=0, fast=True)
            await self.sweep()
        finally:
            self._close()

    # -- bytes

    async def chunks(self) -> AsyncIterator[bytes]:
        """What the CLI writes to stdout, as it comes, until its end."""
        while True:
            if self._buffer:
                data = bytes(self._buffer)
                self._buffer.clear()
                if self._paused and self._out_open:
                    self._paused = False
                    self._loop.add_reader(self._out, self._on_stdout)
                yield data
            elif not self._out_open:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    async def wait(self) -> Exit:
        """Returns when the CLI has ended, with the end of its stderr."""
        await self._exited.wait()
        if self._err_open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    while self._err_open:
                        self._wake.clear()
                        await self._wake.wait()
        return Exit(code=self._child.returncode, stderr=bytes(self._stderr).decode(errors="replace"))

    def _on_stdout(self) -> None:
        try:
            data = os.read(self._out, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._buffer += data
            if len(self._buffer) >= _BUFFER_BYTES:
                self._loop.remove_reader(self._out)
                self._paused = True
        else:
            self._end_stdout()
        self._wake.set()

    def _end_stdout(self) -> None:
        if self._out_open:
            self._out_open = False
            if self._tail is None and not self._paused:
                self._loop.remove_reader(self._out)
            self._wake.set()

    def _on_stderr(self) -> None:
        try:
            data = os.read(self._err, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._stderr += data
            del self._stderr[:-_STDERR_BYTES]
        else:
            self._loop.remove_reader(self._err)
            self._err_open = False
            self._wake.set()

    def _write(self) -> None:
        try:
            while self._stdin:
                self._stdin = self._stdin[os.write(self._in, self._stdin) :]
        except BlockingIOError:
            self._loop.add_writer(self._in, self._write)
            return
        except OSError:  # it reads no more: its own affair
            self._stdin = self._stdin[:0]
        self._loop.remove_writer(self._in)
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):
            self._child.stdin.close()

    async def _follow_file(self) -> None:
        assert self._tail is not None
        while True:
            exited = self._exited.is_set()
            while len(self._buffer) < _BUFFER_BYTES and (data := os.read(self._tail, _READ_BYTES)):
                self._buffer += data
                self._wake.set()
            if exited and len(self._buffer) < _BUFFER_BYTES:
                self._end_stdout()
                return
            await asyncio.sleep(_TAIL_S)

    # -- its end

    def _on_exit(self) -> None:
        if self._child.poll() is None:
            return
        self._loop.remove_reader(self._pidfd)
        self._exited.set()
        self._wake.set()
        if self._tail is None:  # a grandchild may hold the pipe open
            self._loop.call_later(_LINGER_S, self._cut_stdout)

    def _cut_stdout(self) -> None:
        if self._out_open and not self._paused:
            with contextlib.suppress(OSError):
                while data := os.read(self._out, _READ_BYTES):
                    self._buffer += data
            self._end_stdout()
        elif self._out_open:  # the reader is slower than the CLI was
            self._loop.call_later(_LINGER_S, self._cut_stdout)

    async def end(self, *, grace_s: float, fast: bool = False) -> None:
        """Interrupt, SIGTERM, SIGKILL, a third of the grace between each; at once with `fast`."""
        self._remember()
        if not fast and grace_s > 0:
            for number in (signal.SIGINT, signal.SIGTERM):
                if self._exited.is_set():
                    break
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, number)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace_s / 3):
                        await self._exited.wait()
                self._remember()
        if not self._exited.is_set():
            for seen in self._known:
                tree.send(seen, signal.SIGSTOP)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            async with asyncio.timeout(_GONE_WITHIN_S):
                await self._exited.wait()
        await self.sweep()

    def _remember(self) -> None:
        """Whom the CLI has started, while it is still there to be asked."""
        if not self._exited.is_set():
            self._known.update(tree.below({self.pid}, tree.scan()))

    async def sweep(self) -> None:
        """Ends what the CLI left running, until a look finds nothing."""
        deadline = self._loop.time() + _GONE_WITHIN_S
        while found := tree.leftovers(self.run_id, self._known):
            self._known.update(found)
            for seen in found:
                tree.send(seen, signal.SIGSTOP)
            for seen in found:
                tree.send(seen, signal.SIGKILL)
            if self._loop.time() > deadline:
                return
            await asyncio.sleep(_STEP_S)

    def _close(self) -> None:
        if self._tailing is not None:
            self._tailing.cancel()
        for fd in (self._pidfd, self._out, self._err):
            self._loop.remove_reader(fd)
        if self._child.stdin is not None and not self._child.stdin.closed:
            self._loop.remove_writer(self._in)
            with contextlib.suppress(OSError):
                self._child.stdin.close()
        for pipe in (self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()
        os.close(self._pidfd)
        if self._tail is not None:
            os.close(self._tail)
