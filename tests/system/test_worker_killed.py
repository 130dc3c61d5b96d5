"""A worker that is killed at the two worst moments: between claim and first word, and between list and claim."""

import concurrent.futures
import sys
import time

import pytest

from tests.system.service import (
    Service,
    ended,
    kill_pid,
    living,
    prompt,
    run,
    serving,
    submit,
    until,
)
from worker.backends import echo_cli

pytestmark = pytest.mark.processes

LEASE_S = 4.0


def hangs_before_its_first_word(service: Service, *, times: int) -> None:
    """Echo on the workers that are still to come: its first starts say nothing, for ever."""
    path = service.folder / "cli.sh"
    lines = ["#!/bin/sh", *[f"mkdir {service.folder}/start{i} 2>/dev/null && exec sleep 300" for i in range(times)]]
    path.write_text("\n".join([*lines, f'exec {sys.executable} -I -S {echo_cli.__file__} "$@"\n']))
    path.chmod(0o755)
    service.config["CLINVK_BACKENDS__ECHO__COMMAND"] = str(path)


def claimed(service: Service) -> str:
    """The one run, once its CLI has been started; nothing has been heard of it."""
    until((service.folder / "start0").exists)
    client = service.redis.client()
    ((run_id, _),) = client.zrange("clinvk:running", 0, -1, withscores=True)
    assert client.xlen(f"clinvk:events:{run_id.decode()}") == 0
    client.close()
    return str(run_id.decode())


def kill_all_of(service: Service, number: int) -> None:
    """The worker and its warden at once, as a machine dies."""
    worker = service.workers[number]
    pid = service.celery_of(worker)
    worker.kill()
    kill_pid(pid)


def test_a_worker_killed_between_claim_and_first_word_is_a_502_within_the_lease_and_two_seconds():
    with serving(workers=0) as service, concurrent.futures.ThreadPoolExecutor() as pool:
        hangs_before_its_first_word(service, times=1)
        service.worker()
        base = service.apis[0][1]
        answer = pool.submit(prompt, base, "never said")
        run_id = claimed(service)

        kill_pid(service.celery_of(service.workers[0]))
        begun = time.monotonic()
        found = answer.result(30)

        assert time.monotonic() - begun < LEASE_S + 2
        assert (found["status"], found["error"]["code"]) == (502, "worker_lost")
        assert (run(base, run_id)["status"], run(base, run_id)["attempt"]) == ("failed", 1)
        until(lambda: not living(f"CLINVK_RUN={run_id}"), 5)
        assert until(lambda: prompt(base, "said again").get("output") == "said again", 30)  # by its successor


def test_a_run_so_lost_whose_caller_allowed_it_is_carried_out_by_another_worker():
    with serving(workers=0) as service, concurrent.futures.ThreadPoolExecutor() as pool:
        hangs_before_its_first_word(service, times=1)
        service.worker()
        base = service.apis[0][1]
        answer = pool.submit(prompt, base, "said at last", retry=1)
        run_id = claimed(service)
        service.worker()

        kill_all_of(service, 0)
        found = answer.result(30)

        assert (found["status"], found["output"]) == (200, "said at last")
        record = run(base, run_id)
        assert (record["status"], record["attempt"], record["host"]) == ("succeeded", 2, "host1")


def test_a_message_taken_from_its_list_by_a_worker_that_died_before_the_claim_is_given_again():
    with serving(workers=1) as service:
        base = service.apis[0][1]
        client = service.redis.client()
        kill_all_of(service, 0)  # it is still announced, so that a run is queued
        # To one who is about to die Redis would still give it.
        until(lambda: not [row for row in client.client_list() if row["cmd"].lower() == "brpop"])
        run_id = submit(base, "taken twice")
        assert run(base, run_id)["status"] == "queued"

        assert client.lpop("echo") is not None
        assert client.llen("echo") == 0
        service.worker()

        found = ended(base, run_id)
        assert (found["status"], found["attempt"], found["result"]["output"]) == ("succeeded", 1, "taken twice")
        assert int(client.hget(f"clinvk:run:{run_id}", "hints")) >= 2
        client.close()
