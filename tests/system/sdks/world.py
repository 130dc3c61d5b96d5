"""One service with the scripted CLI in claude's place, and what it says of the runs it has carried out."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import httpx

from tests.system.sdks.clients import HERE, programs
from tests.system.service import Service, run, serving, until

ABSENT = json.dumps(["/nonexistent/cli"])


class World:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.base = service.apis[0][1]
        self._known: set[str] = set()
        self.mock: Any = None  # of the vendors, where the real CLIs run

    def runs(self) -> list[str]:
        """The ids of all runs since this was last asked."""
        found = httpx.get(self.base + "/api/v1/runs?limit=1000", timeout=30).json()["runs"]
        fresh = [found["id"] for found in found if found["id"] not in self._known]
        self._known.update(fresh)
        return fresh

    def status(self, run_id: str) -> str:
        return str(run(self.base, run_id)["status"])

    def ended_as(self, status: str, run_id: str) -> None:
        until(lambda: self.status(run_id) not in ("waiting", "queued", "running"), 30)
        assert self.status(run_id) == status


@contextlib.contextmanager
def speaking(**config: str) -> Iterator[World]:
    command = json.dumps([sys.executable, "-I", "-S", str(HERE / "fake_claude.py")])
    config = {
        "CLINVK_BACKENDS__CLAUDE__COMMAND": command,
        "CLINVK_BACKENDS__CODEX__COMMAND": ABSENT,
        "CLINVK_BACKENDS__GEMINI__COMMAND": ABSENT,
        "CLINVK_SERVER__HANGUP_GRACE_SECS": "2",
        **config,
    }
    try:
        with serving(**config) as service:
            yield World(service)
    finally:
        programs.close()


def asked_paths(seen: dict[str, Any]) -> list[str]:
    """The paths of the POST requests that left the client."""
    return [request["path"] for request in seen["requests"] if request["method"] == "POST"]
