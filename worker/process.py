"""Starts a CLI, moves its bytes, and ends it with all that it started. Lives in a stdlib asyncio loop."""

import asyncio
import contextlib
import fcntl
import functools
import logging
import os
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

from shared.errors import InvalidRequest
from worker import tree
from worker.backends.base import Exit, Launch
from worker.course import Course, to_its_end
from worker.feed import Feed
from worker.refusal import refusal
from worker.unfiled import unfiled

_log = logging.getLogger(__name__)

_READ_BYTES = 256 * 1024
_BUFFER_BYTES = 1 << 20
_PIPE_BYTES = 256 * 1024  # all pipes of a user who is not root share 64 MiB
_STDERR_BYTES = 64 * 1024
_LINGER_S = 0.2  # how long a pipe is read after the CLI's exit, where something else still holds it
_TAIL_S = 0.01
_STEP_S = 1.5  # at most, between SIGINT, SIGTERM and SIGKILL
_GONE_WITHIN_S = 3.0
_UNSURE_S = 0.25
_F_SETPIPE_SZ = 1031
_UNKNOWN_EXIT = 255  # somebody else took the exit code: never 0

_Child = subprocess.Popen[bytes]


class Flood(NamedTuple):
    """Whom to tell when the CLI's stdout, where that is a file, passes so many bytes; more than once."""

    bytes: int
    tell: Callable[[], None]


class Process(Course):
    """`async with await Process.start(…)`: when the block is left, nothing of it lives.

    One that is `kept` has an open `stdin` and may serve many runs: a course that no runner sees.
    """

    def __init__(
        self, mark: tree.Mark, child: _Child, stdin: bytes, tail: int | None, flood: Flood | None, *, kept: bool
    ) -> None:
        self.pid = child.pid
        self.mark = mark
        self._loop = asyncio.get_running_loop()
        self._child = child
        self._known: set[tree.Seen] = set()
        self._code = _UNKNOWN_EXIT
        self._exited = asyncio.Event()
        self._exited_at = 0.0
        self._wake = asyncio.Event()
        self._buffer = bytearray()
        self._out_open = True
        self._paused = False
        self._owed = 0  # bytes of stdout that were written before the exit and are not read yet
        self._tail = tail
        self._tailing: asyncio.Task[None] | None = None
        self._cutting: asyncio.TimerHandle | None = None
        self._stderr = bytearray()
        self._err_open = True
        assert child.stdin is not None
        assert child.stderr is not None
        self._err = child.stderr.fileno()
        self._out = tail if child.stdout is None else child.stdout.fileno()
        self._pidfd = os.pidfd_open(child.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._loop.add_reader(self._err, self._on_stderr)
        os.set_blocking(self._err, False)
        if tail is None:
            assert self._out is not None
            os.set_blocking(self._out, False)
            self._loop.add_reader(self._out, self._on_stdout)
        else:
            self._tailing = self._loop.create_task(self._follow_file(tail, flood), name=f"tail-{mark.run_id}")
        self.stdin = Feed(child.stdin, stdin, close_after=not kept)

    @classmethod
    async def start(
        cls,
        launch: Launch,
        *,
        run_id: str,
        instance: str,
        scratch: str,
        flood: Flood | None = None,
        kept: bool = False,
    ) -> "Process":
        """`launch.cwd` must be free of symlinks: one that came in since it was judged is found here.

        Raises: StartFailed; InvalidRequest where the request's own words are what cannot be started.
        """
        warden = this_warden()
        mark = tree.new_mark(run_id, warden)
        env = {**launch.env, tree.RUN: run_id, tree.INSTANCE: instance, tree.WARDEN: warden}
        tail: int | None = None
        out = subprocess.PIPE
        cwd = -1
        passed: list[int] = []
        try:
            cwd = _open_cwd(launch.cwd)
            for name, content in launch.unfiled.items():
                passed.append(unfiled(content))
                env[name] = f"/proc/self/fd/{passed[-1]}"
            if launch.stdout == "file":
                path = str(Path(scratch) / "stdout")
                flags = os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
                out = os.open(path, os.O_WRONLY | flags, 0o600)
                tail = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            with tree.spawning, tree.tagged(mark.tag):
                # vfork and exec: a millisecond, shorter than any way around it.
                child = subprocess.Popen(  # noqa: ASYNC220  # see above
                    list(launch.argv),
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=subprocess.PIPE,
                    cwd=f"/proc/self/fd/{cwd}",
                    env=env,
                    start_new_session=True,
                    pass_fds=passed,
                    bufsize=0,
                )
                tree.own.add(child.pid)
        except (OSError, ValueError) as error:
            if tail is not None:
                os.close(tail)
            raise refusal(error, launch) from error
        finally:
            for fd in (cwd, out, *passed):
                if fd >= 0:
                    os.close(fd)
        try:
            _widen(child, len(launch.stdin))
            return cls(mark, child, launch.stdin, tail, flood, kept=kept)
        except OSError as error:  # as good as out of descriptors
            _disown(child, tail)
            raise refusal(error, launch) from error

    async def __aexit__(self, *exc: object) -> None:
        await to_its_end(self._finish(), f"end-{self.mark.run_id}")

    async def _finish(self) -> None:
        try:
            await self.end(grace_s=0, fast=True)
        finally:
            self._close()

    # -- bytes

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            if self._buffer:
                data = bytes(self._buffer)
                self._buffer.clear()
                if self._paused:
                    self._paused = False
                    if self._out_open and self._out is not None:
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
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._exited_at + _LINGER_S):
                while self._err_open:
                    self._wake.clear()
                    await self._wake.wait()
        return Exit(code=self._code, stderr=bytes(self._stderr).decode(errors="replace"))

    def _on_stdout(self) -> None:
        assert self._out is not None
        try:
            data = os.read(self._out, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end_stdout()
            return
        self._buffer += data
        self._owed -= len(data)
        if len(self._buffer) >= _BUFFER_BYTES:
            self._loop.remove_reader(self._out)
            self._paused = True
        self._wake.set()

    def _end_stdout(self) -> None:
        if self._out_open:
            self._out_open = False
            if self._tail is None and self._out is not None:
                self._loop.remove_reader(self._out)
            self._wake.set()

    def _cut_stdout(self) -> None:
        """Something else holds the pipe. What the CLI itself has written is read to its end, however slowly."""
        if self._out_open and self._owed > 0:
            self._cutting = self._loop.call_later(_LINGER_S, self._cut_stdout)
        else:
            self._end_stdout()

    async def _follow_file(self, tail: int, flood: Flood | None) -> None:
        done = 0
        while True:
            now = os.fstat(tail).st_size
            if flood is not None and now > flood.bytes:  # a pipe would hold it back, a disk does not
                flood.tell()
            size = now if self._exited.is_set() else -1  # what is written after the exit is not its
            data = b"more"
            while len(self._buffer) < _BUFFER_BYTES and (data := os.read(tail, _READ_BYTES)):
                self._buffer += data
                done += len(data)
                self._wake.set()
                if 0 <= size <= done:
                    break
            if size >= 0 and (done >= size or not data):
                self._end_stdout()
                return
            if size >= 0:
                await asyncio.sleep(_TAIL_S)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TAIL_S):
                        await self._exited.wait()

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

    # -- its end

    def _on_exit(self) -> None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == 0:
                return
            self._code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:  # not Popen's way: it would say 0
            self._code = _UNKNOWN_EXIT
        tree.own.discard(self.pid)
        self._end_child()

    def _end_child(self) -> None:
        self._child.returncode = self._code
        self._loop.remove_reader(self._pidfd)
        self._exited_at = self._loop.time()
        self._exited.set()
        self._wake.set()
        if self._tail is None and self._out_open and self._out is not None:
            with contextlib.suppress(OSError):
                self._owed = struct.unpack("i", fcntl.ioctl(self._out, termios.FIONREAD, b"\0\0\0\0"))[0]
            self._cutting = self._loop.call_later(_LINGER_S, self._cut_stdout)

    async def end(self, *, grace_s: float, fast: bool = False) -> None:
        """SIGINT, SIGTERM, SIGKILL within the grace, at once with `fast`; then whatever the CLI has left running."""
        self._remember()
        if not fast and grace_s > 0:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._signal(number)
                await self._gone(min(grace_s / 2, _STEP_S))
                self._remember()
        if not self._exited.is_set():
            tree.kill(self._known)
            self._signal(signal.SIGKILL)
            if not await self._gone(_GONE_WITHIN_S):
                _log.error("run %s: process %d does not die of SIGKILL", self.mark.run_id, self.pid)
                tree.own.discard(self.pid)  # whoever looks for orphans later reaps it
                self._code = -signal.SIGKILL
                self._end_child()
        await self.sweep()

    def _signal(self, number: int) -> None:
        # Until it is reaped, no other group can have its number.
        if not self._exited.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def _gone(self, limit_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._exited.wait()
        return self._exited.is_set()

    def _remember(self) -> None:
        """Whom the CLI has started, while it is still there to be asked."""
        if not self._exited.is_set():
            self._known.update(tree.below([self.pid]))

    async def sweep(self) -> None:
        """Ends what the CLI left running, until a look finds nothing. Only after its exit."""
        deadline = self._loop.time() + _GONE_WITHIN_S
        pause_s = 0.0
        while True:
            found, believable = tree.leftovers(self.mark, self._known)
            if not found and believable:
                return
            self._known.update(found)
            tree.kill(found)
            if self._loop.time() > deadline:
                _log.error("run %s: still there after SIGKILL: %s", self.mark.run_id, [seen.pid for seen in found])
                return
            if not found and self._loop.time() > deadline - _GONE_WITHIN_S + _UNSURE_S:
                return  # an orphan that cannot be told from one of this run, on a host that allows no tags
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s + 0.0005, 0.005)

    def _close(self) -> None:
        self._out_open = self._err_open = False
        self._wake.set()
        if self._tailing is not None:
            self._tailing.cancel()
        if self._cutting is not None:
            self._cutting.cancel()
        self.stdin.close()
        for fd in (self._pidfd, self._out, self._err):
            if fd is not None:
                self._loop.remove_reader(fd)
        for pipe in (self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()
        os.close(self._pidfd)
        if self._tail is not None:
            os.close(self._tail)


def this_warden() -> str:
    """The mark of the warden over this process, or of this process where there is none."""
    return os.environ.get(tree.WARDEN) or _this_process()


@functools.cache
def _this_process() -> str:
    return tree.warden_mark(os.getpid())


def _open_cwd(path: str) -> int:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.readlink(f"/proc/self/fd/{fd}") != path:  # no file of its own
        os.close(fd)
        raise InvalidRequest(f"the directory {path!r} has been replaced by a link since it was judged", field="workdir")
    return fd


def _widen(child: _Child, stdin_bytes: int) -> None:
    """Saves the CLI from waiting for a loop that is busy with others."""
    for pipe, size in ((child.stdout, _PIPE_BYTES), (child.stdin, min(stdin_bytes, _PIPE_BYTES))):
        if pipe is not None and size > 65536:
            with contextlib.suppress(OSError):  # the limit for all pipes of a user may be reached
                fcntl.fcntl(pipe.fileno(), _F_SETPIPE_SZ, size)


def _disown(child: _Child, tail: int | None) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    tree.own.discard(child.pid)
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    if tail is not None:
        os.close(tail)
