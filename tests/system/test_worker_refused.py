"""A worker whose Redis answers, but not as it should."""

import os
import signal
import sys

import pytest

from tests.system.service import Service, living, prompt, run, serving, stream, submit, until, whole
from worker.backends import echo_cli

pytestmark = pytest.mark.processes


def says(service: Service, text: str, number: int = 0) -> None:
    until(lambda: text in service.workers[number].log.read_text())


REFUSALS = {
    "too few replicas": (
        ["CONFIG", "SET", "min-replicas-to-write", "1"],
        ["CONFIG", "SET", "min-replicas-to-write", "0"],
    ),
    "a failover": (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
}


@pytest.mark.parametrize("how", REFUSALS)
def test_a_redis_that_refuses_writes_is_waited_for(how):
    refuse, allow = REFUSALS[how]
    with serving() as service:
        base = service.apis[0][1]
        pid = service.celery_of(service.workers[0])
        assert prompt(base, "before")["output"] == "before"
        client = service.redis.client()

        client.execute_command(*refuse)
        says(service, "gives no messages" if how == "too few replicas" else "Connection to broker lost")
        client.execute_command(*allow)
        client.close()

        assert until(lambda: prompt(base, "after").get("output") == "after", 30)
        assert service.celery_of(service.workers[0]) == pid
        assert service.workers[0].alive


def talks_at_first_until_it_is_let_go(service: Service) -> None:
    """Echo on the workers that are still to come: of its starts the first says words until `go` is there."""
    path, said = service.folder / "cli.sh", service.folder / "said"
    text = '{"type":"text","text":"w%d "}\\n'
    lines = [
        "#!/bin/sh",
        f'mkdir {service.folder}/start0 2>/dev/null || exec {sys.executable} -I -S {echo_cli.__file__} "$@"',
        "i=0",
        f"while ! [ -e {service.folder}/go ]; do",
        f"i=$((i+1)); printf 'w%d ' $i >>{said}; printf '{text}' $i; sleep 0.02",
        "done",
        """echo '{"type":"result","input_tokens":1,"output_tokens":1}'""",
    ]
    path.write_text("\n".join(lines))
    path.chmod(0o755)
    service.config["CLINVK_BACKENDS__ECHO__COMMAND"] = str(path)


def test_a_run_that_is_under_way_outlives_the_death_of_celery_and_others_are_taken_beside_it():
    with serving(workers=0) as service:
        talks_at_first_until_it_is_let_go(service)
        service.worker()
        base = service.apis[0][1]
        pid = service.celery_of(service.workers[0])
        following = stream(base, "go on")
        first = following.next()

        client = service.redis.client()
        client.lpush("echo", "no message of Celery's")
        client.close()
        says(service, "started again beside the runs that go on")

        assert [prompt(base, f"p{i}")["output"] for i in range(12)] == [f"p{i}" for i in range(12)]
        assert run(base, following.run_id)["status"] == "running"
        (service.folder / "go").touch()
        assert whole([first, *following.rest()]) == (service.folder / "said").read_text()
        assert service.celery_of(service.workers[0]) == pid
        service.workers[0].send(signal.SIGTERM)
        assert service.workers[0].wait(20) == 0


def test_where_no_run_is_under_way_a_fresh_process_takes_the_place_of_a_dead_celery():
    with serving() as service:
        base = service.apis[0][1]
        pid = service.celery_of(service.workers[0])

        client = service.redis.client()
        client.lpush("echo", "no message of Celery's")
        client.close()

        until(lambda: service.celery_of(service.workers[0]) != pid)
        assert until(lambda: prompt(base, "again").get("output") == "again", 30)


def test_a_frozen_worker_is_killed_with_its_clis_before_its_runs_lease_is_over():
    with serving(workers=2) as service:
        base = service.apis[0][1]
        run_id = submit(base, "stay", "--hang", retry=1)
        until(lambda: run(base, run_id)["status"] == "running")
        until(lambda: living(f"CLINVK_RUN={run_id}"))
        number = int(run(base, run_id)["host"][-1])
        pid = service.celery_of(service.workers[number])
        begun = set(living(f"CLINVK_RUN={run_id}"))

        os.kill(pid, signal.SIGSTOP)

        until(lambda: not begun & set(living(f"CLINVK_RUN={run_id}")), 4.0)
        assert run(base, run_id)["attempt"] == 1
        until(lambda: run(base, run_id)["attempt"] == 2 and run(base, run_id)["status"] == "running", 30)
        assert service.celery_of(service.workers[number]) != pid
        assert "has not moved" in service.workers[number].log.read_text()
