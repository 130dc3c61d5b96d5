"""Finds the real CLIs that `make clis` has installed, and serves them: pointed at the mock, cold or warm."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.mockllm import MockLLM
from tests.system.service import START_S, Service, prompt, serving, until
from worker.warm.drivers import create_drivers

CLIS = ("claude", "codex", "gemini")
WARM = tuple(create_drivers())
WAYS = ("cold", "warm")

# Claude's spares serve one run each, of the kind that they were started for: one of each kind of these tests, and two
# of those that come most.
SPARES = 8
_ALL = {"approval_mode": "none", "sandbox_mode": "full"}
_READING = {"approval_mode": "always", "sandbox_mode": "read-only"}
KINDS: tuple[dict[str, Any], ...] = (
    {"approval_mode": "none", "sandbox_mode": "read-only"},
    _READING | {"ephemeral": True},
    _ALL | {"ephemeral": True},
    _ALL,
    {"ephemeral": True},
    {},
)

_ROOT = Path(__file__).parents[2]
MODULES = Path(os.environ.get("CLINVK_TEST_CLIS", str(_ROOT / ".clis"))) / "node_modules"

NATIVE = {
    "claude": "@anthropic-ai/claude-code-linux-x64/claude",
    "codex": "@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin/codex",
    "gemini": "@google/gemini-cli/bundle/gemini.js",
}


def command(backend: str) -> list[str]:
    """The CLI's own binary; a test that needs it is skipped, or fails where CLINVK_REQUIRE is set."""
    path = MODULES / NATIVE[backend]
    if not path.exists():
        message = f"{backend} is not installed; `make clis` installs it from npm"
        if os.environ.get("CLINVK_REQUIRE"):
            pytest.fail(message)
        pytest.skip(message)
    return ["/usr/bin/env", "node", str(path)] if backend == "gemini" else [str(path)]


def environment(backend: str, url: str) -> dict[str, str]:
    """Fake keys and loopback base URLs."""
    match backend:
        case "claude":
            return {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "sk-fake"}
        case "codex":
            return {"MOCK_KEY": "fake"}
        case _:
            return {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "fake"}


def codex_home(folder: Path, url: str) -> Path:
    home = folder / ".codex"
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(
        'model = "gpt-6-sol"\nmodel_provider = "mock"\n'
        f'[model_providers.mock]\nname = "mock"\nbase_url = "{url}/v1"\nenv_key = "MOCK_KEY"\nwire_api = "responses"\n'
    )
    return home


def install(service: Service, backend: str, url: str, way: str = "cold", **env: str) -> None:
    """The CLI for the workers to come of this service."""
    prefix = f"CLINVK_BACKENDS__{backend.upper()}__"
    service.config[prefix + "COMMAND"] = json.dumps(command(backend))
    service.config[prefix + "ENV"] = json.dumps(environment(backend, url) | {"IS_SANDBOX": "1"} | env)
    service.config[prefix + "WARM__MODE"] = "off" if way == "cold" else "auto"
    if backend == "codex":
        codex_home(service.folder / "host0", url)


@contextlib.contextmanager
def serving_clis(
    way: str = "cold",
    backends: Sequence[str] = CLIS,
    apis: int = 1,
    *,
    heated: bool = True,
    at: MockLLM | None = None,
    **config: str,
) -> Iterator[tuple[Service, MockLLM]]:
    """One worker with the real CLIs, pointed at a mock (`at`, else one of its own); where the way is warm, each has a
    warm process ready, unless it is not to be `heated`."""
    for backend in backends:
        command(backend)
    config.setdefault("CLINVK_LOG__LEVEL", "debug")  # see `ways`
    with (
        contextlib.nullcontext(at) if at is not None else MockLLM() as mock,
        serving(workers=0, apis=apis, **config) as service,
    ):
        for backend in backends:
            install(service, backend, mock.url, way)
        if "claude" in backends:
            service.config["CLINVK_BACKENDS__CLAUDE__WARM__SIZE"] = str(SPARES)
        service.worker()
        if way == "warm" and heated:
            for backend in backends:
                heat(service, backend)
        yield service, mock


def warm_state(service: Service, backend: str, key: str = "") -> dict[str, Any]:
    """What the service's only worker says of its warm processes. `key`: an admin's, where there are keys."""
    headers = {"x-api-key": key} if key else {}
    workers = httpx.get(service.apis[0][1] + "/api/v1/workers", headers=headers, timeout=30).json()["workers"]
    states = [entry["warm"] for worker in workers for entry in worker["backends"] if entry["name"] == backend]
    return states[-1] if states and states[-1] is not None else {}


def working(service: Service, *command: str) -> list[int]:
    """The processes of this command line in a directory of this service: another test run's may have the same words."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            same = cmdline(int(path.name)).decode(errors="replace").split("\0")[:-1] == list(command)
            if same and os.readlink(path / "cwd").startswith(str(service.folder)):
                found.append(int(path.name))
    return found


def sleeping(service: Service, seconds: int) -> list[int]:
    return working(service, "sleep", str(seconds))


def cmdline(pid: int) -> bytes:
    """Empty where it has gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def holding(folder: Path, words: str, most_bytes: float = math.inf) -> list[Path]:
    """Every file with these words; what goes away meanwhile has none."""
    found = []
    for below, _, names in os.walk(folder):
        for path in (Path(below) / name for name in names):
            with contextlib.suppress(FileNotFoundError):
                wanted = path.is_file() and not path.is_symlink() and path.stat().st_size < most_bytes
                if wanted and words.encode() in path.read_bytes():
                    found.append(path)
    return found


def ways(service: Service) -> dict[str, str]:
    """Run -> `warm`, or why it was given a process of its own; of workers that log at debug."""
    found = {}
    for path in sorted(service.folder.glob("worker*.log")):
        for line in path.read_text(errors="replace").splitlines():
            if '"way": ' in line:
                said = json.loads(line)
                found[str(said["run_id"])] = str(said["way"])
    return found


def heat(service: Service, backend: str, kinds: Sequence[dict[str, Any]] | None = None, count: int = SPARES) -> None:
    """The first run of a kind goes cold, and a warm process is started for the next. `count`: of claude's spares."""
    for kind in kinds or (KINDS if backend == "claude" else KINDS[-1:]):
        if backend in WARM:
            found = prompt(service.apis[0][1], "[[mock:text]] the first", backend=backend, **kind)
            assert found["exit_code"] == 0, found
    if backend == "claude":
        spares_wait(service, count)
    elif backend in WARM:
        until(lambda: warm_state(service, backend).get("ready"), START_S)


def spares_wait(service: Service, count: int = SPARES) -> None:
    """Until so many wait, each kind of run that has come has its own, and those that were used are gone. Sooner seen
    than announced: a spare is started at a low priority, which is taken back when it is ready."""
    until(lambda: spares_ready(service) == count and _is_settled(service), START_S)


def _is_settled(service: Service) -> bool:
    """By what the last worker logs at debug; at another level it is taken for settled."""
    lacking, used, gone = 0, 0, 0
    for line in service.workers[-1].log.read_text(errors="replace").splitlines():
        if '"lacking": ' in line:
            lacking = int(json.loads(line)["lacking"])
        used += '"by a warm claude"' in line
        gone += "a warm claude ended after 1 runs" in line
    return not lacking and used <= gone


def spares_ready(service: Service) -> int:
    return sum(map(_is_ready, spares(service)))


def spares(service: Service) -> list[int]:
    """The processes of those that wait or are in use in the directory that they were started in."""
    found = []
    for path in service.folder.glob("host*/.clinvk/runs/warm_*/tmp/cc-socks/*.sock"):
        pid = int(path.stem)
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/cwd").startswith(str(path.parents[2])):
                found.append(pid)
    return found


def _is_ready(pid: int) -> bool:
    with contextlib.suppress(OSError):
        if os.geteuid() == 0:
            return os.getpriority(os.PRIO_PROCESS, pid) == 0
        return os.sched_getscheduler(pid) == os.SCHED_OTHER
    return False


def both(*backends: str, but: Sequence[tuple[str, str]] = ()) -> pytest.MarkDecorator:
    """Each backend in each of its ways; for tests with the fixture `way`."""
    every = [(way, name) for way in WAYS for name in backends or CLIS if way == "cold" or name in WARM]
    pairs = [pair for pair in every if pair not in but]
    return pytest.mark.parametrize(("way", "backend"), pairs, indirect=["way"], scope="module")


def only(way: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("way", [way], indirect=True, scope="module")
