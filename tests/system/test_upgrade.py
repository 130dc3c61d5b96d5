"""Old and new side by side on one Redis, as during an upgrade: another version of the code beside today's.

The other one is a copy with additions on every wire: fields of specs, outcomes, flows and announcements, an event of an
unknown type, a field and other bytes in the scripts.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.system.service import CLINVK, Proc, Service, ended, free_port, prompt, run, stream, submit, until, whole

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
# File, what stands there, what is put behind it.
ADDITIONS = (
    (
        "shared/run.py",
        "    id: str\n    tenant: str\n    backend: str\n    prompt: str\n",
        "    of_later: list[int] = msgspec.field(default_factory=lambda: [7])\n",
    ),
    (
        "shared/run.py",
        "    exit_code: int | None = None\n",
        "    of_later: int = msgspec.field(default_factory=lambda: 7)\n",
    ),
    ("shared/flow.py", '    kind: Literal["parallel", "compare", "chain"]\n', "    of_later: int = 7\n"),
    (
        "shared/host.py",
        "    started_at: float\n    slots: int\n",
        "    of_later: int = msgspec.field(default_factory=lambda: 7)\n",
    ),
    (
        "shared/event.py",
        "Content = Init |",
        " Dream |",
    ),
    ("shared/event.py", '    Init: "init",\n', '    Dream: "dream",\n'),
    ("shared/event.py", "class Message(msgspec", None),
    ("worker/backends/echo.py", 'case "result":\n', '                    events.append(Dream("of a later version"))\n'),
    ("worker/backends/echo.py", "from shared.event import ", "Dream, "),
    (
        "shared/store/lua/lib/6_run.lua",
        "  local run = P .. 'run:' .. id\n",
        "  redis.call('HSET', run, 'of_later', 7)\n",
    ),
)
DREAM = "class Dream(msgspec.Struct, frozen=True):\n    text: str\n\n\n"


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("later")
    for side in ("api", "worker", "shared"):
        shutil.copytree(ROOT / side, folder / side, ignore=shutil.ignore_patterns("__pycache__"))
    for name, anchor, addition in ADDITIONS:
        path = folder / name
        text = path.read_text()
        assert anchor in text, f"{name} has changed: {anchor!r}"
        if addition is None:
            text = text.replace("class Message(msgspec", DREAM + "class Message(msgspec", 1)
        elif name.endswith("6_run.lua"):
            at = text.index("local function create(")
            text = text[:at] + text[at:].replace(anchor, anchor + addition, 1)
        else:
            text = text.replace(anchor, anchor + addition, 1)
        path.write_text(text)
    return folder


class Later(Proc):
    """A command of the other version: its code is found first, also by the processes below."""

    def __init__(self, folder: Path, args: list[str], env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [CLINVK, *args],
                cwd=folder,
                env={**env, "PYTHONPATH": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.pid = self.process.pid


def later_api(service: Service, folder: Path) -> str:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    proc = Later(folder, ["serve", "--port", str(port)], service.env(), service.folder / "later-api.log")
    service.apis.append((proc, base))

    def up() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(base + "/livez").status_code == 200
        return False

    until(lambda: up() or not proc.alive)
    assert proc.alive, proc.log.read_text()
    return base


def later_worker(service: Service, folder: Path) -> None:
    proc = Later(folder, ["worker", "--name", "later"], service.env(home="later"), service.folder / "later-worker.log")
    service.workers.append(proc)
    client = service.redis.client()
    until(lambda: any(b'"later"' in (client.get(k) or b"") for k in client.keys("clinvk:instance:*")) or not proc.alive)
    client.close()
    assert proc.alive, proc.log.read_text()


@contextlib.contextmanager
def mixed(folder: Path, *, apis: str, workers: str) -> Iterator[tuple[Service, list[str]]]:
    """`old` or `later` of each, several with a blank between them."""
    service = Service()
    try:
        for kind in apis.split():
            service.api() if kind == "old" else later_api(service, folder)
        for kind in workers.split():
            service.worker() if kind == "old" else later_worker(service, folder)
        yield service, [base for _, base in service.apis]
    except BaseException:
        print(service.logs())
        raise
    finally:
        service.close()


def everything_works(base: str) -> None:
    words = " ".join(f"w{i}" for i in range(10))
    assert prompt(base, "hello")["output"] == "hello"
    assert prompt(base, "x", "--exit-code=3")["exit_code"] == 3
    assert whole(stream(base, words, "--delay-ms=10").rest()) == words
    run_id = submit(base, "stay", "--hang")
    until(lambda: run(base, run_id)["status"] == "running")
    httpx.delete(f"{base}/api/v1/runs/{run_id}")
    assert ended(base, run_id)["status"] == "cancelled"
    body = {"model": "echo", "messages": [{"role": "user", "content": words}], "stream": True}
    chat = httpx.post(base + "/openai/v1/chat/completions", json=body, timeout=30).text
    assert chat.rstrip().endswith("data: [DONE]")
    assert "of a later version" not in chat
    message = {"model": "echo", "max_tokens": 9, "messages": [{"role": "user", "content": words}]}
    assert httpx.post(base + "/anthropic/v1/messages", json=message, timeout=30).json()["content"][0]["text"] == words
    steps = [{"backend": "echo", "prompt": "one"}, {"backend": "echo", "prompt": "{{previous}} two"}]
    chain = httpx.post(base + "/api/v1/chain", json={"steps": steps}, timeout=30).json()
    assert [result["output"] for result in chain["results"]] == ["one", "one two"]
    first = prompt(base, "first turn")["session_id"]
    again = httpx.post(f"{base}/api/v1/sessions/{first}/resume", json={"prompt": "second turn"}, timeout=30).json()
    assert (again["session_id"], again["output"]) == (first, "second turn")
    assert httpx.get(f"{base}/api/v1/sessions/{first}").json()["turn_count"] == 2
    assert httpx.get(base + "/api/v1/workers").json()["workers"]


def of_later(service: Service) -> set[str]:
    """Which of the other version's marks stand in Redis."""
    client = service.redis.client()
    found = set()
    for name in client.keys("clinvk:run:run_*"):
        record = client.hgetall(name)
        found |= {"script"} if b"of_later" in record else set()
        found |= {field for field in ("spec", "outcome") if b"of_later" in record.get(field.encode(), b"")}
    for name in client.keys("clinvk:events:*"):
        found |= {"event"} if any(b'"dream"' in row[1][b"e"] for row in client.xrange(name)) else set()
    client.close()
    return found


def test_a_later_api_works_with_todays_worker(later):
    with mixed(later, apis="later", workers="old") as (service, (base,)):
        everything_works(base)

        assert {"script", "spec"} <= of_later(service)
        assert "event" not in of_later(service)


def test_todays_api_works_with_a_later_worker(later):
    with mixed(later, apis="old", workers="later") as (service, (base,)):
        everything_works(base)

        assert {"outcome", "event"} <= of_later(service)


def test_both_apis_and_both_workers_share_one_redis_and_each_follows_the_others_runs(later):
    with mixed(later, apis="old later", workers="old later") as (_, (old, new)):
        for _ in range(2):
            everything_works(old)
            everything_works(new)

        words = " ".join(f"w{i}" for i in range(20))
        run_id = submit(old, words, "--delay-ms=20")
        url = f"{new}/api/v1/runs/{run_id}/events?after=0"
        events = httpx.get(url, headers={"accept": "application/x-ndjson"}, timeout=30).text.splitlines()
        assert '"type":"done"' in [line for line in events if line][-1]
