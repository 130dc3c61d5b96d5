"""What may go wrong, each on real processes: every accepted run ends once, truly, and leaves no process."""

import signal
import time

import pytest

from tests.system.service import (
    children,
    ended,
    follow,
    kill_pid,
    living,
    prompt,
    run,
    serving,
    stream,
    submit,
    until,
    whole,
)

pytestmark = pytest.mark.processes

WORDS = " ".join(f"w{i}" for i in range(200))
SLOW = "--delay-ms=20"  # 200 words: four seconds


def no_process_of(run_id: str) -> None:
    """Five seconds later no process of it lives."""
    until(lambda: not living(f"CLINVK_RUN={run_id}"), 5)


def test_a_worker_killed_in_mid_stream_is_told_to_the_caller_within_the_lease_and_two_seconds():
    with serving() as service:
        base = service.apis[0][1]
        following = stream(base, WORDS, SLOW)
        run_id = following.run_id
        first = [following.next() for _ in range(5)]

        kill_pid(service.celery_of(service.workers[0]))
        begun = time.monotonic()
        events = first + following.rest()

        assert time.monotonic() - begun < 4 + 4 + 2  # the lease, the sweep's own pause after an absence, two seconds
        whole(events)
        assert events[-1]["content"]["code"] == "worker_lost"
        assert run(base, run_id)["status"] == "failed"
        no_process_of(run_id)
        # The warden has started another worker process; the next run is served.
        assert until(lambda: prompt(base, "again").get("output") == "again", 30)


def test_a_run_whose_caller_allowed_it_is_started_again_by_another_worker():
    with serving(workers=2) as service:
        base = service.apis[0][1]
        following = stream(base, WORDS, SLOW, retry=1)
        run_id = following.run_id
        first = [following.next() for _ in range(5)]
        host = run(base, run_id)["host"]
        worker = service.workers[int(host[-1])]

        worker.kill()  # the warden itself: the worker process sees the end of its lifeline
        events = first + following.rest()

        whole(events)
        assert events[-1]["type"] == "done"
        found = run(base, run_id)
        assert (found["status"], found["attempt"]) == ("succeeded", 2)
        assert found["result"]["output"] == WORDS
        assert found["host"] != host


def test_a_worker_killed_before_the_claim_loses_nothing():
    with serving(workers=1) as service:
        base = service.apis[0][1]
        pid = service.celery_of(service.workers[0])
        signal_stop(pid)  # takes nothing more
        ids = [submit(base, f"p{i}") for i in range(3)]
        service.workers[0].kill()
        kill_pid(pid)
        service.worker()

        for i, run_id in enumerate(ids):
            found = ended(base, run_id)
            assert (found["status"], found["attempt"], found["result"]["output"]) == ("succeeded", 1, f"p{i}")


def test_a_message_delivered_twice_starts_a_run_once():
    with serving() as service:
        base = service.apis[0][1]
        following = stream(base, "one two three", "--delay-ms=100")
        run_id = following.run_id
        client = service.redis.client()
        from shared.queue import message

        for i in range(5):
            client.lpush("echo", message(run_id, "echo", f"{run_id}-double-{i}"))
        events = following.rest()

        assert whole(events) == "one two three"
        until(lambda: client.llen("echo") == 0 and client.hlen("clinvk:unacked") == 0)
        assert run(base, run_id)["attempt"] == 1
        client.close()


def test_a_message_lost_is_sent_again():
    with serving(workers=0) as service:
        base = service.apis[0][1]
        service.worker("--backends", "echo")
        pid = service.celery_of(service.workers[0])
        signal_stop(pid)
        run_id = submit(base, "lost and found")
        client = service.redis.client()
        until(lambda: client.delete("echo") or not client.llen("echo"))
        signal_go(pid)

        assert ended(base, run_id)["result"]["output"] == "lost and found"
        client.close()


def test_redis_killed_and_back_keeps_what_was_queued_and_what_was_streaming():
    # A lease that outlasts a slow start of Redis: what is lost with one is another test's.
    with serving(CLINVK_WORKER__CONCURRENCY="2", CLINVK_WORKER__LEASE_SECS="20") as service:
        base = service.apis[0][1]
        streams = [stream(base, WORDS, "--delay-ms=15") for _ in range(2)]
        ids = [s.run_id for s in streams]
        first = [[s.next() for _ in range(5)] for s in streams]
        queued = [submit(base, f"queued {i}") for i in range(4)]

        service.redis.kill()
        time_passes(1.0)
        service.redis.start()

        for i, following in enumerate(streams):
            assert whole(first[i] + following.rest()) == WORDS
            assert run(base, ids[i])["status"] == "succeeded"
        for i, run_id in enumerate(queued):
            found = ended(base, run_id, 40)
            assert (found["status"], found["attempt"]) == ("succeeded", 1)
            assert found["result"]["output"] == f"queued {i}"


def test_a_worker_that_loses_redis_leaves_no_file_behind(tmp_path):
    with serving(TMPDIR=str(tmp_path)) as service:
        base = service.apis[0][1]
        stream(base, "stay", "--hang").next()

        service.redis.kill()
        service.redis.start()

        assert prompt(base, "again")["output"] == "again"
        until(lambda: "Connection to broker lost" in service.workers[0].log.read_text())
        # kombu would keep the messages that it cannot give back in a file for each loss
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_api_replica_killed_loses_no_event_of_a_run_that_another_follows_on():
    with serving(apis=2) as service:
        (proc, one), (_, two) = service.apis
        following = stream(one, WORDS, SLOW)
        run_id = following.run_id
        seen = [following.next() for _ in range(10)]

        proc.kill()
        rest = follow(two, run_id, after=seen[-1]["sequence"]).rest()

        assert whole(seen + rest) == WORDS
        assert run(two, run_id)["status"] == "succeeded"


def test_a_run_of_a_killed_api_replica_that_nobody_follows_is_ended():
    with serving(apis=2, CLINVK_SERVER__HANGUP_GRACE_SECS="1") as service:
        (proc, one), (_, two) = service.apis
        following = stream(one, WORDS, "--hang")
        run_id = following.run_id
        following.next()

        proc.kill()

        found = ended(two, run_id, 25)
        assert (found["status"], found["result"]["error_cause"]) == ("cancelled", "hung_up")
        no_process_of(run_id)


def test_a_hang_up_ends_the_run_after_the_grace_and_its_processes():
    with serving(CLINVK_SERVER__HANGUP_GRACE_SECS="0.5") as service:
        base = service.apis[0][1]
        following = stream(base, "stay", "--hang")
        run_id = following.run_id
        following.next()
        detached = submit(base, "stay", "--hang")
        until(lambda: run(base, detached)["status"] == "running")

        following.hang_up()

        assert ended(base, run_id, 10)["result"]["error_cause"] == "hung_up"
        no_process_of(run_id)
        assert run(base, detached)["status"] == "running"


def test_a_cancel_reaches_the_last_grandchild_in_a_session_of_its_own():
    script = '#!/bin/sh\nread x\necho \'{"type":"init"}\'\n'
    script += "setsid sh -c 'trap \"\" TERM INT; sleep 300 & sleep 300' &\n"
    script += "setsid env -i PATH=/usr/bin:/bin sleep 301 &\nsleep 300\n"
    with serving(workers=0) as service:
        path = service.folder / "cli.sh"
        path.write_text(script)
        path.chmod(0o755)
        service.config["CLINVK_BACKENDS__ECHO__COMMAND"] = str(path)
        service.worker()
        base = service.apis[0][1]
        following = stream(base, "x\n")
        run_id = following.run_id
        following.next()
        pids = until(lambda: (found := tree_of(service)) and len(found) >= 5 and found)

        import httpx

        httpx.delete(f"{base}/api/v1/runs/{run_id}")

        assert following.rest()[-1]["content"]["code"] == "cancelled"
        no_process_of(run_id)
        until(lambda: not set(pids) & set(tree_of(service)), 5)


def test_a_worker_told_to_end_lets_runs_finish_and_takes_no_more():
    with serving(workers=2) as service:
        base = service.apis[0][1]
        streams = [stream(base, WORDS, "--delay-ms=10") for _ in range(6)]
        ids = [s.run_id for s in streams]
        for s in streams:
            s.next()

        service.workers[0].send(signal.SIGTERM)

        assert [prompt(base, f"more {i}")["output"] for i in range(5)] == [f"more {i}" for i in range(5)]
        for s in streams:
            whole(s.rest())
        assert {run(base, i)["status"] for i in ids} == {"succeeded"}
        assert service.workers[0].wait(20) == 0


def test_a_run_that_outlasts_the_grace_of_a_shutdown_ends_as_worker_shutdown():
    with serving(CLINVK_WORKER__SHUTDOWN_GRACE_SECS="0.5") as service:
        base = service.apis[0][1]
        following = stream(base, "stay", "--hang")
        run_id = following.run_id
        following.next()

        service.workers[0].send(signal.SIGTERM)

        assert following.rest()[-1]["content"]["code"] == "worker_shutdown"
        assert run(base, run_id)["status"] == "failed"
        assert service.workers[0].wait(20) == 0
        no_process_of(run_id)


def test_sigterm_on_everything_in_turn_under_load_loses_nothing():
    with serving(workers=2, apis=2) as service:
        (api, one), (_, two) = service.apis
        ids = [submit(one if i % 2 else two, f"load {i}", "--delay-ms=30") for i in range(40)]

        api.send(signal.SIGTERM)
        service.workers[0].send(signal.SIGTERM)
        service.worker()
        service.workers[1].send(signal.SIGTERM)

        for i, run_id in enumerate(ids):
            found = ended(two, run_id, 60)
            assert (found["status"], found["attempt"], found["result"]["output"]) == ("succeeded", 1, f"load {i}")
        assert api.wait(20) == 0


def test_deadline_and_idleness_end_a_run_that_says_nothing():
    with serving(CLINVK_WORKER__IDLE_TIMEOUT_SECS="1") as service:
        base = service.apis[0][1]

        idle = prompt(base, "x", "--hang")
        late = prompt(base, WORDS, "--delay-ms=100", timeout_secs=0.7)

        assert (idle["status"], late["status"]) == (504, 504)
        assert [found["error"]["details"]["cause"] for found in (idle, late)] == ["idle", "timed_out"]
        assert late["error"]["code"] == "timeout"


def test_what_a_run_prints_is_bounded():
    with serving(CLINVK_RUNS__MAX_OUTPUT_BYTES="20000") as service:
        base = service.apis[0][1]

        found = prompt(base, WORDS * 60)

        assert (found["status"], found["error"]["code"]) == (502, "output_too_large")


def tree_of(service) -> list[int]:
    """All processes below the first worker's Celery process."""
    found: list[int] = []
    todo = children(service.celery_of(service.workers[0]))
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children(pid)
    return found


def signal_stop(pid: int) -> None:
    import os

    os.kill(pid, signal.SIGSTOP)


def signal_go(pid: int) -> None:
    import os

    os.kill(pid, signal.SIGCONT)


def time_passes(seconds: float) -> None:
    """An outage has a length."""
    import threading

    threading.Event().wait(seconds)
