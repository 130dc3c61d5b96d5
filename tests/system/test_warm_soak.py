"""Many runs over warm processes while everything goes wrong: each ends once and truly, and nothing is left.

60 runs; CLINVK_TEST_WARM_RUNS asks for more.
"""

import concurrent.futures
import contextlib
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.mockllm import MockLLM
from tests.system import clis
from tests.system.service import Service, ended, follow, kill_pid, run, serving, stream, until, whole

pytestmark = [pytest.mark.clis, pytest.mark.processes]

RUNS = int(os.environ.get("CLINVK_TEST_WARM_RUNS", "60"))
AT_ONCE = 6
LOST = {"crashed", "worker_lost", "worker_shutdown"}  # what a run may end as that had a fault of ours under it

_MIB = 1 << 20


class Soak:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.base = service.apis[0][1]
        self.dice = random.Random(7)
        self.started = 0
        self.faults = 0
        self._lock = threading.Lock()
        self.came_to: Counter[str] = Counter()

    # -- one run

    def one(self, number: int) -> str:
        """What it came to, which must be what was to be expected."""
        with self._lock:
            self.started += 1
            kind = self.dice.choices(["text", "cancel", "hang-up", "429"], [70, 12, 9, 9])[0]
            fault = self._fault(number)
        backend = clis.WARM[number % len(clis.WARM)]
        fault()
        count = 3 + number % 5
        asked = {"text": f"[[mock:text n={count} ms=5]]", "429": "[[mock:status code=429]]"}
        text = f"{asked.get(kind, '[[mock:text n=900 ms=30]]')} number {number}"
        if kind == "hang-up":
            run_id = self._hung_up(backend, text)
            if run_id is None:
                return "hang-up: no run"
        else:
            run_id = self.submitted(backend, text)
            if kind == "cancel":
                self._cancelled(run_id)
        found = ended(self.base, run_id, 90)
        events = follow(self.base, run_id).rest(90)
        said = whole(events)
        return f"{kind}: {self._judged(kind, found, said, count)}"

    def submitted(self, backend: str, text: str) -> str:
        """Until a worker lives that takes it."""
        body = {"backend": backend, "prompt": text, "ephemeral": True}

        def asked() -> str | None:
            answer = httpx.post(
                self.base + "/api/v1/prompt", json=body, headers={"prefer": "respond-async"}, timeout=30
            )
            assert answer.status_code in (202, 503), answer.text
            return str(answer.json()["id"]) if answer.status_code == 202 else None

        return str(until(asked, 60))

    def _cancelled(self, run_id: str) -> None:
        follow(self.base, run_id).next(60)
        httpx.delete(f"{self.base}/api/v1/runs/{run_id}", timeout=30)

    def _hung_up(self, backend: str, text: str) -> str | None:
        following = stream(self.base, text, backend=backend, ephemeral=True)
        status, headers = following.status.get(timeout=60)
        if status != 200:  # no worker lives, or the run has failed before its first word
            return headers.get("x-run-id") if status != 503 else None
        following.next(60)
        following.hang_up()
        return headers["x-run-id"]

    def _judged(self, kind: str, found: dict[str, Any], said: str, count: int) -> str:
        status, cause = found["status"], found["result"]["error_cause"]
        if cause in LOST:
            assert self.faults, found
            assert status == "failed"
            return str(cause)
        match kind:
            case "text":
                assert status == "succeeded", found
                assert said == found["result"]["output"] == "".join(f"tok{i} " for i in range(count))
            case "429":
                assert (status, cause) == ("failed", "rate_limited"), found
            case "cancel":
                assert (status, cause) == ("cancelled", "cancelled"), found
            case _:
                assert (status, cause) == ("cancelled", "hung_up"), found
        return str(status)

    # -- faults

    def _fault(self, number: int) -> Any:
        """Some come at their number: the worker restarts twice, once by its own will."""
        if number == RUNS // 3:
            return self._restart
        if number == 2 * RUNS // 3:
            return self._crash
        return self._kill_one if number % 25 == 17 else lambda: None

    def _kill_one(self) -> None:
        warm = warm_processes(self.service)
        if warm:
            self.faults += 1
            kill_pid(self.dice.choice(warm))

    def _restart(self) -> None:
        self.faults += 1
        old = self.service.workers[-1]
        old.send(signal.SIGTERM)
        old.wait(40)
        self.service.restart_worker(0)

    def _crash(self) -> None:
        self.faults += 1
        old = self.service.workers[-1]
        kill_pid(self.service.celery_of(old))
        old.kill()
        self.service.restart_worker(0)


def of_runs(service: Service) -> list[int]:
    """All processes that the service's runs and warm processes have started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environ = (path / "environ").read_bytes()
            if b"\0CLINVK_RUN=" in environ and str(service.folder).encode() in environ:
                found.append(int(path.name))
    return found


def warm_processes(service: Service) -> list[int]:
    found = []
    for pid in of_runs(service):
        with contextlib.suppress(OSError):
            if b"\0CLINVK_RUN=warm_" in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


def worker_bytes(service: Service) -> int:
    """Resident memory of the Celery process."""
    pid = service.celery_of(service.workers[-1])
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@pytest.fixture
def soak() -> Iterator[Soak]:
    config = {
        "CLINVK_UNIFIED_FLAGS__COMMAND_TIMEOUT_SECS": "60",
        "CLINVK_SERVER__HANGUP_GRACE_SECS": "1",
        "CLINVK_WORKER__SHUTDOWN_GRACE_SECS": "5",
    }
    for backend in clis.WARM:
        clis.command(backend)
        config[f"CLINVK_BACKENDS__{backend.upper()}__WARM__IDLE_SECS"] = "8"
    for backend in ("codex", "gemini"):
        config[f"CLINVK_BACKENDS__{backend.upper()}__WARM__RECYCLE_AFTER"] = "25"
    with MockLLM() as mock, serving(workers=0, **config) as service:
        for backend in clis.WARM:
            clis.install(service, backend, mock.url, "warm")
        service.worker()
        yield Soak(service)


@pytest.mark.timeout(120 + 4 * RUNS)
def test_every_run_ends_once_and_truly_and_nothing_is_left(soak):
    service = soak.service
    for backend in clis.WARM:
        ended(soak.base, soak.submitted(backend, "[[mock:text]] the first"), 60)
    before = worker_bytes(service)

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        came_to = Counter(pool.map(soak.one, range(RUNS)))

    states = {backend: clis.warm_state(service, backend) for backend in clis.WARM}
    until(lambda: not of_runs(service), 60)  # idle ones go by themselves
    grown = worker_bytes(service) - before
    print(dict(came_to), states, f"worker: {before / _MIB:.1f} {grown / _MIB:+.1f} MiB", file=sys.stderr)
    assert sum(came_to.values()) == RUNS
    assert soak.faults >= 2
    assert grown < 40 * _MIB
    runs = httpx.get(f"{soak.base}/api/v1/runs?limit=1000", timeout=30).json()["runs"]
    assert not [found["id"] for found in runs if found["status"] not in ("succeeded", "failed", "cancelled")]
    home = service.folder / "host0" / ".clinvk"
    until(lambda: not list((home / "runs").iterdir()), 20)
    assert run(soak.base, runs[0]["id"])["status"] in ("succeeded", "failed", "cancelled")
