"""Each budget beside a direct start of the same stub CLI, in one run, as a table with ratios."""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from bench.load import post
from tests.system.service import Service, children, kill_pid, living, prompt, stream, until
from tests.system.test_family import Laptop

STUB = ["/bin/sh", str(Path(__file__).parent / "stub.sh")]
TICKER = ["/usr/bin/perl", str(Path(__file__).parent / "ticker.pl")]  # light: five hundred run at once
ROWS: list[tuple[str, str, str, str]] = []


def row(name: str, budget: str, measured: str, verdict: bool) -> None:
    ROWS.append((name, budget, measured, "met" if verdict else "MISSED"))
    print(f"{name}: {measured} ({ROWS[-1][3]})", file=sys.stderr, flush=True)


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def direct() -> float:
    """Seconds from the start of the stub to its first byte."""
    begun = time.perf_counter()
    child = subprocess.Popen(STUB, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"hello\n")
    child.stdin.close()
    os.read(child.stdout.fileno(), 65536)
    took = time.perf_counter() - begun
    child.stdout.read()
    child.wait()
    child.stdout.close()
    return took


BODY = {"backend": "echo", "prompt": "hello\n", "output_format": "stream-json", "ephemeral": True}


def through(caller: socket.socket, request: bytes) -> float:
    """Seconds from the request to the first event, on a plain socket: a client library's own time is not ours."""
    begun = time.perf_counter()
    caller.sendall(request)
    got = b""
    took = 0.0
    while b"\r\n0\r\n\r\n" not in got:
        got += caller.recv(65536)
        if not took and b'{"type":' in got:
            took = time.perf_counter() - begun
    assert b'"type":"done"' in got, got
    return took


def first_event(base: str) -> None:
    request = post(base, BODY)
    with socket.create_connection(("127.0.0.1", urlsplit(base).port or 0)) as caller:
        for _ in range(30):
            through(caller, request)
        pairs = [(direct(), through(caller, request)) for _ in range(300)]
    plain = [d for d, _ in pairs]
    added = [(t - statistics.median(plain)) * 1000 for _, t in pairs]
    p50, p99 = statistics.median(added), quantile(added, 0.99)
    told = f"direct p50 {statistics.median(plain) * 1000:.2f} ms; added p50 {p50:.2f}, p99 {p99:.2f} ms"
    row("added time to the first event, one caller", "p50 <= 2.0 ms, p99 <= 5 ms", told, p50 <= 2.0 and p99 <= 5.0)


def bare(seconds: float) -> float:
    """Starts of the stub a second, as fast as threads can."""
    stop = time.perf_counter() + seconds

    def loop(_: int) -> int:
        count = 0
        while time.perf_counter() < stop:
            done = subprocess.run(STUB, input=b"hello\n", capture_output=True, check=True, start_new_session=True)
            assert done.stdout
            count += 1
        return count

    with ThreadPoolExecutor(16) as pool:
        return sum(pool.map(loop, range(16))) / seconds


def load(base: str, seconds: float, callers: int = 64) -> float:
    """Runs a second through the service; the callers are a process of their own, with raw sockets."""
    code = f"import asyncio, bench.load as l; print(asyncio.run(l.main({base!r}, {seconds}, {callers})))"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def throughput(base: str) -> None:
    load(base, 2)
    alone = bare(5)
    gate = load(base, 8)
    again = bare(5)
    loop = (alone + again) / 2
    told = f"{gate:.0f} runs/s beside {loop:.0f} of the bare loop: {gate / loop:.2f}"
    row("runs per second, 64 callers", ">= 0.35 of a bare loop", told, gate / loop >= 0.35)


def events(base: str, count: int = 500, words: int = 400) -> None:
    code = f"import uvloop, bench.load as l; print(uvloop.run(l.follow({base!r}, {count}, 8.0, {words})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(done.stdout)
    told = (
        f"{found['lost']} of {count * words} lost; over {found['seconds']:.0f} s of {found['rate']:.0f} events/s: "
        f"p50 {found['p50']:.2f}, p99 {found['p99']:.1f} ms"
    )
    good = found["lost"] == 0 and found["p50"] <= 1.0 and found["p99"] <= 25
    row(f"events: {count} streams x 20/s", "none lost, p50 <= 1 ms, p99 <= 25 ms", told, good)


def rss_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


def idle_streams(service: Service, base: str) -> None:
    pid = service.apis[0][0].pid
    run_id = stream(base, "stay", "--hang").run_id
    client = "import asyncio, bench.load as l, sys; asyncio.run(l.hold(sys.argv[1], 1000))"
    url = f"{base}/api/v1/runs/{run_id}/events"
    before = rss_kib(pid)
    holder = subprocess.Popen([sys.executable, "-c", client, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    each = (rss_kib(pid) - before) / 1000
    holder.communicate()
    httpx.delete(f"{base}/api/v1/runs/{run_id}")
    row("1,000 idle streams on one API process", "<= 40 KiB each", f"{each:.1f} KiB each", each <= 40)


def hang_up(base: str) -> None:
    took = []
    for _ in range(5):
        following = stream(base, "stay", "--hang")
        run_id = following.run_id
        following.next()
        following.hang_up()
        begun = time.perf_counter()
        until(lambda run_id=run_id: not living(f"CLINVK_RUN={run_id}"))
        took.append((time.perf_counter() - begun - GRACE_S) * 1000)
    worst = max(took)
    row("client's hang-up to the CLI's death", "<= 250 ms after the grace", f"worst of 5: {worst:.0f} ms", worst <= 250)


def dead_worker(service: Service, base: str) -> None:
    following = stream(base, "stay", "--hang")
    following.next()
    pid = service.celery_of(service.workers[0])
    kill_pid(pid)
    begun = time.perf_counter()
    following.rest()
    took = time.perf_counter() - begun
    row("dead worker to the caller's error", "<= lease (4 s here) + 2 s", f"{took:.1f} s", took <= 6)


def memory(service: Service, base: str) -> None:
    pid = service.celery_of(service.workers[0])
    idle = rss_kib(pid) / 1024
    held = [stream(base, "stay", "--hang") for _ in range(100)]
    for one in held:
        one.next()
    each = (rss_kib(pid) / 1024 - idle) / 100
    for one in held:
        httpx.delete(f"{base}/api/v1/runs/{one.run_id}")
    for one in held:
        one.rest()
    told = f"{idle:.0f} MB; {each:.2f} MB a run"
    row("one worker process, idle / per concurrent run", "<= 90 MB / <= 0.3 MB", told, idle <= 90 and each <= 0.3)


def flow(service: Service, base: str, count: int = 500, window: int = 50) -> None:
    """The same runs as one flow, and as single requests of as many callers."""
    task = {"backend": "echo", "prompt": "hello\n"}
    took = {}
    for round_ in range(2):
        body = {"tasks": [task] * count, "max_parallel": window}
        begun = time.perf_counter()
        answer = httpx.post(f"{base}/api/v1/parallel", json=body, timeout=120).json()
        took[round_] = count / (time.perf_counter() - begun)
        assert answer["completed"] == count, answer
    code = f"import asyncio, bench.load as l; print(asyncio.run(l.singles({base!r}, {count}, {window})))"
    single = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    told = f"{max(took.values()):.0f} runs/s as a flow, {single:.0f} as single requests"
    row(f"a flow of {count}, window {window}, three workers", "beside single requests", told, True)
    assert len(service.workers) == 3


def backlog(service: Service, base: str) -> None:  # noqa: ARG001  # the store is filled directly
    """What a run costs while few, and while many wait: the rate at which they are carried out, topped up all the while."""
    code = f"import asyncio, bench.load as l; print(asyncio.run(l.drain({service.redis.url!r}, 100, 50_000)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    few, many = json.loads(done.stdout)
    told = f"{few:.0f} runs/s at 100 waiting, {many:.0f} at 50,000: {few / many:.2f}x"
    row("cost of a run at a backlog of 100 and of 50,000", "<= 1.2x", told, few / many <= 1.2)


def to_ready() -> None:
    took = []
    for _ in range(3):
        laptop = Laptop()
        laptop.start()
        took.append(laptop.took_s)
        laptop.close()
    worst = max(took)
    row("`clinvk serve` to ready, all on one machine", "<= 3 s", f"worst of 3: {worst:.2f} s", worst <= 3)


GRACE_S = 0.5


def main() -> int:
    quick = {"CLINVK_SERVER__HANGUP_GRACE_SECS": str(GRACE_S), "CLINVK_LOG__LEVEL": "warning"}
    stub = {"CLINVK_BACKENDS__ECHO__COMMAND": json.dumps(STUB)}
    with_service(quick | stub | {"CLINVK_WORKER__CONCURRENCY": "32"}, lambda _, b: (first_event(b), throughput(b)))
    ticking = {
        "CLINVK_BACKENDS__ECHO__COMMAND": json.dumps([*TICKER, "400"]),
        "CLINVK_WORKER__CONCURRENCY": "500",
        "CLINVK_WORKER__LEASE_SECS": "10",
    }
    with_service(quick | ticking, lambda _, b: events(b))
    plain = quick | {"CLINVK_WORKER__CONCURRENCY": "120"}
    with_service(plain, lambda s, b: (memory(s, b), idle_streams(s, b), hang_up(b), dead_worker(s, b)))
    with_service(quick | stub | {"CLINVK_WORKER__CONCURRENCY": "20"}, flow, workers=3)
    deep = {"CLINVK_WORKER__CONCURRENCY": "32", "CLINVK_QUEUE__MAX_DEPTH": "200000"}
    with_service(quick | stub | deep, backlog)
    to_ready()
    print("| | budget | measured | |\n|---|---|---|---|")
    for cells in ROWS:
        print("| " + " | ".join(cells) + " |")
    return 0


def with_service(config: dict[str, str], what, workers: int = 1) -> None:
    service = Service("everysec", **config)
    try:
        base = service.api()
        for _ in range(workers):
            service.worker()
        until(lambda: prompt(base, "warm up\n").get("exit_code") == 0 or prompt(base, "x\n").get("run_id"))
        what(service, base)
        assert children(service.workers[0].pid)
    finally:
        service.close()


if __name__ == "__main__":
    sys.exit(main())
