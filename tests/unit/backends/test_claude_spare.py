"""Spares of claude: which runs can take the same one, and what they are told."""

import json
from typing import Any

import pytest

from shared.run import Attachment, RunSpec, Turn
from worker.backends.base import Launch, Place, Settings
from worker.backends.claude import Claude
from worker.backends.claude_spare import (
    Kind,
    Orders,
    answered,
    kind_of,
    lasting,
    orders,
    state_file,
    unfit,
    watched,
)

ENV = {
    "PATH": "/bin",
    "HOME": "/home/op",
    "TMPDIR": "/home/op/.clinvk/runs/run_1/tmp",
    "ANTHROPIC_API_KEY": "sk-secret",
}


def place(name: str = "run_1", cwd: str | None = None) -> Place:
    base = f"/home/op/.clinvk/runs/{name}"
    return Place(cwd=cwd or f"{base}/work", scratch=base, home="/home/op", own_home=f"{base}/home")


def told(
    settings: Settings | None = None, cwd: str | None = None, **fields: Any
) -> tuple[Kind, Orders, list[dict[str, Any]]]:
    spec = RunSpec(**{"id": "run_1", "tenant": "t", "backend": "claude", "prompt": "the prompt"} | fields)
    settings = settings or Settings(command=("/bin/claude",))
    env = ENV | ({"TRACEPARENT": spec.traceparent} if spec.traceparent else {})
    launch: Launch = Claude().launch(spec, settings, place(cwd=cwd), env)
    kind = kind_of(spec, settings, place(cwd=cwd), env)
    given = orders(spec, settings, place(cwd=cwd), launch, kind)
    return kind, given, [json.loads(line)["request"] for _, line in given.settings]


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "claude-haiku-4-5"},
        {"effort": "high"},
        {"system_prompt": "You are a teapot."},
        {"system_prompt": "You are a teapot.", "system_prompt_mode": "append"},
        {"schema": {"type": "object"}},
        {"approval_mode": "auto"},
        {"approval_mode": "always"},
        {"attachments": (Attachment(media_type="image/png", data="aGk=", field="f"),)},
        {"id": "run_2", "prompt": "another", "tenant": "u"},
        {"traceparent": "00-a-b-01"},
    ],
)
def test_what_can_be_told_makes_no_kind_of_its_own(fields):
    assert told(**fields)[0] == told()[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"sandbox_mode": "read-only"},
        {"approval_mode": "none", "sandbox_mode": "full"},
        {"max_turns": 3},
        {"max_tokens": 100},
        {"thinking_tokens": 0},
        {"session_id": "ses_1"},
        {"extra": ("--effort=high",)},
        {"cwd": "/srv/project"},
    ],
)
def test_what_only_a_start_can_say_makes_a_kind_of_its_own(fields):
    assert told(**fields)[0] != told()[0]


def test_a_hosts_own_defaults_are_held_as_a_callers_wishes_are():
    given = Settings(command=("/bin/claude",), model="m", approval_mode="always", sandbox_mode="read-only", max_turns=2)

    kind, _, said = told(given)

    assert kind == told(sandbox_mode="read-only", max_turns=2)[0]
    assert said[0]["settings"]["model"] == "m"
    assert {"subtype": "set_permission_mode", "mode": "dontAsk"} in said


def test_flags_that_nobody_knows_fix_model_and_effort_to_the_command_line():
    settings = Settings(command=("/bin/claude",), extra_flags=("--betas", "x"))

    kind, _, said = told(settings, model="m", effort="minimal")

    assert kind.argv[kind.argv.index("--model") + 1] == "m"
    assert kind.argv[kind.argv.index("--effort") + 1] == "low"
    assert said[0]["settings"] == {"env": {"CLINVK_RUN": "run_1"}}


def test_a_spare_knows_nothing_of_the_run_that_it_is_started_after():
    kind, _, _ = told(model="secret-model", system_prompt="secret-system", prompt="secret-prompt", tenant="secret-t")

    launch = kind.launch(place("spare_1"))

    assert "secret-" not in repr(launch).replace("sk-secret", "")
    assert launch.env["TMPDIR"] == "/home/op/.clinvk/runs/spare_1/tmp"
    assert launch.cwd == "/home/op/.clinvk/runs/spare_1/work"
    assert "run_1" not in repr(launch)
    assert launch.files == {}
    assert json.loads(launch.stdin)["request_id"] == "ready"


def test_secrets_of_the_environment_are_in_no_representation():
    assert "sk-secret" not in repr(told()[0])


def test_the_run_is_told_in_order_and_greeted_with_the_bytes_of_a_start_of_its_own():
    kind, given, said = told(
        model="m", effort="minimal", approval_mode="auto", system_prompt="S", cwd="/srv/project", session_id="ses_1"
    )

    assert [id for id, _ in given.settings] == ["claim", "flags", "mode", "init"]
    assert kind.parked
    assert said[0] == {"subtype": "claim_session", "cwd": "/srv/project", "permission_mode": "default"}
    assert said[1]["settings"] == {"env": {"CLINVK_RUN": "run_1"}, "model": "m", "effortLevel": "low"}
    assert said[2]["mode"] == "acceptEdits"
    assert said[3]["systemPrompt"] == ["S"]
    message = json.loads(given.message)
    assert message["client_composed"] is True
    assert message["message"]["content"] == [{"type": "text", "text": "the prompt"}]
    assert given.message.endswith(b"\n")


def test_its_tools_are_known_as_the_runs_and_stand_in_its_trace():
    _, _, said = told(id="run_7", traceparent="00-a-b-01")

    assert said[0]["settings"]["env"] == {"CLINVK_RUN": "run_7", "TRACEPARENT": "00-a-b-01"}


def test_a_run_that_nothing_is_asked_of_takes_only_spares_started_so():
    kind, _, said = told(approval_mode="none", sandbox_mode="full")

    assert kind.argv[kind.argv.index("--permission-mode") + 1] == "bypassPermissions"
    assert "set_permission_mode" not in [request["subtype"] for request in said]


def test_a_claim_does_not_take_back_that_nothing_is_asked():
    _, _, said = told(approval_mode="none", sandbox_mode="full", cwd="/srv/project")

    assert said[0] == {"subtype": "claim_session", "cwd": "/srv/project", "permission_mode": "bypassPermissions"}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"resume": "id"}, "resume"),
        ({"history": (Turn(role="user", text="a"), Turn(role="assistant", text="b"))}, "history"),
        ({"add_dirs": ("/srv",)}, "add_dirs"),
        ({}, None),
        ({"workdir": "/srv", "session_id": "ses_1"}, None),
    ],
)
def test_runs_that_need_a_process_of_their_own(fields, why):
    assert unfit(RunSpec(id="r", tenant="t", backend="claude", prompt="p", **fields)) == why


@pytest.mark.parametrize(
    ("item", "found"),
    [
        ({"type": "control_response", "response": {"subtype": "success", "request_id": "init"}}, ("init", None)),
        ({"type": "control_response", "response": {"subtype": "error", "request_id": "m", "error": "no"}}, ("m", "no")),
        ({"type": "control_response", "response": {"request_id": "m"}}, ("m", "no reason given")),
        ({"type": "control_response"}, None),
        ({"type": "system", "response": {"subtype": "success", "request_id": "init"}}, None),
    ],
)
def test_only_a_success_is_one(item, found):
    assert answered(item) == found


def test_what_a_spare_has_read_is_watched_where_the_cli_looks_for_it():
    at_home = watched({"HOME": "/home/op"})
    elsewhere = watched({"HOME": "/home/op", "CLAUDE_CONFIG_DIR": "/conf"})

    assert {"/home/op/.claude/settings.json", "/etc/claude-code/managed-settings.json"} <= set(at_home)
    assert "/conf/.credentials.json" in elsewhere
    assert state_file({"HOME": "/home/op"}) == "/home/op/.claude.json"
    assert state_file({"HOME": "/home/op", "CLAUDE_CONFIG_DIR": "/conf"}) == "/conf/.claude.json"


@pytest.mark.parametrize(
    ("data", "same"),
    [
        (b'{"mcpServers": {"a": {}}, "numStartups": 9, "tips": {}}', True),
        (b'{"mcpServers": {"b": {}}, "numStartups": 1}', False),
        (b'{"mcpServers": {"a": {}}, "primaryApiKey": "k"}', False),
        (b'{"mcpServers": {"a": {}}, "oauthAccount": {"accountUuid": "u"}}', False),
        (b"", False),
        (b"[" * 100_000, False),
        (b'{"mcpServers": {"\xff": 1}', False),
    ],
)
def test_only_accounts_and_servers_make_another_state_of_the_cli(data, same):
    assert (lasting(data) == lasting(b'{"numStartups": 1, "mcpServers": {"a": {}}}')) is same
