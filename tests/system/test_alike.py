"""The two ways of the real CLIs beside each other, on one mock: callers and the model are told the same in the same order.

What a CLI does not offer in both of its ways is declared in `DIFFERENCES`; everything else of events, outcomes and
requests is compared, but ids, times, and in how many pieces a text came.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from shared.ids import new_id
from tests.fakes.mockllm import MockLLM, Request
from tests.system import clis
from tests.system.service import until
from tests.system.specs import NOTE, PICTURE, SCHEMA, outcome_of, talk
from tests.system.told import Side, Told, cancel, plain, told

pytestmark = [pytest.mark.clis, pytest.mark.processes, pytest.mark.timeout(240)]

_CONTEXT = re.compile(r"<session_context>.*</session_context>", re.DOTALL)  # of the process: directories, the day

FREE = {"approval_mode": "none", "sandbox_mode": "full"}
READING = {"approval_mode": "always", "sandbox_mode": "read-only"}
TEAPOT = {"system_prompt": "You are a TEAPOT."}

# name -> prompt, fields of the spec
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "session": ("[[mock:text n=8 ms=5]] hello", {"session_id": ""}),
    "thoughts": ("[[mock:think n=3]] hi", {}),
    "thoughts in two parts": ("[[mock:think n=3 parts=2]] hi", {}),
    "system prompt": ("[[mock:text]] hi", TEAPOT),
    "model": ("[[mock:text]] hi", {"model": ""}),
    "edits": ("[[mock:text]] hi", {"approval_mode": "auto"}),
    "tool": ("[[mock:tool cmd=echo+hello-from-tool;exit+3]] run", FREE),
    "tool that may not": ("[[mock:tool cmd=touch+denied]] run", READING),
    "history": ("[[mock:text]] and now?", {"history": talk()}),
    "attachments": ("[[mock:text]] look", {"attachments": (PICTURE, NOTE)}),
    "schema": ("[[mock:json]] go", {"schema": SCHEMA}),
    "schema not held": ("[[mock:text]] go", {"schema": SCHEMA}),
    "400": ("[[mock:status code=400]] hi", {}),
    "401": ("[[mock:status code=401]] hi", {}),
    "404": ("[[mock:status code=404]] hi", {}),
    "429": ("[[mock:status code=429]] hi", {}),
    "cut": ("[[mock:drop n=6]] hi", {}),
    "broken off": ("[[mock:eof n=6]] hi", {}),
    "deadline": ("[[mock:hang]] hi", {"timeout_s": 12.0}),  # by then each has asked the model, on a busy machine too
    "cancel": ("[[mock:hang]] hi", {}),
}
MODELS = {"claude": "claude-sonnet-4-6", "codex": "gpt-6-sol", "gemini": "gemini-2.5-flash"}

# Runs that only a process of their own carries out: why. Their two sides are one way, and are compared all the same.
COLD = {("claude", "history"): "history", ("gemini", "tool"): "shell"}
LACKS = {
    ("gemini", "schema"),  # refused before any worker
    ("gemini", "schema not held"),
    ("gemini", "deadline"),  # how far it has come by then is its start's affair
}


class Difference(NamedTuple):
    """`of`: the cases that it concerns, all where there are none."""

    why: str
    gone: Callable[[Told], Told]
    of: tuple[str, ...] = ()


def without_pieces(found: Told) -> Told:
    events = [(kind, {n: v for n, v in content.items() if n != "is_partial"}) for kind, content in found.events]
    return found._replace(events=events)


def without(*kinds: str) -> Callable[[Told], Told]:
    return lambda found: found._replace(events=[event for event in found.events if event[0] not in kinds])


def without_text(found: Told) -> Told:
    return without("message")(found)._replace(outcome={**found.outcome, "output": ""})


def without_turns(found: Told) -> Told:
    events = [(kind, {n: v for n, v in content.items() if n != "turn_count"}) for kind, content in found.events]
    return found._replace(events=events)


def without_exit(found: Told) -> Told:
    said = json.dumps([found.events, found.outcome])
    events, outcome = json.loads(re.sub(r'"exit_code": \d+', '"exit_code": "some"', said))
    return found._replace(events=[(kind, content) for kind, content in events], outcome=outcome)


def without_words(found: Told) -> Told:
    """Of the failure: its code and cause stay."""
    *events, (kind, content) = found.events
    last = {name: value for name, value in content.items() if name != "message"}
    return found._replace(events=[*events, (kind, last)], outcome={**found.outcome, "error": "some"})


def without_usage(found: Told) -> Told:
    return without("token_usage")(found)._replace(outcome={**found.outcome, "token_usage": None})


REFUSALS = ("400", "401", "404", "429", "cut", "broken off")
DIFFERENCES: dict[str, tuple[Difference, ...]] = {
    "claude": (),
    "codex": (
        Difference("exec prints whole messages, so none of its texts is a part", without_pieces),
        Difference("exec prints nothing of a message that broke off", without_text, ("cut", "broken off")),
    ),
    "gemini": (
        Difference("its JSON stream says nothing of thoughts", without("thinking")),
        Difference(
            "a refusal has an exit code of its own; a resident does not exit", without_exit, ("400", "401", "429")
        ),
        Difference("its JSON stream wraps what the vendor said in words of its own", without_words, REFUSALS),
        Difference(
            "ACP counts and tells nothing of an attempt that broke off",
            lambda found: without("progress")(without_usage(found)),
            ("broken off",),
        ),
        Difference(
            "ACP says nothing of a call of a tool that it does not have",
            lambda found: without("tool_use", "tool_result")(without_turns(found)),
            ("tool that may not",),
        ),
    ),
}


def asked_of_claude(request: Request, _: str) -> Any:
    return request.body


def asked_of_codex(request: Request, case: str) -> Any:
    """Without the environment that it describes, whose form differs, and its keys for caches."""
    body = request.body
    kept = {name: body.get(name) for name in ("model", "instructions", "tools", "text", "reasoning", "tool_choice")}
    talked = [(role, text) for role, text in request.turns if role in ("user", "assistant")]
    kept["said"] = [text for text in talked if not text[1].startswith("<environment_context>")]
    if case == "history":  # which exec is told as a transcript
        del kept["said"]
    kept["permissions"] = ["read-only" in json.dumps(item) for item in body["input"] if item.get("role") == "developer"]
    return kept


def asked_of_gemini(request: Request, case: str) -> Any:
    """Its system prompt and its tools are those of a conversation where it has none of the run."""
    body = request.body
    kept = {name: body.get(name) for name in ("generationConfig", "safetySettings")}
    said = [(role, _CONTEXT.sub("", text).strip()) for role, text in request.turns]
    kept |= {"path": request.path, "media": request.media, "turns": [turn for turn in said if turn[1]]}
    if case == "system prompt":
        kept["system"] = request.system
    return kept


ASKED = {"claude": asked_of_claude, "codex": asked_of_codex, "gemini": asked_of_gemini}


@pytest.fixture(scope="module")
def mock() -> Iterator[MockLLM]:
    with MockLLM() as made:
        yield made


@pytest.fixture(scope="module")
def sides(mock: MockLLM) -> Iterator[dict[str, Side]]:
    # A file that claude reads at its start is not written while its spares wait: see `stamp`.
    with clis.serving_clis("cold", at=mock) as cold, clis.serving_clis("warm", at=mock) as warm:
        yield {"cold": Side(*cold), "warm": Side(*warm)}


def carried_out(side: Side, backend: str, case: str, way: str) -> Told:
    """`way`: by which it must go; where a process of its kind comes only after the first, by as many runs as it takes."""
    text, fields = CASES[case]
    fields = dict(fields)
    if "session_id" in fields:
        fields["session_id"] = new_id("ses")
    if "model" in fields:
        fields["model"] = MODELS[backend]
    then = cancel(side) if case == "cancel" else None
    if way == "warm" and backend == "claude":
        clis.spares_wait(side.service)
    ready = clis.warm_state(side.service, backend).get("ready", 0)
    found = told(side, backend, text, then=then, **fields)
    if backend == "codex":  # which after a refused login begins anew
        ready = 0
    while way == "warm" and backend != "claude" and found.way in ("system", "first", "starting"):
        if found.way != "system":
            until(lambda: clis.warm_state(side.service, backend).get("ready", 0) > ready, 60)
        found = told(side, backend, text, then=then, **fields)
    assert found.way == way, case
    return found


def alike(cold: Told, warm: Told, backend: str, case: str) -> tuple[Told, Told]:
    for difference in DIFFERENCES[backend]:
        if not difference.of or case in difference.of:
            cold, warm = difference.gone(cold), difference.gone(warm)
    return cold, warm


def requests(side: Side, backend: str, case: str, found: Told) -> list[str]:
    return [
        plain(json.dumps(ASKED[backend](request, case), sort_keys=True, ensure_ascii=False), side)
        for request in found.asked
    ]


@pytest.fixture(scope="module")
def both(sides: dict[str, Side]) -> Callable[[str, str], tuple[Told, Told]]:
    """Carries a case out in each way, once."""

    @functools.cache
    def found(backend: str, case: str) -> tuple[Told, Told]:
        cold = carried_out(sides["cold"], backend, case, "off")
        return cold, carried_out(sides["warm"], backend, case, COLD.get((backend, case), "warm"))

    return found


@pytest.mark.parametrize(
    ("backend", "case"), [(backend, case) for backend in clis.CLIS for case in CASES if (backend, case) not in LACKS]
)
def test_callers_and_the_model_are_told_the_same(sides, both, backend, case):
    cold, warm = both(backend, case)

    left, right = alike(cold, warm, backend, case)
    assert right.events == left.events
    assert right.outcome == left.outcome
    assert requests(sides["warm"], backend, case, warm) == requests(sides["cold"], backend, case, cold)
    assert cold.asked


@pytest.mark.parametrize(
    ("backend", "number"), [(backend, n) for backend, all in DIFFERENCES.items() for n in range(len(all))]
)
def test_every_declared_difference_is_one(both, backend, number):
    """Else it would hide others."""
    why, _, of = DIFFERENCES[backend][number]

    def differs(case: str) -> bool:
        cold, warm = both(backend, case)
        for other in DIFFERENCES[backend]:
            if other.why != why and (not other.of or case in other.of):
                cold, warm = other.gone(cold), other.gone(warm)
        return (cold.events, cold.outcome) != (warm.events, warm.outcome)

    assert all(differs(case) for case in of or ("thoughts",)), f"not so any more: {why}"


def test_a_further_turn_of_codex_is_told_alike_and_counts_its_own_usage(sides):
    found = {}
    for way, side in sides.items():
        session_id = new_id("ses")
        first = told(side, "codex", "[[mock:text n=3]] one", session_id=session_id)
        before = outcome_of(side.service, first.run_id)
        fields = {"session_id": session_id, "resume": before.backend_session_id, "prior_usage": before.usage}
        found[way] = told(side, "codex", "[[mock:text n=2]] two", **fields)

    assert (found["cold"].way, found["warm"].way) == ("off", "warm")
    cold, warm = alike(found["cold"], found["warm"], "codex", "session")
    assert (warm.events, warm.outcome) == (cold.events, cold.outcome)
    assert warm.outcome["token_usage"]["output_tokens"] == 2
    assert requests(sides["warm"], "codex", "session", warm) == requests(sides["cold"], "codex", "session", cold)


def test_the_processes_of_this_page_ended_in_no_bad_way(sides):
    for backend in clis.WARM:
        seen = until(lambda backend=backend: clis.warm_state(sides["warm"].service, backend))
        assert not {"crashed", "hung", "refused", "start", "leftovers"} & set(seen["ends"]), (backend, seen)
