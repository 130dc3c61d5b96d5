"""A resident gemini that many runs share: what they must not see of each other, and what becomes of them when it goes."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.mockllm import MockLLM
from tests.system import clis
from tests.system.service import START_S, Service, Stream, prompt, run, serving, stream, until

pytestmark = [pytest.mark.clis, pytest.mark.processes]


class World:
    def __init__(self, service: Service, mock: MockLLM) -> None:
        self.service = service
        self.mock = mock
        self.base = service.apis[0][1]
        self.home = service.folder / "host0"

    def ask(self, text: str, **fields: Any) -> dict[str, Any]:
        return prompt(self.base, text, **{"backend": "gemini", "ephemeral": True, **fields})

    def told(self, text: str, **fields: Any) -> dict[str, Any]:
        """What the model was sent."""
        found = self.ask(text, **fields)
        assert found["exit_code"] == 0, found
        return dict(json.loads(found["output"]))

    def state(self) -> dict[str, Any]:
        return clis.warm_state(self.service, "gemini")

    def counted(self, what: str, reason: str | None = None) -> int:
        """What it announces is as old as its last beat."""
        found = self.state()[what]
        return int(found if reason is None else found.get(reason, 0))

    def residents(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ours = str(self.service.folder).encode() in (path / "environ").read_bytes()
                if ours and b"--acp" in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
        return found

    def ready(self) -> None:
        """Warm again, whatever has happened."""
        assert self.ask("[[mock:text]] warm up")["exit_code"] == 0
        until(lambda: self.state().get("ready"), START_S)

    def holding(self, words: str) -> list[Path]:
        return clis.holding(self.home, words, 10_000_000)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    limits = {"CLINVK_UNIFIED_FLAGS__COMMAND_TIMEOUT_SECS": "60"}
    with clis.serving_clis("warm", ("gemini",), **limits) as (service, mock):
        made = World(service, mock)
        yield made
        for worker in service.workers:
            worker.send(signal.SIGTERM)
            worker.wait(20)
        assert not made.residents()


def test_runs_at_once_each_have_their_own_system_prompt_and_history(world):
    systems = ("SYSTEM-EVEN", "SYSTEM-ODD")
    for number, system in enumerate(systems * 2):  # the first goes cold, at the second a process is started
        world.ask("[[mock:text]] warm up", system_prompt=system)
        until(lambda number=number: world.counted("ready") >= max(number, 1), START_S)

    def one(number: int) -> dict[str, Any]:
        body = {
            "model": "gemini",
            "messages": [
                {"role": "system", "content": systems[number % 2]},
                {"role": "user", "content": f"EARLIER-{number}-END"},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": f"[[mock:seen]] NOW-{number}-END"},
            ],
        }
        answer = httpx.post(world.base + "/openai/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return dict(json.loads(answer.json()["choices"][0]["message"]["content"]))

    before = world.counted("hits")
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        told = list(pool.map(one, range(12)))

    for number, seen in enumerate(told):
        assert seen["system"].strip() == systems[number % 2]
        assert [text.rpartition("\n")[2] for text in seen["users"]] == [
            f"EARLIER-{number}-END",
            f"[[mock:seen]] NOW-{number}-END",
        ]
    until(lambda: world.counted("hits") >= before + 12)
    assert not {"leftovers", "crashed", "hung"} & set(world.state()["ends"])


def test_a_cancelled_run_harms_no_other_on_the_same_process(world):
    world.ready()
    (resident,) = [
        pid for pid in world.residents() if b"GEMINI_SYSTEM_MD" not in Path(f"/proc/{pid}/environ").read_bytes()
    ]
    staying = stream(world.base, "[[mock:text n=60 ms=50]] stay", backend="gemini", ephemeral=True)
    going = stream(world.base, "[[mock:text n=600 ms=50]] go", backend="gemini", ephemeral=True)
    for following in (staying, going):
        while following.next()["type"] != "message":
            pass

    begun = time.monotonic()
    httpx.delete(f"{world.base}/api/v1/runs/{going.run_id}", timeout=30)

    assert going.rest()[-1]["content"]["code"] == "cancelled"
    assert time.monotonic() - begun < 2
    assert staying.rest()[-1]["type"] == "done"
    assert resident in world.residents()


def test_a_killed_process_fails_its_runs_truly_and_the_next_is_served(world):
    world.ready()
    following = [stream(world.base, "[[mock:text n=600 ms=50]] x", backend="gemini", ephemeral=True) for _ in range(2)]
    for one in following:
        while one.next()["type"] != "message":
            pass

    for pid in world.residents():
        os.kill(pid, signal.SIGKILL)

    for one in following:
        last = one.rest()[-1]["content"]
        assert (last["code"], last["details"]["cause"]) == ("backend_error", "crashed")
    assert world.ask("[[mock:text]] next")["exit_code"] == 0
    until(lambda: world.counted("ends", "crashed") >= 1)
    world.ready()


def test_a_process_that_hangs_is_killed_by_the_first_run_that_must_end(world):
    world.ready()
    following = stream(world.base, "[[mock:text n=600 ms=50]] x", backend="gemini", ephemeral=True)
    while following.next()["type"] != "message":
        pass
    run_id, stopped = following.run_id, world.residents()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)

    httpx.delete(f"{world.base}/api/v1/runs/{run_id}", timeout=30)

    assert following.rest()[-1]["content"]["code"] == "cancelled"
    until(lambda: set(stopped) - set(world.residents()))  # another may be there already
    for pid in set(stopped) & set(world.residents()):
        os.kill(pid, signal.SIGCONT)
    assert run(world.base, run_id)["status"] == "cancelled"
    world.ready()


@pytest.mark.parametrize("directive", ["text", "status code=429", "status code=400", "eof"])
def test_nothing_of_a_run_stays_on_disk(world, directive):
    world.ready()
    before = world.counted("hits")

    world.ask(f"[[mock:{directive}]] SECRET-WORDS")

    until(lambda: world.counted("hits") > before)
    assert not world.holding("SECRET-WORDS")
    kept = [names for base, *names in os.walk(world.home) if base.endswith((".gemini/tmp", ".gemini/history"))]
    assert not [name for name in itertools.chain(*itertools.chain(*kept)) if name.startswith("p-")]


def test_a_cancelled_run_leaves_nothing_behind_the_next(world):
    world.ready()
    following = stream(world.base, "[[mock:text n=600 ms=20]] SECRET-WORDS", backend="gemini", ephemeral=True)
    while following.next()["type"] != "message":
        pass
    httpx.delete(f"{world.base}/api/v1/runs/{following.run_id}", timeout=30)
    following.rest()

    assert world.ask("[[mock:text]] next")["exit_code"] == 0

    assert not world.holding("SECRET-WORDS")


@pytest.mark.parametrize("mode", ["default", "always", "auto"])
def test_no_command_runs_and_the_tools_are_those_of_one_process_a_run(world, tmp_path, mode):
    os.chmod(tmp_path, 0o777)
    fields = {"approval_mode": mode, "workdir": str(tmp_path)}
    asked = f"[[mock:tool cmd=touch+{tmp_path}/written]] run"
    found: dict[str, Any] = {}

    def warmly() -> bool:
        found.update(world.ask(asked, **fields))
        return clis.ways(world.service)[found["run_id"]] == "warm"

    until(warmly, 60)  # the first goes cold: there is no process of its kind yet

    assert found["exit_code"] == 0, found
    assert not list(tmp_path.iterdir())
    (tools,) = world.mock.requests[-1].body["tools"]
    offered = {tool["name"] for tool in tools["functionDeclarations"]}
    assert "run_shell_command" not in offered
    assert {"read_file", "glob", "grep_search", "google_web_search"} <= offered
    assert ("write_file" in offered) == (mode == "auto")


def test_a_directory_that_would_configure_the_process_is_not_for_it(world, tmp_path):
    os.chmod(tmp_path, 0o777)
    (tmp_path / ".env").write_text("GEMINI_MODEL=other\n")
    world.ready()
    before = world.counted("misses", "workdir")

    assert world.ask("[[mock:text]] hi", workdir=str(tmp_path))["exit_code"] == 0

    until(lambda: world.counted("misses", "workdir") > before)


def test_a_session_that_began_warm_goes_on(world):
    world.ready()
    before = world.counted("hits")
    first = world.ask("[[mock:text n=3]] remember the TEAPOT", ephemeral=False)
    until(lambda: world.counted("hits") > before)

    again = httpx.post(
        f"{world.base}/api/v1/sessions/{first['session_id']}/resume",
        json={"prompt": "[[mock:seen]] and now?"},
        timeout=60,
    ).json()

    assert any("TEAPOT" in text for text in json.loads(again["output"])["users"]), again


def test_what_a_tenant_says_is_nowhere_in_what_another_is_answered_from():
    keys = "[{key: ka, name: a}, {key: kb, name: b}]"
    config = {"CLINVK_SERVER__API_KEYS": keys, "CLINVK_BACKENDS__GEMINI__WARM__SCOPE": "host"}
    config["CLINVK_LOG__LEVEL"] = "debug"  # see `clis.ways`
    clis.command("gemini")
    with MockLLM() as mock, serving(workers=0, **config) as service:
        clis.install(service, "gemini", mock.url, "warm")
        service.worker()
        base = service.apis[0][1]

        def ask(key: str, text: str) -> dict[str, Any]:
            body = {"backend": "gemini", "prompt": text, "ephemeral": True}
            answer = httpx.post(
                base + "/api/v1/prompt", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60
            )
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

        def warmly() -> bool:
            run_id = ask("ka", "[[mock:text]] CANARY-OF-A")["run_id"]
            return clis.ways(service)[run_id] == "warm"

        until(warmly, START_S)
        before = len(mock.requests)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            turns = [("ka", "CANARY-OF-A"), ("kb", "plain words of b")] * 6
            list(pool.map(lambda turn: ask(turn[0], "[[mock:text]] " + turn[1]), turns))

        sent = [json.dumps(request.body) for request in mock.requests[before:]]
        assert sum("plain words of b" in body for body in sent) == 6
        for body in sent:
            assert ("CANARY-OF-A" in body) == ("plain words of b" not in body)
        assert len(World(service, mock).residents()) == 1
        assert not World(service, mock).holding("CANARY")


@pytest.mark.parametrize("scope", ["host", "tenant"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_tenant_reads_nothing_of_anothers_chat_while_that_one_talks(tmp_path, scope, shared):
    os.chmod(tmp_path, 0o777)
    keys = "[{key: ka, name: a}, {key: kb, name: b}]"
    config = {"CLINVK_SERVER__API_KEYS": keys, "CLINVK_BACKENDS__GEMINI__WARM__SCOPE": scope}
    where = {"workdir": str(tmp_path)} if shared else {}
    with clis.serving_clis("warm", ("gemini",), heated=False, **config) as (service, mock):
        base = service.apis[0][1]
        world = World(service, mock)

        def ask(key: str, text: str, **fields: Any) -> str:
            """Which way it went."""
            body = {"backend": "gemini", "prompt": text, "ephemeral": True, **where, **fields}
            answer = httpx.post(base + "/api/v1/prompt", json=body, headers={"x-api-key": key}, timeout=60)
            assert answer.json().get("exit_code") == 0, answer.text
            return clis.ways(service)[answer.json()["run_id"]]

        for key in ("ka", "kb"):
            ready = len(world.residents())
            if ask(key, "[[mock:text]] warm up") != "warm":
                until(lambda ready=ready: len(world.residents()) > ready, START_S)
                until(lambda key=key: ask(key, "[[mock:text]] warm up") == "warm", START_S)
        body = {"backend": "gemini", "prompt": "[[mock:text n=2000 ms=30]] CANARY-OF-A", "output_format": "stream-json"}
        talking = Stream("POST", base + "/api/v1/prompt", json=body | where, headers={"x-api-key": "ka"})
        run_id = talking.run_id
        while talking.next()["type"] != "message":
            pass
        assert clis.ways(service)[run_id] == "warm"
        chats = [path for path in world.holding("CANARY-OF-A") if path.parent.name == "chats"]
        assert chats
        before = len(mock.requests)

        for chat in chats:
            for call in (
                f"tool=read_file file_path={chat}",
                f"tool=list_directory dir_path={chat.parent}",
                f"tool=grep_search pattern=NARY-OF-A dir_path={chat.parents[1]}",
            ):
                assert ask("kb", f"[[mock:call {call}]] look") == "warm"
        sent = [request for request in mock.requests[before:] if request.answered]

        assert len(sent) == 3 * len(chats)
        assert not [request.body for request in sent if "CANARY-OF-A" in json.dumps(request.body)]
        listed = json.dumps(sent[1].body["contents"][-1])
        assert chats[0].name not in listed, listed
        httpx.delete(f"{base}/api/v1/runs/{run_id}", headers={"x-api-key": "ka"}, timeout=30)
        talking.rest()


def test_it_is_replaced_after_so_many_runs_and_none_of_them_notices():
    config = {"CLINVK_BACKENDS__GEMINI__WARM__RECYCLE_AFTER": "4"}
    with clis.serving_clis("warm", ("gemini",), **config) as (service, mock):
        made = World(service, mock)
        for number in range(14):
            assert made.told(f"[[mock:seen]] NUMBER-{number}-")["tail"].endswith(f"NUMBER-{number}-")

        until(lambda: made.counted("ends", "recycle") >= 1)
        assert set(made.state()["ends"]) == {"recycle"}
        until(lambda: len(made.residents()) == made.counted("kept"))
