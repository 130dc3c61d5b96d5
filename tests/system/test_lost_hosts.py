"""Hosts that vanish without a word, across a network: a client's, and the one that Redis is on."""

import contextlib
import socket
import threading
import time
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.netns import Road, inside, road
from tests.servers import RedisServer
from tests.system.service import Service, ended, living, prompt, run, stream, submit, until, whole

pytestmark = pytest.mark.processes


@pytest.fixture
def hosts():
    made = road()
    yield made
    made.close()


def connections(pid: int, peer: str) -> int:
    """How many sockets of the namespace of a process are connected to an address."""
    number = "".join(f"{int(part):02X}" for part in reversed(peer.split(".")))
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    lines += [line.split() for line in Path(f"/proc/{pid}/net/tcp6").read_text().splitlines()[1:]]
    return sum(words[2].partition(":")[0].endswith(number) and words[3] == "01" for words in lines)


def files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


WRITE_S, HEARTBEAT_S, GRACE_S, IDLE_S, LEASE_S = 4, 1, 1, 6, 6


def test_a_clients_host_that_vanishes_is_let_go_of_and_its_attached_runs_end(hosts):
    service = Service(
        CLINVK_SERVER__HOST="0.0.0.0",
        CLINVK_SERVER__WRITE_TIMEOUT_SECS=str(WRITE_S),
        CLINVK_SERVER__IDLE_TIMEOUT_SECS=str(IDLE_S),
        CLINVK_SERVER__HEARTBEAT_SECS=str(HEARTBEAT_S),
        CLINVK_SERVER__HANGUP_GRACE_SECS=str(GRACE_S),
    )
    kept: list[socket.socket] = []
    try:
        local = inside(hosts.far, service.api)
        service.worker()
        pid = service.apis[0][0].pid
        base = local.replace("127.0.0.1", hosts.FAR)
        before = files(pid)

        def waits() -> None:
            with contextlib.suppress(httpx.HTTPError):
                prompt(base, "wait", "--hang")

        def client() -> list[str]:
            speaking = [stream(base, "word " * 2000, "--delay-ms=100") for _ in range(4)]
            silent = [stream(base, "stay", "--hang") for _ in range(2)]
            threading.Thread(target=waits, daemon=True).start()
            for _ in range(5):
                idle = socket.create_connection((hosts.FAR, httpx.URL(base).port))
                idle.sendall(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
                assert idle.recv(1000).startswith(b"HTTP/1.1 200")
                kept.append(idle)
            for one in speaking:
                one.next()
            return [one.run_id for one in [*speaking, *silent]]

        def running() -> list[str]:
            found = httpx.get(local + "/api/v1/runs").json()["runs"]
            return [one["id"] for one in found if one["status"] == "running"]

        streamed = inside(hosts.near, client)
        runs = until(lambda: (found := inside(hosts.far, running)) and len(found) == 7 and found, 30)
        assert set(streamed) <= set(runs)

        hosts.cut()
        begun = time.monotonic()

        for run_id in runs:
            told = inside(hosts.far, partial(ended, local, run_id, 60))
            assert (told["status"], told["result"]["error_cause"]) == ("cancelled", "hung_up"), told
        took = time.monotonic() - begun
        until(lambda: connections(pid, hosts.NEAR) == 0, 30)
        until(lambda: files(pid) <= before, 30)
        # The kernel gives up, the followers' grace passes, the worker ends the CLI; the rest is what a busy machine adds.
        assert took < 2 * WRITE_S + HEARTBEAT_S + GRACE_S + 15
        assert inside(hosts.far, lambda: prompt(local, "after"))["output"] == "after"
    except BaseException:
        print(service.logs())
        raise
    finally:
        for one in kept:
            one.close()
        service.close()


@pytest.fixture
def across(hosts, request):
    """The service on one host, its Redis on another; the parameter is the lease where it is not LEASE_S."""
    service = Service(CLINVK_WORKER__LEASE_SECS=str(getattr(request, "param", LEASE_S)))
    service.redis.close()
    port = ["--port", "6379", "--bind", hosts.FAR, "--protected-mode", "no"]
    service.redis = inside(hosts.far, lambda: RedisServer("always", *port))
    service.config["CLINVK_REDIS_URL"] = f"redis://{hosts.FAR}:6379/0"
    try:
        inside(hosts.near, service.api)
        inside(hosts.near, service.worker)
        yield service
    except BaseException:
        print(service.logs())
        raise
    finally:
        service.close()


# After two seconds without an answer TCP asks again at the third and sixth: the lease is to outlast more than that.
@pytest.mark.parametrize("across", [20], indirect=True, ids=["long lease"])
def test_a_redis_that_is_not_heard_for_a_moment_costs_no_run_and_no_event(hosts: Road, across: Service):
    base = across.apis[0][1]
    words = " ".join(f"w{number}" for number in range(100))
    one = inside(hosts.near, lambda: stream(base, words, "--delay-ms=60"))
    first = one.next()

    hosts.cut()
    until(lambda: inside(hosts.near, lambda: httpx.get(base + "/readyz", timeout=30).status_code) == 503, 20)
    hosts.mend()

    events = [first, *one.rest(60)]
    assert whole(events) == words
    assert inside(hosts.near, lambda: ended(base, one.run_id))["status"] == "succeeded"


def test_a_redis_whose_host_is_lost_is_told_of_in_time_and_taken_up_when_it_is_back(hosts: Road, across: Service):
    base = across.apis[0][1]
    running = inside(hosts.near, lambda: submit(base, "word " * 400, "--delay-ms=100"))
    until(lambda: inside(hosts.near, lambda: run(base, running)["status"]) == "running")

    hosts.cut()
    begun = time.monotonic()
    refused = inside(hosts.near, lambda: prompt(base, "now"))
    assert refused["status"] == 503, refused
    assert time.monotonic() - begun < 15
    across.redis.kill()  # which nobody hears of
    inside(hosts.far, across.redis.start)
    until(lambda: not living(running), 30)  # a worker that cannot renew its lease ends the CLI
    until(lambda: time.monotonic() > begun + LEASE_S + 1)
    hosts.mend()
    back = time.monotonic()

    told = inside(hosts.near, lambda: prompt_when_up(base))
    took = time.monotonic() - back
    assert told["output"] == "after"
    end = inside(hosts.near, lambda: ended(base, running, 60))
    assert (end["status"], end["result"]["error_cause"]) == ("failed", "worker_lost"), end
    assert took < 40, took


def prompt_when_up(base: str) -> dict:
    return until(lambda: (found := prompt(base, "after"))["status"] == 200 and found, 60)
