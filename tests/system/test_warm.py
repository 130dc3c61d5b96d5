"""The warm way of the real codex beside its cold one: the same to callers, nothing left, nothing shared."""

import concurrent.futures
import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.run import Turn
from tests.fakes.mockllm import MockLLM
from tests.redis_ways import Certificates
from tests.system import clis
from tests.system.service import (
    START_S,
    Service,
    children,
    kill_pid,
    living,
    prompt,
    serving,
    stream,
    until,
)
from tests.system.specs import outcome_of, put_in_line

pytestmark = [pytest.mark.clis, pytest.mark.processes]

FREE = {"approval_mode": "none", "sandbox_mode": "full", "backend": "codex"}


@pytest.fixture(scope="module")
def warm() -> Iterator[tuple[Service, MockLLM]]:
    with clis.serving_clis("warm", ["codex"]) as made:
        yield made


def test_sessions_go_on_from_cold_to_warm_and_back():
    flags = '["--color="]'
    with clis.serving_clis("warm", ["codex"], heated=False, CLINVK_BACKENDS__CODEX__ALLOW_EXTRA_FLAGS=flags) as (
        service,
        _,
    ):
        base = service.apis[0][1]
        first = prompt(base, "[[mock:text n=2]] one", backend="codex")
        assert first["exit_code"] == 0, first
        until(lambda: clis.warm_state(service, "codex").get("ready"), START_S)
        url = f"{base}/api/v1/sessions/{first['session_id']}/resume"

        for number, (word, extra) in enumerate((("two", []), ("three", ["--color=never"]), ("four", [])), 2):
            answer = httpx.post(url, json={"prompt": f"[[mock:seen]] {word}", "extra": extra}, timeout=60).json()
            assert answer["exit_code"] == 0, answer
            users = [said.split()[-1] for said in json.loads(answer["output"])["users"]]
            assert [said for said in users if said in ("one", "two", "three", "four")] == [
                "one",
                "two",
                "three",
                "four",
            ][:number]
            assert answer["token_usage"]["output_tokens"] == 1
            assert answer["token_usage"]["input_tokens"] == 100
        seen = until(lambda: (found := clis.warm_state(service, "codex")).get("hits") == 2 and found)
        assert (seen["hits"], seen["misses"]) == (2, {"first": 1, "extra": 1})


@pytest.mark.parametrize("mode", ["workspace", "full"])
@pytest.mark.parametrize("git", [True, False], ids=["in a repository", "in none"])
def test_nothing_that_a_directory_configures_is_started_and_it_is_not_trusted_later(warm, tmp_path, git, mode):
    service, _ = warm
    base, configured = service.apis[0][1], service.folder / "host0/.codex/config.toml"
    folder, mark = service.folder / f"checkout-{git}-{mode}", tmp_path / "started"
    workdir = folder / "sub" if git else folder
    workdir.mkdir(parents=True)
    if git:
        subprocess.run(["/usr/bin/git", "init", "-q", str(folder)], check=True)
    (folder / ".codex").mkdir()
    server = json.dumps(["-c", f"touch {mark}; exit 1"])
    (folder / ".codex/config.toml").write_text(f'[mcp_servers.evil]\ncommand = "/bin/sh"\nargs = {server}\n')
    before = configured.read_bytes()
    fields = {"backend": "codex", "workdir": str(workdir), "approval_mode": "auto"}

    for sandbox in (mode, mode, "read-only"):
        until(lambda: clis.warm_state(service, "codex").get("ready"), START_S)
        answer = prompt(base, "[[mock:tool cmd=touch+made]] work", sandbox_mode=sandbox, **fields)
        assert answer["exit_code"] == 0, answer
        assert clis.ways(service)[answer["run_id"]] == "warm"

    assert (workdir / "made").exists()
    assert not mark.exists()
    assert configured.read_bytes() == before


@pytest.mark.parametrize("setting", ['sandbox_mode = "workspace-write"', 'default_permissions = ":workspace"'])
def test_nor_is_one_that_the_operators_own_default_lets_a_run_write_in(tmp_path, setting):
    with clis.serving_clis("warm", ["codex"], heated=False) as (service, _):
        base, configured = service.apis[0][1], service.folder / "host0/.codex/config.toml"
        configured.write_text(f"{setting}\n{configured.read_text()}")
        clis.heat(service, "codex")
        before, mark = configured.read_bytes(), tmp_path / "started"
        workdir = service.folder / "checkout"
        (workdir / ".codex").mkdir(parents=True)
        subprocess.run(["/usr/bin/git", "init", "-q", str(workdir)], check=True)
        server = json.dumps(["-c", f"touch {mark}; exit 1"])
        (workdir / ".codex/config.toml").write_text(f'[mcp_servers.evil]\ncommand = "/bin/sh"\nargs = {server}\n')

        for _ in range(2):
            answer = prompt(base, "[[mock:tool cmd=touch+made]] work", backend="codex", workdir=str(workdir))
            assert answer["exit_code"] == 0, answer
            assert clis.ways(service)[answer["run_id"]] == "warm"
            until(lambda: clis.warm_state(service, "codex").get("ready"), START_S)

        assert (workdir / "made").exists()
        assert not mark.exists()
        assert configured.read_bytes() == before


def test_below_a_directory_that_the_operator_trusts_a_run_goes_cold(tmp_path):
    with clis.serving_clis("warm", ["codex"], heated=False) as (service, _):
        base, configured = service.apis[0][1], service.folder / "host0/.codex/config.toml"
        trusted = service.folder / "trusted"
        (trusted / "sub").mkdir(parents=True)
        subprocess.run(["/usr/bin/git", "init", "-q", str(trusted)], check=True)
        (trusted / ".codex").mkdir()
        mark = tmp_path / "started"
        server = json.dumps(["-c", f"touch {mark}; exit 1"])
        (trusted / ".codex/config.toml").write_text(f'[mcp_servers.theirs]\ncommand = "/bin/sh"\nargs = {server}\n')
        configured.write_text(
            configured.read_text() + f'\n[projects.{json.dumps(str(trusted))}]\ntrust_level = "trusted"\n'
        )
        clis.heat(service, "codex")

        answer = prompt(
            base, "[[mock:text]] work", backend="codex", workdir=str(trusted / "sub"), sandbox_mode="workspace"
        )

        assert answer["exit_code"] == 0, answer
        assert clis.ways(service)[answer["run_id"]] == "refused"
        assert mark.exists()  # as codex does by itself


def test_a_long_answer_that_may_be_is_passed_on_whole(warm):
    """The CLI says it in pieces, and then once more in one line."""
    service, _ = warm
    until(lambda: clis.warm_state(service, "codex").get("ready"), START_S)

    answer = prompt(service.apis[0][1], "[[mock:text n=14 size=1000000]] go on", backend="codex", ephemeral=True)

    assert (answer["error"], answer["status"]) == ("", 200)
    assert 14_000_000 <= len(answer["output"]) < 15_000_000
    assert clis.ways(service)[answer["run_id"]] == "warm"


def app_servers(service: Service) -> list[int]:
    return [pid for pid in living(f"HOME={service.folder}/host0") if b"\0app-server\0" in clis.cmdline(pid)]


def test_a_cancel_kills_a_tool_to_its_last_grandchild_and_the_process_goes_on(warm):
    service, _ = warm
    base = service.apis[0][1]
    (host,) = app_servers(service)
    command = "(setsid+sleep+31771+&);sleep+0.4;(env+-i+/usr/bin/setsid+/bin/sh+-c+'sleep+31771'+&);sleep+31771"
    following = stream(base, f"[[mock:tool cmd={command}]] run", **FREE)
    run_id = following.run_id
    until(lambda: len(clis.sleeping(service, 31771)) == 3)

    httpx.delete(f"{base}/api/v1/runs/{run_id}", timeout=30)

    assert following.rest()[-1]["content"]["code"] == "cancelled"
    assert clis.sleeping(service, 31771) == []
    assert app_servers(service) == [host]


def test_what_a_run_left_in_the_background_ends_with_it(warm):
    service, _ = warm

    events = stream(service.apis[0][1], "[[mock:tool cmd=sleep+31772+&+sleep+0.3]] run", **FREE).rest()

    assert events[-1]["type"] == "done"
    assert clis.sleeping(service, 31772) == []


def test_tools_see_their_runs_directory_and_nothing_of_the_process(warm):
    service, mock = warm

    stream(service.apis[0][1], "[[mock:tool cmd=env]] run", **FREE).rest()

    env = json.dumps(mock.requests[-1].body["input"][-1])
    assert "/runs/run_" in env
    assert "MOCK_KEY" not in env
    assert "CLINVK_INSTANCE" not in env


def test_threads_at_once_each_have_their_own_instructions_model_sandbox_and_variables(warm):
    service, mock = warm
    base = service.apis[0][1]
    before = len(mock.requests)
    models = ("gpt-6-sol", "gpt-6-luna")
    go = service.folder / "go"

    def one(number: int) -> dict[str, Any]:
        command = f"touch+made-{number};ls;echo+RUN=$CLINVK_RUN=$TMPDIR;until+test+-e+{go};do+sleep+0.1;done"
        return prompt(
            base,
            f"[[mock:tool cmd={command}]] NUMBER-{number}-",
            backend="codex",
            system_prompt=f"SYSTEM-{number}-",
            model=models[number % 2],
            approval_mode="none",
            sandbox_mode=("full", "read-only")[number // 2 % 2],
        )

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = pool.map(one, range(8))
        try:
            until(lambda: len(mock.requests) >= before + 3)
        finally:
            go.touch()
        found = list(answers)

    ways = clis.ways(service)
    assert {ways[run["run_id"]] for run in found} == {"warm"}
    assert len(app_servers(service)) == 1
    asked = mock.requests[before:]
    assert not any(request.answered for request in asked[:3]), "they were not at once"
    for number, run in enumerate(found):
        assert run["exit_code"] == 0, run
        mine = [request for request in asked if f"NUMBER-{number}-" in json.dumps(request.body["input"])]
        assert len(mine) == 2
        for request in mine:
            assert f"SYSTEM-{number}-" in request.system
            assert [n for n in range(8) if f"SYSTEM-{n}-" in json.dumps(request.body)] == [number]
            assert request.body["model"] == models[number % 2]
        output = json.dumps(mine[1].body["input"][-1])
        assert f"RUN={run['run_id']}=" in output, output
        assert f"/runs/{run['run_id']}/tmp" in output
        listed = {n for n in range(8) if f"made-{n}\\n" in output}
        assert listed == ({number} if number // 2 % 2 == 0 else set()), output


def talked(service: Service, mock: MockLLM, canary: str) -> None:
    """A run of tenant a with a history that says so."""
    history = (Turn(role="user", text=canary), Turn(role="assistant", text=canary))
    run_id = put_in_line(service, "codex", "[[mock:text]] and now?", tenant="a", history=history)
    until(lambda: outcome_of(service, run_id), 60)
    assert canary in json.dumps(mock.requests[-1].body)
    assert clis.ways(service)[run_id] == "warm"


@pytest.mark.parametrize("scope", ["tenant", "host"])
def test_what_one_tenant_said_reaches_no_other(scope):
    keys = '[{"key": "ka", "name": "a"}, {"key": "kb", "name": "b"}]'
    config = {"CLINVK_SERVER__API_KEYS": keys, "CLINVK_BACKENDS__CODEX__WARM__SCOPE": scope}
    with clis.serving_clis("warm", ["codex"], heated=False, **config) as (service, mock):
        base = service.apis[0][1]

        def ask(key: str, text: str, **fields: Any) -> dict[str, Any]:
            body = {"backend": "codex", "prompt": text, **fields}
            answer = httpx.post(base + "/api/v1/prompt", json=body, headers={"x-api-key": key}, timeout=60)
            assert answer.json().get("exit_code") == 0, answer.text
            return dict(answer.json())

        def warmly(key: str) -> bool:
            run_id = ask(key, "[[mock:text]] heat")["run_id"]
            return clis.ways(service)[run_id] == "warm"

        for key in ("ka", "kb"):
            until(lambda key=key: warmly(key), START_S)
        for number in range(8):
            ask("ka", f"[[mock:text]] CANARY-{number}", ephemeral=number % 2 == 0, system_prompt="CANARY-SYSTEM")
            talked(service, mock, f"CANARY-{number}")
        ask("ka", "[[mock:tool cmd=echo+CANARY+>+kept]] run", sandbox_mode="full", approval_mode="none")
        before = len(mock.requests)
        mine = [
            ask("kb", "[[mock:tool cmd=ls+-a;env]] look", sandbox_mode="full", approval_mode="none") for _ in range(8)
        ]
        until(lambda: len(app_servers(service)) == (2 if scope == "tenant" else 1))

        assert not any("CANARY" in json.dumps(request.body) for request in mock.requests[before:])
        sessions = service.folder / "host0" / ".clinvk" / "sessions"
        for found in mine:
            files = [path for path in (sessions / found["session_id"]).rglob("*") if path.is_file()]
            assert not any(b"CANARY" in path.read_bytes() or path.name == "kept" for path in files)


def test_one_that_is_killed_in_the_middle_of_two_runs_fails_both_and_the_next_is_served():
    with clis.serving_clis("warm", ["codex"]) as (service, _):
        base = service.apis[0][1]
        (host,) = app_servers(service)
        following = [stream(base, "[[mock:text n=400 ms=40]] go", backend="codex") for _ in range(2)]
        for one in following:
            while one.next()["type"] != "message":
                pass
        kill_pid(host)

        for one in following:
            last = one.rest()[-1]
            assert (last["type"], last["content"]["code"]) == ("error", "backend_error")
            assert "in the middle" in last["content"]["message"]
        assert prompt(base, "[[mock:text n=2]] next", backend="codex")["output"] == "tok0 tok1 "


def test_a_worker_that_is_killed_leaves_no_warm_process():
    with clis.serving_clis("warm", ["codex"]) as (service, _):
        base = service.apis[0][1]
        following = stream(base, "[[mock:tool cmd=sleep+31773]] run", **FREE)
        following.run_id  # noqa: B018  # waits for the stream to be open
        until(lambda: clis.sleeping(service, 31773))
        begun = time.monotonic()
        os.kill(service.celery_of(service.workers[0]), signal.SIGKILL)

        until(lambda: not clis.sleeping(service, 31773) and not app_servers(service), 5)
        assert time.monotonic() - begun < 5
        for pid in [service.workers[0].pid, *children(service.workers[0].pid)]:
            kill_pid(pid)


def test_a_worker_that_is_told_to_end_takes_its_warm_processes_with_it():
    with clis.serving_clis("warm", ["codex"]) as (service, _):
        assert app_servers(service)
        service.workers[0].send(signal.SIGTERM)
        service.workers[0].wait(20)

        assert not app_servers(service)
        assert not list((service.folder / "host0" / ".clinvk" / "runs").iterdir())


def test_authorities_are_looked_up_by_their_hashed_names(tmp_path):
    certificates = Certificates(tmp_path)
    folder = tmp_path / "hashed"
    folder.mkdir()
    (folder / "ca.pem").write_bytes(Path(certificates["ca.pem"]).read_bytes())
    subprocess.run(["openssl", "rehash", str(folder)], check=True, capture_output=True, timeout=30)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates["server.pem"], certificates["server.key"])
    clis.command("codex")
    with MockLLM(tls) as mock, serving(workers=0) as service:
        clis.install(service, "codex", mock.url, "warm", SSL_CERT_FILE=os.devnull, SSL_CERT_DIR=str(folder))
        service.worker()
        clis.heat(service, "codex")
        assert prompt(service.apis[0][1], "[[mock:text n=3]]", backend="codex")["output"] == "tok0 tok1 tok2 "
        until(lambda: clis.warm_state(service, "codex").get("hits"))
