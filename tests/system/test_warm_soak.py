"""Many runs over warm processes while everything goes wrong: each ends once and truly, and nothing is left.

60 runs; CLINVK_TEST_WARM_RUNS asks for more (`make soak-warm RUNS=500`). A run may be lost only to a fault that was
injected under it: to a killed process while it was under way on that backend, to the end of its worker.
"""

import concurrent.futures
import contextlib
import json
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.mockllm import MockLLM
from tests.system import clis
from tests.system.service import Service, Stream, children, kill_pid, serving, until, whole

pytestmark = [pytest.mark.clis, pytest.mark.processes]

RUNS = int(os.environ.get("CLINVK_TEST_WARM_RUNS", "60"))
AT_ONCE = 6
ROUND = 20  # runs, between lulls in which claude's spares are started: a busy host starts none
KEYS = ({"key": "k0", "role": "admin", "name": "operator"}, {"key": "ka", "name": "a"}, {"key": "kb", "name": "b"})
KINDS = {
    "text": 42,
    "session": 12,
    "tool": 10,
    "cancel": 8,
    "cancel at once": 8,
    "cancelled tool": 4,
    "hang-up": 8,
    "429": 8,
}
FREE = {"approval_mode": "none", "sandbox_mode": "full"}
LONG = "[[mock:text n=900 ms=30]]"

_MIB = 1 << 20


class Fault:
    """`causes`: what the runs come to that are lost to it. It can reach those of its backend (None: all) that are under
    way between its beginning and its end."""

    def __init__(self, backend: str | None, *causes: str) -> None:
        self.backend = backend
        self.causes = causes
        self.reached: set[int] = set()
        self.lost = 0


class Faults:
    def __init__(self) -> None:
        self.all: list[Fault] = []
        self._open: list[Fault] = []
        self._under_way: dict[int, str] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def run(self, number: int, backend: str) -> Iterator[None]:
        with self._lock:
            self._under_way[number] = backend
            for fault in self._open:
                if fault.backend in (None, backend):
                    fault.reached.add(number)
        try:
            yield
        finally:
            with self._lock:
                del self._under_way[number]

    @contextlib.contextmanager
    def injected(self, fault: Fault) -> Iterator[None]:
        with self._lock:
            self.all.append(fault)
            self._open.append(fault)
            fault.reached |= {n for n, backend in self._under_way.items() if fault.backend in (None, backend)}
        try:
            yield
        finally:
            with self._lock:
                self._open.remove(fault)

    def explain(self, number: int, cause: str) -> bool:
        """Whether one that was injected under this run can be why; each is told of once."""
        with self._lock:
            found = next((f for f in self.all if number in f.reached and cause in f.causes), None)
            if found is not None:
                found.lost += 1
            return found is not None


class Soak:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.base = service.apis[0][1]
        self.dice = random.Random(7)
        self.faults = Faults()
        self._lock = threading.Lock()
        self._client = httpx.Client(timeout=30, verify=False)

    def close(self) -> None:
        self._client.close()

    # -- one run

    def one(self, number: int) -> str:
        """What it came to, which must be what was to be expected."""
        with self._lock:
            kind = self.dice.choices(list(KINDS), list(KINDS.values()))[0]
            fault = self._fault(number)
        fault()
        backend, key = clis.WARM[number % len(clis.WARM)], KEYS[1 + number // 3 % 2]["key"]
        if kind == "hang-up":
            return f"{kind}: {self._hung_up(number, backend, key)}"
        if kind == "session":
            return f"{kind}: {self._session(number, backend, key)}"
        count = 3 + number % 5
        text, fields, then = {
            "text": (f"[[mock:text n={count} ms=5]]", {}, None),
            "429": ("[[mock:status code=429]]", {}, None),
            "tool": (f"[[mock:tool cmd=echo+tool-{number}-said]]", FREE, None),
            "cancel": (LONG, {}, self._cancelled),
            "cancel at once": (LONG, {}, self._cancelled_at_once),
            "cancelled tool": ("[[mock:tool cmd=tail+-f+/dev/null]]", FREE, self._cancelled),
        }[kind]
        with self.faults.run(number, backend):
            run_id = self.submitted(backend, f"{text} number {number}", key, ephemeral=True, **fields)
            if then is not None:
                then(run_id, key)
            found, events = self._ended(run_id, key)
        said = whole(events)
        expected = {"429": ("failed", "rate_limited")}.get(
            kind, ("cancelled", "cancelled") if kind.startswith("cancel") else ("succeeded", None)
        )
        if self._as_expected(number, found, expected) and expected[0] == "succeeded":
            told = "".join(f"tok{i} " for i in range(count if kind == "text" else 5))
            assert said == found["result"]["output"] == told, found
            results = [event["content"]["output"] for event in events if event["type"] == "tool_result"]
            assert kind == "text" or [result.strip() for result in results] == [f"tool-{number}-said"], results
        return f"{kind}: {found['status']}"

    def _as_expected(self, number: int, found: dict[str, Any], expected: tuple[str, str | None]) -> bool:
        """Else a fault must be why."""
        status, cause = found["status"], found["result"]["error_cause"]
        if (status, cause) == expected:
            return True
        assert status == "failed", f"run {number}: {json.dumps(found)}"
        assert self.faults.explain(number, cause), (
            f"run {number}: no fault was injected under it: {json.dumps(found)}\n{self.service.logs()[-4000:]}"
        )
        return False

    def _ask(self, method: str, path: str, key: str, **more: Any) -> httpx.Response:
        headers = {"x-api-key": key, **more.pop("headers", {})}
        return self._client.request(method, self.base + path, headers=headers, **more)

    def submitted(
        self, backend: str, text: str, key: str = "ka", *, path: str = "/api/v1/prompt", **fields: Any
    ) -> str:
        """Until a worker lives that takes it."""
        body = {"prompt": text, **fields} | ({} if path.endswith("/resume") else {"backend": backend})

        def asked() -> str | None:
            answer = self._ask("POST", path, key, json=body, headers={"prefer": "respond-async"})
            assert answer.status_code in (202, 503), answer.text
            return str(answer.json()["id"]) if answer.status_code == 202 else None

        return str(until(asked, 60))

    def _ended(self, run_id: str, key: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        events = self._follow(run_id, key).rest(90)
        return self._ask("GET", f"/api/v1/runs/{run_id}", key).json(), events

    def _ended_unfollowed(self, run_id: str, key: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            found: dict[str, Any] = self._ask("GET", f"/api/v1/runs/{run_id}", key).json()
            return found if found["status"] in ("succeeded", "failed", "cancelled") else None

        found: dict[str, Any] = until(ended, 60)
        return found

    def _follow(self, run_id: str, key: str) -> Stream:
        headers = {"accept": "application/x-ndjson", "x-api-key": key}
        return Stream("GET", f"{self.base}/api/v1/runs/{run_id}/events?after=0", headers=headers, verify=False)

    def _cancelled(self, run_id: str, key: str) -> None:
        self._follow(run_id, key).next(60)
        self._cancelled_at_once(run_id, key)

    def _cancelled_at_once(self, run_id: str, key: str) -> None:
        self._ask("DELETE", f"/api/v1/runs/{run_id}", key)

    def _session(self, number: int, backend: str, key: str) -> str:
        """Two turns, which any process or worker may carry out."""
        with self.faults.run(number, backend):
            first = self.submitted(backend, f"[[mock:text n=2]] remember number-{number}-end", key)
            found, _ = self._ended(first, key)
            if not self._as_expected(number, found, ("succeeded", None)):
                return "its first turn was lost"
            path = f"/api/v1/sessions/{found['session_id']}/resume"
            second = self.submitted(backend, "[[mock:seen]] and now?", key, path=path)
            found, events = self._ended(second, key)
        if self._as_expected(number, found, ("succeeded", None)):
            users = json.loads(whole(events))["users"]
            assert any(f"number-{number}-end" in user for user in users), users
        return str(found["status"])

    def _hung_up(self, number: int, backend: str, key: str) -> str:
        body = {"backend": backend, "prompt": LONG, "ephemeral": True, "output_format": "stream-json"}
        with self.faults.run(number, backend):
            following = Stream(
                "POST", self.base + "/api/v1/prompt", json=body, headers={"x-api-key": key}, verify=False
            )
            status, headers = following.status.get(timeout=60)
            if status == 200:
                following.next(60)
                with contextlib.suppress(OSError):  # a fault has ended it first
                    following.hang_up()
            elif status == 503:  # no worker lives
                return "no run"
            found = self._ended_unfollowed(headers["x-run-id"], key)  # whoever follows it keeps it alive
        self._as_expected(number, found, ("cancelled", "hung_up"))
        return str(found["status"])

    def lull(self) -> None:
        """Until a spare waits for each tenant."""
        for key in ("ka", "kb"):
            found, _ = self._ended(self.submitted("claude", "[[mock:text]] a lull", key, ephemeral=True), key)
            assert found["status"] == "succeeded", found
        until(lambda: clis.spares_ready(self.service) >= 2, 60)

    # -- faults

    def _fault(self, number: int) -> Callable[[], None]:
        """Some come at their number: the worker restarts twice, once by its own will."""
        if number == RUNS // 3:
            return self._restart
        if number == 2 * RUNS // 3:
            return self._crash
        return self._kill_one if number % 25 == 17 else lambda: None

    def _kill_one(self) -> None:
        worker, log = self.service.workers[-1], self.service.folder / "worker0.log"
        celery = self.service.celery_of(worker)
        warm = {pid: backend for pid, backend in warm_processes(self.service).items() if pid in children(celery)}
        if not warm:
            return
        with self._lock:
            pid = self.dice.choice(sorted(warm))

        def told() -> int:
            return log.read_text().count(f"a warm {warm[pid]} ended")

        before = told()
        with self.faults.injected(Fault(warm[pid], "crashed")):
            kill_pid(pid)
            # Only then does no run come to it any more.
            until(lambda: told() != before or celery not in children(worker.pid), 20)

    def _restart(self) -> None:
        old = self.service.workers[-1]
        with self.faults.injected(Fault(None, "worker_shutdown")):
            old.send(signal.SIGTERM)
            old.wait(40)
        self.service.restart_worker(0)

    def _crash(self) -> None:
        """Its warden ends all that it had under it, and starts another."""
        worker = self.service.workers[-1]
        pid = self.service.celery_of(worker)
        with self.faults.injected(Fault(None, "worker_lost")):
            kill_pid(pid)
            until(lambda: [found for found in children(worker.pid) if found != pid], 40)


def of_runs(service: Service) -> list[int]:
    """All processes that the service's runs and warm processes have started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environ = (path / "environ").read_bytes()
            if b"\0CLINVK_RUN=" in environ and str(service.folder).encode() in environ:
                found.append(int(path.name))
    return found


def warm_processes(service: Service) -> dict[int, str]:
    """Whose they are, by their ids."""
    found = {}
    for pid in of_runs(service):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"\0CLINVK_RUN=warm_" in Path(f"/proc/{pid}/environ").read_bytes():
                found[pid] = "codex" if b"app-server" in words else "gemini" if b"--acp" in words else "claude"
    return found


def worker_bytes(service: Service) -> int:
    """Resident memory of the Celery process."""
    pid = service.celery_of(service.workers[-1])
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@pytest.fixture
def soak() -> Iterator[Soak]:
    config = {
        "CLINVK_SERVER__API_KEYS": json.dumps(KEYS),
        "CLINVK_UNIFIED_FLAGS__COMMAND_TIMEOUT_SECS": "60",
        "CLINVK_SERVER__HANGUP_GRACE_SECS": "1",
        "CLINVK_WORKER__SHUTDOWN_GRACE_SECS": "5",
        "CLINVK_LOG__LEVEL": "debug",  # which says the way of each run
    }
    for backend in clis.WARM:
        clis.command(backend)
        config[f"CLINVK_BACKENDS__{backend.upper()}__WARM__IDLE_SECS"] = "8"
        config[f"CLINVK_BACKENDS__{backend.upper()}__WARM__SIZE"] = "4"
    for backend in ("codex", "gemini"):
        config[f"CLINVK_BACKENDS__{backend.upper()}__WARM__RECYCLE_AFTER"] = "25"
    with MockLLM() as mock, serving(workers=0, **config) as service:
        for backend in clis.WARM:
            clis.install(service, backend, mock.url, "warm")
        service.worker()
        made = Soak(service)
        yield made
        made.close()


@pytest.mark.timeout(120 + 4 * RUNS)
def test_every_run_ends_once_and_truly_and_nothing_is_left(soak):
    service = soak.service
    for backend in clis.WARM:
        soak._ended(soak.submitted(backend, "[[mock:text]] the first", ephemeral=True), "ka")
    before = worker_bytes(service)

    came_to: Counter[str] = Counter()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for begun in range(0, RUNS, ROUND):
            soak.lull()
            came_to.update(pool.map(soak.one, range(begun, min(begun + ROUND, RUNS))))

    states = {backend: clis.warm_state(service, backend, "k0") for backend in clis.WARM}
    until(lambda: not of_runs(service), 60)  # idle ones go by themselves
    grown = worker_bytes(service) - before
    lost = [(fault.backend, fault.causes, fault.lost, len(fault.reached)) for fault in soak.faults.all]
    print(dict(came_to), states, lost, f"worker: {before / _MIB:.1f} {grown / _MIB:+.1f} MiB", file=sys.stderr)
    assert sum(came_to.values()) == RUNS
    assert len(soak.faults.all) >= 2
    assert all(fault.lost <= len(fault.reached) <= 2 * AT_ONCE for fault in soak.faults.all)
    assert grown < 40 * _MIB
    runs = soak._ask("GET", "/api/v1/runs?limit=1000&tenant=*", "k0").json()["runs"]
    ways = clis.ways(service)
    warm = Counter(found["backend"] for found in runs if ways.get(found["id"]) == "warm")
    print(f"warm: {dict(warm)} of {len(runs)}", file=sys.stderr)
    assert set(warm) == set(clis.WARM)
    assert len(runs) >= min(RUNS, 1000)
    assert not [found["id"] for found in runs if found["status"] not in ("succeeded", "failed", "cancelled")]
    home = service.folder / "host0" / ".clinvk"
    until(lambda: not list((home / "runs").iterdir()), 20)
