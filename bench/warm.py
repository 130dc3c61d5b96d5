"""Each real CLI by hand, through the service with one process a run, and through it warm, against one instant mock.

`python -m bench.warm [SECONDS] [BACKEND ...]`; what is not installed is left out.
"""

import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from bench.load import post
from shared.config import BackendConfig, Config
from shared.ids import new_id
from shared.run import RunSpec
from tests.system import clis
from tests.system.service import Service, children, serving
from worker.stage import Stage
from worker.warm.drivers import create_drivers
from worker.warm.memory import pss

_CALLERS = 8
_SINGLES = 15
_PROMPT = "[[mock:text n=20]] hello"
_FIRST = b"tok0"
_TICK = os.sysconf("SC_CLK_TCK")
_BUDGETS = {"claude": (0.45, 0.9), "codex": (0.5, 2.5), "gemini": (0.15, 4.0)}  # first text; runs/s beside cold
_MOCK = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from tests.fakes.mockllm import MockLLM\n"
    "with MockLLM() as mock:\n"
    "    print(mock.url, flush=True)\n"
    "    sys.stdin.read()\n"
)


class Row:
    """What one way came to. `one` carries out a run and returns the seconds to its first text; `rest` comes before each
    of those that are alone: until what serves a run once has been made anew."""

    def __init__(
        self,
        name: str,
        one: Callable[[], float],
        cpu_s: Callable[[], float],
        seconds: float,
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        one()
        self.first_s = []
        for _ in range(_SINGLES):
            rest()
            self.first_s.append(one())
        done, stop = [0] * _CALLERS, time.perf_counter() + seconds

        def call(number: int) -> None:
            while time.perf_counter() < stop:
                one()
                done[number] += 1

        callers = [threading.Thread(target=call, args=(number,)) for number in range(_CALLERS)]
        before, begun = cpu_s(), time.perf_counter()
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        self.rate = sum(done) / (time.perf_counter() - begun)
        self.cpu_s = (cpu_s() - before) / max(sum(done), 1)
        self.pss_mb = 0.0


def by_hand(backend: str, url: str, folder: Path) -> Callable[[], float]:
    """The command line that the service would start."""
    config = Config(
        backends={
            backend: BackendConfig(
                command=clis.command(backend), env=clis.environment(backend, url) | {"IS_SANDBOX": "1"}
            )
        }
    )
    stage = Stage(config, folder / "clinvk", {"HOME": str(folder), "PATH": "/usr/local/bin:/usr/bin:/bin"})

    def one() -> float:
        spec = RunSpec(id=new_id("run"), tenant="bench", backend=backend, prompt=_PROMPT, ephemeral=True)
        prepared = stage.prepare(spec)
        launch = prepared.launch
        begun = time.perf_counter()
        child = subprocess.Popen(
            list(launch.argv),
            env=dict(launch.env),
            cwd=launch.cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(launch.stdin)
        child.stdin.close()
        got, first = b"", 0.0
        while data := os.read(child.stdout.fileno(), 65536):
            got += data
            if not first and _FIRST in got:
                first = time.perf_counter() - begun
        child.wait()
        child.stdout.close()
        prepared.clean()
        assert first, got
        return first

    return one


def through(backend: str, base: str) -> Callable[[], float]:
    body = {"backend": backend, "prompt": _PROMPT, "output_format": "stream-json", "ephemeral": True}
    request, port = post(base, body), urlsplit(base).port or 0

    def one() -> float:
        with socket.create_connection(("127.0.0.1", port)) as caller:
            begun = time.perf_counter()
            caller.sendall(request)
            got, first = b"", 0.0
            while b"\r\n0\r\n\r\n" not in got:
                data = caller.recv(65536)
                assert data, got
                got += data
                if not first and _FIRST in got:
                    first = time.perf_counter() - begun
        assert b'"type":"done"' in got, got
        return first

    return one


def tree(pids: list[int]) -> list[int]:
    return [pid for root in pids for pid in (root, *tree(children(root)))]


def cpu_of(pids: list[int]) -> float:
    """With what they have started and what has ended of it."""
    ticks = 0
    for pid in tree(pids):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICK


def hand_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def served(backend: str, url: str, way: str, seconds: float) -> Row:
    with serving(workers=0, CLINVK_UNIFIED_FLAGS__COMMAND_TIMEOUT_SECS="60") as service:
        clis.install(service, backend, url, way)
        service.worker()
        driver = create_drivers()[backend]
        if way == "warm":
            clis.heat(service, backend, [{"ephemeral": True}], driver.size)
        made = Row(
            f"service, {way}",
            through(backend, service.apis[0][1]),
            lambda: cpu_of(_roots(service)),
            seconds,
            rest=(lambda: clis.spares_wait(service, driver.size)) if way == "warm" and driver.single else lambda: None,
        )
        made.pss_mb = pss(tree([service.workers[0].pid])) / 1e6
        if way == "warm":
            seen = clis.warm_state(service, backend)
            print(json.dumps({"backend": backend, **seen}), file=sys.stderr, flush=True)
        return made


def _roots(service: Service) -> list[int]:
    assert service.redis.process is not None
    return [service.apis[0][0].pid, service.workers[0].pid, service.redis.process.pid]


def measure(backend: str, url: str, seconds: float) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="clinvk-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if backend == "codex":
            clis.codex_home(folder, url)
        hand = Row("by hand", by_hand(backend, url, folder), hand_cpu, seconds)
    return [hand, served(backend, url, "cold", seconds), served(backend, url, "warm", seconds)]


def table(backend: str, rows: list[Row]) -> None:
    hand, cold, warm = rows
    print(f"\n{backend}: {_SINGLES} runs one by one, then {_CALLERS} callers; 20 tokens at once")
    print("| way | request to first text, median (min-max) | runs/s | CPU s a run | worker and CLIs, PSS |")
    print("|---|---|---|---|---|")
    for row in rows:
        first = [s * 1000 for s in row.first_s]
        told = f"{statistics.median(first):.0f} ms ({min(first):.0f}-{max(first):.0f})"
        memory = f"{row.pss_mb:.0f} MB" if row.pss_mb else ""
        print(f"| {row.name} | {told} | {row.rate:.2f} | {row.cpu_s:.3f} | {memory} |")
    text, rate = _BUDGETS[backend]
    found_text = statistics.median(warm.first_s) / statistics.median(hand.first_s)
    found_rate = warm.rate / cold.rate
    verdicts = ["met" if found_text <= text else "MISSED", "met" if found_rate >= rate else "MISSED"]
    print(f"warm beside by hand, first text: {found_text:.2f} (<= {text}: {verdicts[0]});", end=" ")
    print(f"beside cold, runs/s: {found_rate:.2f} (>= {rate}: {verdicts[1]})", flush=True)


def main(args: list[str]) -> None:
    seconds = float(args.pop(0)) if args and args[0].replace(".", "").isdigit() else 10.0
    found = [name for name in args or clis.WARM if (clis.MODULES / clis.NATIVE[name]).exists()]
    root = str(Path(__file__).parents[1])
    mock = subprocess.Popen([sys.executable, "-c", _MOCK, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert mock.stdout is not None
    try:
        url = mock.stdout.readline().decode().strip()
        for backend in found:
            table(backend, measure(backend, url, seconds))
    finally:
        mock.communicate(timeout=10)


if __name__ == "__main__":
    main(sys.argv[1:])
