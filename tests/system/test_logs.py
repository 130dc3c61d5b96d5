"""Logs of the real processes: every line an object that says what it is about, and never a word of a prompt."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.system.service import CLINVK, START_S, Service, free_port, kill_pid, prompt, serving, stream, until

CANARY = "xyzzy-canary"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

pytestmark = pytest.mark.redis

CLAUDE = json.dumps([sys.executable, "-I", "-S", str(Path(__file__).parent / "sdks" / "fake_claude.py")])


APPSERVER = Path(__file__).parents[1] / "fakes" / "appserver.py"


def rows(service: Service) -> list[dict]:
    found = []
    for path in sorted(service.folder.glob("*.log")):
        for line in path.read_text().splitlines():
            row = json.loads(line)  # every one of them
            assert {"time", "level", "process", "pid", "logger", "message"} <= row.keys(), row
            found.append({**row, "file": path.name})
    return found


def ask_in_every_way(base: str) -> None:
    """Each dialect whole, as a stream and wrong; the words of the prompt are the canary's throughout."""
    chat = {"model": "claude", "messages": [{"role": "system", "content": CANARY}, {"role": "user", "content": CANARY}]}
    message = {"model": "claude", "max_tokens": 9, "system": CANARY, "messages": [{"role": "user", "content": CANARY}]}
    answer = {"model": "claude", "input": CANARY, "instructions": CANARY}
    native = {"backend": "echo", "prompt": CANARY, "metadata": {"note": CANARY}}
    bad = {"prompt": CANARY, "backend": CANARY, CANARY: CANARY, "model": 7, "messages": CANARY, "input": 7}
    paths = {
        "/api/v1/prompt": native,
        "/openai/v1/chat/completions": chat,
        "/openai/v1/responses": answer,
        "/anthropic/v1/messages": message,
    }
    with httpx.Client(base_url=base, timeout=60) as client:
        for path, body in paths.items():
            assert client.post(path, json=body).status_code == 200, path
            client.post(path, json={**body, "stream": True})
            assert client.post(path, json=bad).status_code == 400
            assert client.post(path, content=f'{{"prompt": "{CANARY}').status_code == 400
        for body in (
            {"output_format": "stream-json"},
            {"extra": ["--exit-code=3"]},
            {"backend": "claude", "system_prompt": CANARY},
            {"backend": "claude", "system_prompt": CANARY, "dry_run": True},
            {"backend": "claude", "prompt": f"{CANARY} [[fake:die n=3]]"},
            {"backend": "claude", "prompt": f"{CANARY} [[fake:fail status=429]]"},
            {"backend": "claude", "prompt": f"{CANARY} [[fake:hang]]", "timeout_secs": 0.2},
            {"system_prompt": CANARY},
            {"timeout_secs": 0.2, "extra": ["--hang"]},
        ):
            client.post("/api/v1/prompt", json={**native, **body})
        tasks = [{**native}, {**native, "extra": ["--exit-code=1"]}]
        assert client.post("/api/v1/parallel", json={"tasks": tasks}).status_code == 200
        assert client.post("/api/v1/chain", json={"steps": [native, {**native, "prompt": "{{previous}}"}]}).is_success
        assert client.post("/api/v1/compare", json={"prompt": CANARY, "backends": ["echo"]}).status_code == 200
        session = client.get("/api/v1/sessions").json()["sessions"][-1]["id"]
        assert client.post(f"/api/v1/sessions/{session}/resume", json={"prompt": CANARY}).status_code == 200


def test_no_log_holds_a_word_of_a_prompt_even_at_debug():
    with serving(CLINVK_LOG__LEVEL="debug", CLINVK_BACKENDS__CLAUDE__COMMAND=CLAUDE) as service:
        ask_in_every_way(service.apis[0][1])
        for process in (service.workers[0], service.apis[0][0]):
            process.send(signal.SIGTERM)
            process.wait()

        told = rows(service)

    assert not [row for row in told if CANARY in json.dumps(row)]
    assert {row["process"] for row in told} >= {"api", "worker"}
    assert [row for row in told if row["logger"].startswith("celery")]
    assert any("Warm shutdown" in row["message"] for row in told)


def test_what_a_warm_process_printed_of_a_prompt_before_it_died_is_in_no_log_and_its_end_is_of_no_run(tmp_path):
    shutil.copy(APPSERVER, tmp_path)
    (tmp_path / "package.json").write_text('{"name": "@openai/codex", "version": "0.169.0"}')
    command = json.dumps([sys.executable, "-S", "-E", str(tmp_path / APPSERVER.name)])
    with serving(CLINVK_LOG__LEVEL="debug", CLINVK_BACKENDS__CODEX__COMMAND=command) as service:
        base = service.apis[0][1]

        def died() -> bool:
            asked = {"backend": "codex", "prompt": f"blurt {CANARY}", "ephemeral": True}
            return "exit_code" in httpx.post(base + "/api/v1/prompt", json=asked, timeout=30).json() and ended() != []

        def ended() -> list[dict]:
            return [row for row in rows(service) if "crashed (exit code 101)" in row["message"]]

        assert until(died, START_S)
        told = rows(service)

        assert {"run_id", "tenant", "trace_id", "request_id"}.isdisjoint(ended()[0])

    assert not [row for row in told if CANARY in json.dumps(row)]


def test_lines_of_all_processes_say_which_request_run_tenant_and_trace_they_are_about():
    with serving(CLINVK_API_KEYS="k-1234", CLINVK_LOG__LEVEL="debug") as service:
        base = service.apis[0][1]
        headers = {"x-api-key": "k-1234", "x-request-id": "my-request", "traceparent": f"00-{TRACE}-{'1' * 16}-01"}
        answer = httpx.post(
            base + "/api/v1/prompt", json={"backend": "echo", "prompt": "hi"}, headers=headers, timeout=30
        )
        run_id = answer.headers["x-run-id"]
        about = {"request_id": "my-request", "run_id": run_id, "trace_id": TRACE}

        def lines(logger: str) -> list[dict]:
            return [row for row in rows(service) if row["logger"] == logger and about.items() <= row.items()]

        assert until(lambda: lines("clinvk.access"))[0]["tenant"].startswith("key-")
        assert until(lambda: lines("worker.runner"))[0]["tenant"].startswith("key-")
        assert [r for r in rows(service) if r["logger"].startswith("celery") and r.get("run_id") == run_id]
        assert answer.headers["traceparent"].startswith(f"00-{TRACE}-")
        assert answer.headers["traceparent"].split("-")[2] != "1" * 16


def test_every_line_that_names_a_run_or_a_flow_bears_its_id_its_tenant_and_its_trace():
    config = {"CLINVK_SERVER__HANGUP_GRACE_SECS": "0.1", "CLINVK_QUEUE__MAX_WAIT_SECS": "4"}
    with serving(CLINVK_API_KEYS="k-1234", **config) as service:
        base = service.apis[0][1]
        trace = {"traceparent": f"00-{TRACE}-{'1' * 16}-01"}
        seen = []
        with httpx.Client(base_url=base, headers={"x-api-key": "k-1234", **trace}, timeout=30) as client:

            def begun() -> str:
                answer = client.post("/api/v1/prompt", json=hangs, headers={"prefer": "respond-async"})
                seen.append(answer.headers["x-run-id"])
                return seen[-1]

            def running(id: str) -> bool:
                return client.get(f"/api/v1/runs/{id}").json()["status"] == "running"

            def ended(id: str) -> bool:
                return client.get(f"/api/v1/runs/{id}").json()["status"] in ("failed", "cancelled")

            seen.append(client.post("/api/v1/prompt", json={"backend": "echo", "prompt": "hi"}).headers["x-run-id"])
            hangs = {"backend": "echo", "prompt": "hi", "extra": ["--hang"]}
            for path, body in (("parallel", {"tasks": [hangs]}), ("prompt", hangs)):
                with client.stream(
                    "POST", f"/api/v1/{path}", json=body, headers={"accept": "text/event-stream"}
                ) as one:
                    seen.append(one.headers["x-run-id"])
            cancelled, erased, lost = begun(), begun(), begun()
            assert until(lambda: running(lost) and running(cancelled) and running(erased))
            client.delete(f"/api/v1/runs/{cancelled}")
            assert until(lambda: client.delete(f"/api/v1/runs/{erased}", params={"erase": "true"}).status_code == 200)
            service.workers[0].kill()
            overdue = begun()
            assert until(lambda: ended(lost) and ended(overdue), 30)

        def named() -> dict[str, list[dict]]:
            found: dict[str, list[dict]] = {}
            for row in rows(service):
                for id in re.findall(r"\b(?:run|flow)_[\w-]+", row["message"]):
                    found.setdefault(id, []).append(row)
            return found

        def said() -> list[str]:
            return [row["message"] for lines in named().values() for row in lines]

        assert until(lambda: set(seen) <= named().keys())
        for word in (
            "lost its worker",
            "no worker had room",
            "nobody followed",
            "run.cancel",
            "run.erase",
            "succeeded",
        ):
            until(lambda word=word: [line for line in said() if word in line])
        told = named()

    for id, lines in told.items():
        assert not [row for row in lines if row.get("run_id") != id or not row.get("tenant")], json.dumps(lines)
        assert not [row for row in lines if len(row.get("trace_id", "")) != 32], json.dumps(lines)


def test_the_cli_is_told_its_place_in_the_trace_and_who_has_none_is_given_one():
    with serving(CLINVK_BACKENDS__ECHO__COMMAND='["sh", "-c", "cat >/dev/null; env >&2; exit 3"]') as service:
        base = service.apis[0][1]
        given = f"00-{TRACE}-{'1' * 16}-01"

        answer = httpx.post(
            base + "/api/v1/prompt",
            json={"backend": "echo", "prompt": "hi"},
            headers={"traceparent": given, "tracestate": "a=1,b=2"},
            timeout=30,
        )
        without = prompt(base, "hi")

    assert f"TRACEPARENT={answer.headers['traceparent']}\n" in answer.json()["error"]
    assert "TRACESTATE=a=1,b=2\n" in answer.json()["error"]
    assert "TRACEPARENT=00-" in without["error"]
    assert "TRACESTATE" not in without["error"]


def test_the_warden_too_says_its_lines_as_objects():
    with serving() as service:
        kill_pid(service.celery_of(service.workers[0]))

        said = until(lambda: [row for row in rows(service) if row["process"] == "warden"])

        assert "ended with 137; starting it again" in said[0]["message"]
        assert service.workers[0].alive


def test_the_text_form_is_for_people():
    with serving(CLINVK_LOG__FORMAT="text") as service:
        prompt(service.apis[0][1], "hi")
        text = until(lambda: "clinvk.access: POST /api/v1/prompt 200" in service.logs() and service.logs())

    assert "info    clinvk.access: POST /api/v1/prompt 200" in text
    assert "run_id=run_" in text
    assert "clinvk is ready on" in text


def test_a_worker_says_in_one_line_each_that_it_is_root_and_what_it_has_not(tmp_path):
    with serving(CLINVK_BACKENDS__CODEX__COMMAND="/nowhere/codex") as service:
        told = [row for row in rows(service) if row["process"] == "worker"]

    assert not [row for row in told if "SecurityWarning" in row["message"] or "\n" in row["message"]]
    assert len([row for row in told if "runs as root" in row["message"]]) == (os.geteuid() == 0)
    (missing,) = [row for row in told if "not here, and not offered" in row["message"]]
    assert missing["level"] == "info"
    assert "codex (as /nowhere/codex)" in missing["message"]


def test_a_stream_that_a_replica_breaks_off_as_it_ends_is_a_line_with_its_run_and_no_error():
    with serving() as service:
        api, base = service.apis[0]
        following = stream(base, "a", "--hang")
        following.next()

        api.send(signal.SIGTERM)
        assert api.wait() == 0
        with pytest.raises(httpx.RemoteProtocolError):
            following.rest()

        told = [row for row in rows(service) if row["file"] == "api0.log"]

    (line,) = [row for row in told if "broken off" in row["message"]]
    assert (line["level"], line["run_id"]) == ("info", following.run_id)
    assert line["request_id"]
    assert not [row for row in told if row["level"] in ("error", "critical")]


@contextlib.contextmanager
def on_a_terminal(service: Service, *words: str) -> Iterator[Callable[[], str]]:
    """`clinvk` with its output on a terminal, and no word about its form; gives what can be read there."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        [CLINVK, *words], env=service.env(), stdin=side, stdout=side, stderr=side, start_new_session=True
    )
    os.close(side)
    os.set_blocking(main, False)
    seen = bytearray()

    def read() -> str:
        with contextlib.suppress(BlockingIOError, OSError):  # OSError: it has ended
            seen.extend(os.read(main, 65536))
        return seen.decode()

    try:
        yield read
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        os.close(main)


def test_on_a_terminal_lines_are_for_people_without_being_asked_for():
    line = re.compile(r"^\d\d:\d\d:\d\d (debug  |info   |warning|error  ) [a-z_.]+: .")
    port = free_port()
    service = Service()
    try:
        with (
            on_a_terminal(service, "serve", "--port", str(port)) as api,
            on_a_terminal(service, "worker", "--name", "host0") as worker,
        ):
            base = f"http://127.0.0.1:{port}"
            until(lambda: "is ready" in api(), START_S)
            until(lambda: httpx.get(base + "/api/v1/workers").json()["workers"], START_S)
            prompt(base, "hi")
            told = [until(lambda: "POST /api/v1/prompt 200" in api() and api())]
            told.append(until(lambda: "worker.runner" in worker() and worker()))
    finally:
        service.close()

    for text in told:
        lines = text.splitlines()
        assert [one for one in lines if line.match(one) and "run_id=run_" in one], text
        assert not [one for one in lines if one.startswith("{")], text
    assert "\nclinvk is ready on" in "\n" + told[0]
