"""A fleet whose hosts have different CLIs: each takes what it can run, no more at once than it may."""

import concurrent.futures
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.service import Service, follow, prompt, run, serving, submit, until
from worker.backends import echo_cli

pytestmark = pytest.mark.processes


def install(path: Path) -> None:
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {echo_cli.__file__} "$@"\n')
    path.chmod(0o755)


def readiness(service: Service, host: str) -> str:
    client = service.redis.client()
    rows: list[dict[str, Any]] = [json.loads(client.get(key) or b"{}") for key in client.keys("clinvk:instance:*")]
    client.close()
    return next(
        (b["readiness"] for row in rows if row.get("host") == host for b in row["backends"] if b["name"] == "echo"), ""
    )


def hosts_of(base: str, count: int) -> set[str]:
    """Where so many runs went, all of which must succeed."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: prompt(base, f"p{i}"), range(count)))
    assert [one.get("output") for one in found] == [f"p{i}" for i in range(count)]
    return {run(base, one["run_id"])["host"] for one in found}


def test_a_host_takes_no_run_of_a_cli_that_it_lacks_and_follows_the_cli_as_it_comes_and_goes():
    with serving(workers=0) as service:
        first, second = service.folder / "first.sh", service.folder / "second.sh"
        install(second)
        service.worker(CLINVK_BACKENDS__ECHO__COMMAND=str(first))
        service.worker(CLINVK_BACKENDS__ECHO__COMMAND=str(second))
        base = service.apis[0][1]
        until(lambda: readiness(service, "host1") == "ready")

        assert hosts_of(base, 30) == {"host1"}

        install(first)
        second.unlink()
        until(lambda: (readiness(service, "host0"), readiness(service, "host1")) == ("ready", "not_installed"))

        assert hosts_of(base, 30) == {"host0"}


def test_a_backend_runs_no_more_at_once_than_it_may_and_waits_for_no_other_where_a_host_is_free():
    with serving(workers=0, CLINVK_BACKENDS__ECHO__MAX_CONCURRENCY="1") as service:
        service.worker()
        base = service.apis[0][1]
        first, second = submit(base, "one", "--hang"), submit(base, "two", "--hang")
        until(lambda: run(base, first)["status"] == "running")
        following = follow(base, first)
        following.next()

        assert run(base, second)["status"] == "queued"
        service.worker()  # which is free
        until(lambda: run(base, second)["status"] == "running")
        assert run(base, first)["status"] == "running"
        assert {run(base, id)["host"] for id in (first, second)} == {"host0", "host1"}
