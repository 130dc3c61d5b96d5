"""The real CLIs through the whole service, against the project's own mock of their vendors' APIs."""

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from shared.ids import new_id
from shared.run import Turn
from tests.fakes.mockllm import MockLLM, Request
from tests.system import clis
from tests.system.clis import CLIS, both, only
from tests.system.service import START_S, Service, ended, living, prompt, run, serving, stream, until, whole
from tests.system.specs import NOTE, PAGE, PICTURE, SCHEMA, outcome_of, put_in_line, talk

pytestmark = [pytest.mark.clis, pytest.mark.processes]


class World:
    def __init__(self, service: Service, mock: MockLLM, way: str) -> None:
        self.way = way
        self.service = service
        self.mock = mock
        self.base = service.apis[0][1]

    def ask(self, backend: str, text: str, **fields: Any) -> dict[str, Any]:
        return prompt(self.base, text, backend=backend, **fields)

    def seen(self, backend: str, text: str, **fields: Any) -> dict[str, Any]:
        """What the model was sent."""
        found = self.ask(backend, text, **fields)
        assert found["status"] == 200, found
        assert found["exit_code"] == 0, found
        return json.loads(found["output"])


@pytest.fixture(scope="module")
def world(way: str) -> Iterator[World]:
    limits = {"CLINVK_UNIFIED_FLAGS__COMMAND_TIMEOUT_SECS": "60"}
    with clis.serving_clis(way, CLIS if way == "cold" else clis.WARM, **limits) as (service, mock):
        yield World(service, mock, way)
        for backend in clis.WARM if way == "warm" else ():
            seen = clis.warm_state(service, backend)
            assert seen["hits"] > (10 if len(mock.requests) > 100 else -1), seen
            assert not {"crashed", "hung"} & set(seen["ends"]), seen


@pytest.fixture(autouse=True)
def by_its_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each run of a warm test was a warm one, but for those that `goes_cold` declares, with their reasons in order."""
    params = getattr(getattr(request.node, "callspec", None), "params", {})
    backend = params.get("backend")
    if params.get("way") != "warm" or backend is None:
        yield
        return
    world = request.getfixturevalue("world")
    if backend == "claude":  # each spare serves one run: the next test's must be there first
        clis.spares_wait(world.service)
    else:  # a refused login, for one, has its process replaced

        def warmly() -> bool:
            found = world.ask(backend, "[[mock:text]] warm up", ephemeral=True)
            return clis.ways(world.service)[found["run_id"]] == "warm"

        until(warmly, 60)
    before = set(clis.ways(world.service))
    yield
    went = [way for run_id, way in clis.ways(world.service).items() if run_id not in before and way != "warm"]
    marks = [mark.kwargs.get(backend, ()) for mark in request.node.iter_markers("goes_cold")]
    assert went == [reason for declared in marks for reason in declared]


@both()
def test_text_streams_and_ends_with_its_usage(world, backend):
    events = stream(world.base, "[[mock:text n=8 ms=40]] hello", backend=backend).rest()

    assert whole(events) == "".join(f"tok{i} " for i in range(8))
    usage = events[-1]["content"]["token_usage"]
    assert (usage["cached_tokens"], usage["output_tokens"]) == (7, 8)
    assert usage["input_tokens"] == (110 if backend == "claude" else 100)
    pieces = [e for e in events if e["type"] == "message"]
    assert len(pieces) == (1 if (backend, world.way) == ("codex", "cold") else 8)


@both(but=[("cold", "codex")])  # which prints whole messages
def test_the_first_token_comes_in_under_half_of_the_time(world, backend):
    begun = time.monotonic()
    following = stream(world.base, "[[mock:text n=100 ms=40]] hello", backend=backend)
    while following.next()["type"] != "message":
        pass
    first = time.monotonic()
    following.rest()
    last = time.monotonic()

    assert last - first > 100 * 0.04 / 2  # of the model's time
    if world.way == "warm":  # how long a CLI starts is the machine's
        assert first - begun < (last - begun) / 2


@both()
@pytest.mark.parametrize(
    "text",
    [
        "--help",
        "@/etc/hostname",
        pytest.param("/status", marks=pytest.mark.goes_cold(gemini=("command",))),
        "é 漢字 🪐 \u2028 'q' \"d\" $HOME `x` \\n",
    ],
)
def test_any_prompt_reaches_the_model_as_it_is(world, backend, text):
    asked = f"{text} [[mock:seen]] {text}"

    told = world.seen(backend, asked, ephemeral=True)

    assert told["tail"].endswith(asked)
    assert world.mock.requests[-1].last.rstrip().endswith(asked)


@both()
def test_a_megabyte_goes_in_and_comes_out_whole(world, backend):
    asked = "[[mock:seen]] " + "".join(f"{i:07d} " for i in range(125_000))

    told = world.seen(backend, asked, ephemeral=True)
    if (backend, world.way) == ("claude", "warm"):
        clis.spares_wait(world.service)
    answered = world.ask(backend, "[[mock:text n=256 size=4096]] go", ephemeral=True)

    assert told["length"] >= len(asked)
    assert any(r.last.endswith(asked) for r in world.mock.requests[-3:])
    assert answered["exit_code"] == 0, answered["error"]
    assert len(answered["output"]) == 256 * 4096


@pytest.mark.goes_cold(gemini=("system",))
@both()
def test_a_system_prompt_reaches_the_model_as_one(world, backend):
    told = world.seen(backend, "[[mock:seen]] hi", system_prompt="You are a TEAPOT.", ephemeral=True)

    assert "You are a TEAPOT." in told["system"]


@both(but=[("cold", "gemini")])  # which says nothing of it
def test_thinking_is_an_event_of_its_own_and_never_text(world, backend):
    events = stream(world.base, "[[mock:think n=3]] hi", backend=backend).rest()

    assert whole(events) == "tok0 tok1 tok2 "
    thought = "".join(e["content"]["text"] for e in events if e["type"] == "thinking")
    assert thought.split() == ["thought0", "thought1", "thought2"]
    if (backend, world.way) == ("codex", "warm"):
        assert [e["content"]["is_partial"] for e in events if e["type"] == "thinking"] == [True] * 3


@pytest.mark.goes_cold(gemini=("shell",))
@both()
def test_a_tool_runs_where_the_mode_permits_it(world, backend):
    fields = {"approval_mode": "none", "sandbox_mode": "full"}

    events = stream(world.base, "[[mock:tool cmd=echo+hello-from-tool]] run", backend=backend, **fields).rest()

    assert whole(events).endswith("tok4 ")
    results = [e["content"] for e in events if e["type"] == "tool_result"]
    assert [r["output"].strip() for r in results] == ["hello-from-tool"]
    assert [e["type"] for e in events if e["type"].startswith("tool")] == ["tool_use", "tool_result"]


@pytest.mark.goes_cold(gemini=("first",))  # a directory of the caller's is of another kind
@both()
def test_nothing_is_written_in_a_read_only_sandbox(world, backend, tmp_path):
    os.chmod(tmp_path, 0o777)
    asked = f"[[mock:tool cmd=touch+{tmp_path}/written]] run"

    found = world.ask(backend, asked, workdir=str(tmp_path), sandbox_mode="read-only", approval_mode="none")

    assert found["status"] == 200, found
    assert not (tmp_path / "written").exists()


@both()
@pytest.mark.parametrize(
    ("code", "causes"),
    [
        (401, {"login"}),
        (429, {"rate_limited"}),
        (500, {"vendor_error", "overloaded"}),
        (404, {"unknown_model"}),
    ],
)
def test_a_vendors_refusal_is_a_failure_with_its_cause_in_seconds(world, backend, code, causes):
    begun = time.monotonic()

    found = world.ask(backend, f"[[mock:status code={code}]] hi", ephemeral=True)

    if found["status"] != 200:  # the worker has given the CLI up: its exit says nothing
        found |= {"error_cause": found["error"]["details"]["cause"]}
    assert found["error_cause"] in causes, found
    assert found["error"]
    limit_s = 40 if (backend, code) == ("codex", 500) else 20
    assert time.monotonic() - begun < limit_s


@pytest.mark.goes_cold(claude=("resume",), gemini=("resume",))
@both()
def test_a_second_turn_holds_the_first_and_counts_its_own_usage(world, backend):
    first = world.ask(backend, "[[mock:text n=3]] remember the TEAPOT")
    outcome = outcome_of(world.service, first["run_id"])
    fields = {"session_id": first["session_id"], "resume": outcome.backend_session_id}
    if backend == "codex":
        fields["prior_usage"] = outcome.usage

    found = carried_out(world, backend, "[[mock:seen]] and now?", **fields)

    assert found["exit_code"] == 0, found
    told = json.loads(found["output"])
    assert any("remember the TEAPOT" in text for text in told["users"])
    assert "and now?" in told["users"][-1]
    assert found["token_usage"]["output_tokens"] == 1
    assert found["token_usage"]["input_tokens"] <= 110


def carried_out(world: World, backend: str, text: str, **fields: Any) -> dict[str, Any]:
    """The result of a run with what this file's subject takes, whichever dialect would bring it."""
    run_id = put_in_line(world.service, backend, text, **fields)
    return dict(ended(world.base, run_id)["result"], id=run_id)


def sent(world: World, backend: str, text: str, **fields: Any) -> Request:
    """What the vendor was asked in a run that succeeded."""
    before = len(world.mock.requests)
    found = carried_out(world, backend, text, **fields)
    assert found["exit_code"] == 0, found
    assert not found.get("error"), found
    (request,) = world.mock.requests[before:]
    return request


@pytest.mark.goes_cold(claude=("history",))
@both(but=[("cold", "codex")])
def test_earlier_turns_reach_the_model_in_their_roles(world, backend):
    turns = talk()

    request = sent(world, backend, "[[mock:text]] and now?", history=turns)

    said = "model" if backend == "gemini" else "assistant"
    talked = [(role, text) for role, text in request.turns if role in ("user", said)]
    if backend == "codex":
        assert talked.pop(0)[1].startswith("<environment_context>")
    assert [role for role, _ in talked] == ["user", said] * len(turns[::2]) + ["user"]
    for turn, (_, text) in zip(turns, talked, strict=False):
        assert text.endswith(turn.text)
    assert [text for role, text in talked if role == said] == [turn.text for turn in turns[1::2]]
    assert talked[-1][1].endswith("[[mock:text]] and now?")
    assert request.media == [("image/png", PICTURE.data)]


@only("cold")
def test_codex_is_told_earlier_turns_in_the_text_with_the_prompt_last(world):
    request = sent(world, "codex", "[[mock:text]] and now?", history=talk())

    told = request.turns[-1][1]
    assert told.count('<turn role="user">') == told.count('<turn role="assistant">') == 6
    assert "\n&lt;/turn&gt;&lt;turn role=" in told
    assert told.endswith("what the user says now.\n\n[[mock:text]] and now?")
    assert [kind for kind, _ in request.media] == ["image/png"]


@pytest.mark.goes_cold(claude=("history",))
@both()
def test_a_run_with_history_leaves_nothing_of_it(world, backend):
    home = world.service.folder / "host0"

    found = carried_out(world, backend, "[[mock:text]] SECRETPROMPT", history=talk(), attachments=(PICTURE,))

    assert found["exit_code"] == 0, found
    assert not (home / ".clinvk" / "runs" / found["id"]).exists()
    assert clis.holding(home, "", 10_000_000)
    assert clis.holding(home, "SECRETPROMPT", 10_000_000) == []
    mark = found["id"].partition("_")[2]  # claude writes its directories' names with - for _
    assert not [names for _, *names in os.walk(home) if mark in str(names)]


@pytest.mark.goes_cold(claude=("history", "resume"), gemini=("resume",))
@both(but=[("cold", "codex")])
def test_a_session_that_begins_with_history_goes_on(world, backend):
    session_id = new_id("ses")
    turns = (Turn(role="user", text="remember the TEAPOT"), Turn(role="assistant", text="I do"))
    first = carried_out(world, backend, "[[mock:text]] one", history=turns, session_id=session_id)
    resume = outcome_of(world.service, first["id"]).backend_session_id

    request = sent(world, backend, "[[mock:text]] two", session_id=session_id, resume=resume)

    talked = [text for role, text in request.turns if role not in ("system", "developer")]
    if backend == "codex":
        talked = [text for text in talked if not text.startswith("<environment_context>")]
    assert len(talked) == 5
    assert "TEAPOT" in talked[0]
    assert talked[-1].endswith("two")


@both()
def test_attachments_reach_the_model_before_the_prompt(world, backend):
    given = (PICTURE, NOTE) if backend == "codex" else (PICTURE, PAGE, NOTE)

    request = sent(world, backend, "[[mock:text]] look", attachments=given)

    assert request.media == [(a.media_type, a.data) for a in given if a is not NOTE]
    assert request.turns[-1][1].endswith("look") or backend == "claude"
    body = json.dumps(request.body, ensure_ascii=False)
    assert body.index(PICTURE.data) < body.index("NOTE-WORDS") < body.index("[[mock:text]] look")


@both("claude", "codex")
@pytest.mark.parametrize("mode", ["default", "always", "none"])
def test_an_answer_to_a_schema_is_its_json_alone(world, backend, mode):
    sandbox = "full" if mode == "none" else "read-only"
    before = len(world.mock.requests)

    found = carried_out(world, backend, "[[mock:json]] go", schema=SCHEMA, approval_mode=mode, sandbox_mode=sandbox)

    assert found["output"] == '{"a":"b"}'
    events = httpx.get(
        f"{world.base}/api/v1/runs/{found['id']}/events", headers={"accept": "application/x-ndjson"}, timeout=30
    )
    assert whole([json.loads(line) for line in events.text.splitlines()]) == '{"a":"b"}'
    body = world.mock.requests[before].body
    if backend == "codex":
        assert body["text"]["format"]["schema"] == SCHEMA
        assert body["text"]["format"]["strict"] is True
    else:
        assert [t["input_schema"] for t in body["tools"] if t["name"] == "StructuredOutput"] == [SCHEMA]


@both("claude", "codex")
def test_an_answer_that_is_not_of_the_schema_is_a_failure(world, backend):
    found = carried_out(world, backend, "[[mock:text]] go", schema=SCHEMA)

    assert found["error_cause"] == "no_structured_output", found
    assert found["output"] == ""


@both("claude", "codex")
@pytest.mark.parametrize(("asked", "effort"), [("minimal", "low"), ("high", "high"), ("max", "max")])
def test_effort_reaches_the_model(world, backend, asked, effort):
    request = sent(world, backend, "[[mock:text]] hi", effort=asked)

    assert request.body["output_config" if backend == "claude" else "reasoning"]["effort"] == effort


@only("cold")
@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "claude-sonnet-4-6"])
def test_a_bound_for_thinking_reaches_claude_and_nought_is_none(world, model):
    bound = sent(world, "claude", "[[mock:text]] hi", thinking_tokens=3000, model=model)
    none = sent(world, "claude", "[[mock:text]] hi", thinking_tokens=0, model=model)

    assert bound.body["thinking"]["budget_tokens"] == 3000
    assert none.body.get("thinking", {"type": "disabled"})["type"] == "disabled"


@both()
def test_a_stream_that_is_cut_is_never_a_false_success(world, backend):
    events = stream(world.base, "[[mock:drop n=6]] hi", backend=backend, ephemeral=True).rest(90)

    if events[-1]["type"] == "done":  # it asked again in another way and got the whole
        assert whole(events) == "".join(f"tok{i} " for i in range(6))
    else:
        assert events[-1]["content"]["message"]


@both()
def test_a_refused_connection_comes_back_in_seconds(world, backend, tmp_path):
    url = "http://127.0.0.1:9"  # discard: nobody listens
    with serving(workers=0, CLINVK_UNIFIED_FLAGS__COMMAND_TIMEOUT_SECS="60") as service:
        clis.install(service, backend, url, world.way)
        service.worker()
        if world.way == "warm":
            prompt(service.apis[0][1], "hi", backend=backend, ephemeral=True)
            until(lambda: clis.warm_state(service, backend).get("ready"), START_S)

        found = prompt(service.apis[0][1], "hi", backend=backend, ephemeral=True)

        assert found.get("error_cause", found.get("error")) not in ("", None, "timed_out"), found


@pytest.mark.goes_cold(gemini=("shell",))
@both()
def test_a_cancel_in_the_middle_of_a_shell_tool_leaves_no_process(world, backend):
    fields = {"approval_mode": "none", "sandbox_mode": "full"}
    following = stream(world.base, "[[mock:tool cmd=tail+-f+/dev/null]] run", backend=backend, **fields)
    run_id = following.run_id
    while following.next()["type"] != "tool_use":
        pass
    until(lambda: tailing(world.service))

    httpx.delete(f"{world.base}/api/v1/runs/{run_id}", timeout=30)

    assert following.rest()[-1]["content"]["code"] == "cancelled"
    assert run(world.base, run_id)["status"] == "cancelled"
    until(lambda: not living(f"CLINVK_RUN={run_id}") and not tailing(world.service), 5)


def tailing(service: Service) -> list[int]:
    """The processes of the tool."""
    return clis.working(service, "tail", "-f", "/dev/null")


@only("cold")
def test_max_turns_is_a_cause(world):
    fields = {"approval_mode": "none", "max_turns": 1, "sandbox_mode": "full"}

    for backend in ("claude", "gemini"):
        found = world.ask(backend, "[[mock:tool]] run", **fields)

        assert found["error_cause"] == "max_turns", found


@only("cold")
def test_max_tokens_reaches_claude(world):
    assert world.seen("claude", "[[mock:seen]] hi", max_tokens=1234, ephemeral=True)["max_tokens"] == 1234


@only("cold")
def test_what_a_cli_cannot_hold_is_refused_and_what_it_lacks_is_said(world):
    refused = world.ask("gemini", "hi", sandbox_mode="workspace", approval_mode="none")
    body = {"backend": "codex", "prompt": "[[mock:text]] hi", "max_turns": 3, "ephemeral": True}
    answer = httpx.post(world.base + "/api/v1/prompt", json=body, timeout=60)

    assert (refused["status"], refused["error"]["code"]) == (400, "not_enforceable")
    assert answer.headers["x-clinvk-not-enforced"] == "max_turns"


@both()
def test_an_ephemeral_run_leaves_nothing_in_its_directories(world, backend):
    found = world.ask(backend, "[[mock:text]] hi", ephemeral=True)

    home = world.service.folder / "host0" / ".clinvk"
    assert not list((home / "runs").glob(f"{found['run_id']}*"))
    assert found["session_id"] == ""


@pytest.mark.parametrize("way", clis.WAYS, indirect=True, scope="module")
def test_runs_at_once_do_not_mix(world):
    import concurrent.futures

    def one(i: int) -> str:
        backend = CLIS[i % 3]
        return str(world.seen(backend, f"number-{i}-end [[mock:seen]]", ephemeral=True)["tail"])

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for i, tail in enumerate(pool.map(one, range(9))):
            assert f"number-{i}-end" in tail
