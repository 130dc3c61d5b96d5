"""The service as real processes: API replicas and workers on a Redis server of the test's own.

Everything is started with an environment built from nothing, and ended by its id.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.servers import RedisServer

CLINVK = str(Path(sys.executable).parent / "clinvk")
BASE_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


def until(what: Callable[[], Any], limit_s: float = 30.0) -> Any:
    """Asks again until it is so; each question is a look at real state, of which there is no event to wait for."""
    deadline = time.monotonic() + limit_s
    pause = threading.Event()
    while True:
        if found := what():
            return found
        assert time.monotonic() < deadline, f"not so within {limit_s} s: {what}"
        pause.wait(0.01)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def living(marker: str) -> list[int]:
    """The processes whose environment holds the marker. The service's own (shared/hidden.py) only root sees by it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker.encode() in (path / "environ").read_bytes() and b") Z " not in (path / "stat").read_bytes():
                found.append(int(path.name))
    return found


def children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(p) for p in path.read_text().split()]
    return found


class Proc:
    """One started command with its output kept."""

    def __init__(
        self,
        args: list[str],
        env: dict[str, str],
        log: Path,
        command: Sequence[str] = (CLINVK,),
        user: int | None = None,
    ) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, *args],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else (),
            )
        self.pid = self.process.pid

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def wait(self, limit_s: float = 20.0) -> int:
        return self.process.wait(limit_s)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


START_S = 60.0  # for a process to be ready on a machine that others keep busy; one that ends is told of at once


class Service:
    """Redis, API replicas and workers of one test."""

    def __init__(self, fsync: str = "always", **config: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clinvk-system-"))
        self.redis = RedisServer(fsync)
        self.marker = f"CLINVK_TEST_MARK={self.folder.name}"
        # Most tests make a CLI fail on purpose, and go on with the same host.
        self.config = {"CLINVK_WORKER__LEASE_SECS": "4", "CLINVK_WORKER__PASS_OVER_SECS": "0", **config}
        self.apis: list[tuple[Proc, str]] = []
        self.workers: list[Proc] = []

    def env(self, **more: str) -> dict[str, str]:
        name, _, value = self.marker.partition("=")
        home = self.folder / more.pop("home", "home")
        home.mkdir(exist_ok=True)
        made = {**BASE_ENV, "HOME": str(home), "CLINVK_REDIS_URL": self.redis.url, name: value}
        return made | {"CLINVK_BACKENDS__ECHO__ENABLED": "true"} | self.config | more

    def api(self) -> str:
        port = free_port()
        proc = Proc(["serve", "--port", str(port)], self.env(), self.folder / f"api{len(self.apis)}.log")
        base = f"http://127.0.0.1:{port}"
        self.apis.append((proc, base))
        until(lambda: self._up(proc, base), START_S)
        return base

    def _up(self, proc: Proc, base: str) -> bool:
        assert proc.alive, proc.log.read_text()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(base + "/health").status_code == 200
        return False

    def worker(self, *args: str, **env: str) -> Proc:
        number = len(self.workers)
        host = f"host{number}"
        proc = Proc(["worker", "--name", host, *args], self.env(home=host, **env), self.folder / f"worker{number}.log")
        self.workers.append(proc)
        client = self.redis.client()
        try:
            until(
                lambda: (
                    any(host.encode() in (client.get(k) or b"") for k in client.keys("clinvk:instance:*"))
                    or not proc.alive
                ),
                START_S,
            )
        finally:
            client.close()
        assert proc.alive, proc.log.read_text()
        return proc

    def restart_worker(self, number: int, **env: str) -> Proc:
        """The worker of a host that had ended comes back, under the same name and HOME."""
        host = f"host{number}"
        proc = Proc(["worker", "--name", host], self.env(home=host, **env), self.folder / f"worker{number}.log")
        self.workers.append(proc)
        return proc

    def celery_of(self, worker: Proc) -> int:
        """The pid of the Celery process below a warden."""
        return int(until(lambda: children(worker.pid))[0])

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-4000:]}" for p in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        below = [pid for proc in self.workers if proc.alive for pid in children(proc.pid)]
        for proc in [*[p for p, _ in self.apis], *self.workers]:
            if proc.alive:
                proc.send(signal.SIGTERM)
        for proc in [*[p for p, _ in self.apis], *self.workers]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                proc.wait(5)
            if proc.alive:
                proc.kill()
        until(lambda: not living(self.marker) and not any(Path(f"/proc/{pid}").exists() for pid in below), 30)
        self.redis.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Stream:
    """Follows NDJSON events in a thread of its own; `next` and `rest` wait for them."""

    def __init__(self, method: str, url: str, **kwargs: Any) -> None:
        self.events: queue.Queue[dict[str, Any] | Exception | None] = queue.Queue()
        self.status: queue.Queue[tuple[int, dict[str, str]]] = queue.Queue()
        self._answer: Any = None
        self.thread = threading.Thread(target=self._read, args=(method, url, kwargs), daemon=True)
        self.thread.start()

    def _read(self, method: str, url: str, kwargs: dict[str, Any]) -> None:
        try:
            verify = kwargs.pop("verify", True)
            with httpx.Client(timeout=60, verify=verify) as client, client.stream(method, url, **kwargs) as answer:
                self._answer = answer
                self.status.put((answer.status_code, dict(answer.headers)))
                for line in answer.iter_lines():
                    if line.strip():
                        self.events.put(json.loads(line))
        except Exception as error:  # noqa: BLE001  # handed to whoever waits
            self.events.put(error)
        self.events.put(None)

    def hang_up(self) -> None:
        """Breaks the connection, as a client that dies does."""
        wire = self._answer.extensions["network_stream"].get_extra_info("socket")
        wire.shutdown(socket.SHUT_RDWR)

    @property
    def run_id(self) -> str:
        status, headers = self.status.get(timeout=20)
        assert status == 200, status
        return headers["x-run-id"]

    def next(self, limit_s: float = 20.0) -> dict[str, Any]:
        event = self.events.get(timeout=limit_s)
        if isinstance(event, Exception):
            raise event
        assert event is not None, "the stream has ended"
        return event

    def rest(self, limit_s: float = 40.0) -> list[dict[str, Any]]:
        """All that is to come; an interrupted stream raises."""
        found = []
        while (event := self.events.get(timeout=limit_s)) is not None:
            if isinstance(event, Exception):
                raise event
            found.append(event)
        return found


def prompt(base: str, text: str, *extra: str, **fields: Any) -> dict[str, Any]:
    body = {"backend": "echo", "prompt": text, "extra": list(extra), **fields}
    answer = httpx.post(base + "/api/v1/prompt", json=body, timeout=60)
    return {"status": answer.status_code, **answer.json()}


def stream(base: str, text: str, *extra: str, **fields: Any) -> Stream:
    body = {"backend": "echo", "prompt": text, "extra": list(extra), "output_format": "stream-json", **fields}
    return Stream("POST", base + "/api/v1/prompt", json=body)


def submit(base: str, text: str, *extra: str, **fields: Any) -> str:
    body = {"backend": "echo", "prompt": text, "extra": list(extra), **fields}
    answer = httpx.post(base + "/api/v1/prompt", json=body, headers={"prefer": "respond-async"}, timeout=30)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def follow(base: str, run_id: str, after: int = 0) -> Stream:
    return Stream(
        "GET", f"{base}/api/v1/runs/{run_id}/events?after={after}", headers={"accept": "application/x-ndjson"}
    )


def run(base: str, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{base}/api/v1/runs/{run_id}", timeout=30).json()
    return found


def ended(base: str, run_id: str, limit_s: float = 30.0) -> dict[str, Any]:
    until(lambda: run(base, run_id).get("result"), limit_s)
    return run(base, run_id)


def whole(events: list[dict[str, Any]]) -> str:
    """The text of the events, which must be numbered without gap or double and end once."""
    numbers = [event["sequence"] for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers
    assert [event["type"] in ("done", "error") for event in events] == [False] * (len(events) - 1) + [True]
    return "".join(event["content"]["text"] for event in events if event["type"] == "message")


@contextlib.contextmanager
def closing(service: Service) -> Iterator[None]:
    """Its logs are shown where what is done with it fails."""
    try:
        yield
    except BaseException:
        print(service.logs(), file=sys.stderr)
        raise
    finally:
        service.close()


@contextlib.contextmanager
def serving(workers: int = 1, apis: int = 1, **config: str) -> Iterator[Service]:
    service = Service(**config)
    with closing(service):
        for _ in range(apis):
            service.api()
        for _ in range(workers):
            service.worker()
        yield service


def kill_pid(pid: int) -> None:
    """SIGKILL to a process that this test's own service started."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
