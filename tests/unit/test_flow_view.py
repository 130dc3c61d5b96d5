"""Flows as their callers write them."""

from typing import Any

import pytest

from api.native import flow_view
from api.native.wire import ChainBody, CompareBody, ParallelBody
from shared.errors import InvalidRequest, UnsupportedParameter
from shared.flow import Flow

ALIASES = {"fast": "claude/haiku"}


def maker() -> flow_view.Maker:
    return flow_view.Maker("flow_x", "t", "req_1", ALIASES)


def task(prompt: str = "p", **more: Any) -> dict[str, Any]:
    return {"backend": "claude", "prompt": prompt, **more}


def parallel(window: int = 3, most: int = 50, **more: Any) -> Flow:
    body = ParallelBody(**{"tasks": [task()] * 4, **more})
    return flow_view.parallel(body, maker(), window=window, most=most, fail_fast=False)


@pytest.mark.parametrize(
    ("asked", "window", "most", "holds"), [(None, 3, 50, 3), (9, 3, 50, 9), (90, 3, 50, 50), (None, 3, 2, 2)]
)
def test_the_window_is_the_callers_wish_else_the_default_and_never_above_the_most(asked, window, most, holds):
    assert parallel(window, most, max_parallel=asked).window == holds


def test_all_runs_of_a_flow_are_ephemeral_and_of_their_lane():
    made = parallel(dry_run=True)

    assert all(spec.ephemeral and spec.session_id is None and spec.dry_run for spec in made.lanes)
    assert [(spec.id, spec.lane, spec.flow_id) for spec in made.lanes[:2]] == [
        ("run_x-0", 0, "flow_x"),
        ("run_x-1", 1, "flow_x"),
    ]


def test_every_field_of_a_prompt_is_a_field_of_a_task():
    more: dict[str, Any] = {
        "model": "opus", "workdir": "/srv", "approval_mode": "auto", "sandbox_mode": "workspace", "max_tokens": 5,
        "max_turns": 6, "system_prompt": "s", "verbose": True, "extra": ["-x"], "metadata": {"a": 1},
        "labels": {"z": "a"}, "retry": 1, "priority": "batch",
    }  # fmt: skip
    (spec,) = parallel(tasks=[task(timeout_secs=7, **more)]).lanes

    assert {name: getattr(spec, name) for name in more} == {**more, "extra": ("-x",)}
    assert spec.timeout_s == 7


@pytest.mark.parametrize("count", [0, 1001])
def test_a_flow_has_one_to_a_thousand_lanes(count):
    with pytest.raises(InvalidRequest, match=f"1 to 1000 entries, not {count}"):
        parallel(tasks=[task()] * count)


def test_a_backend_may_stand_twice_in_a_comparison_with_different_models():
    body = CompareBody(
        prompt="p", backends=["claude", "claude/opus", {"backend": "claude", "model": "haiku"}, "codex"], model="m"
    )

    made = flow_view.compare(body, maker(), most=50)

    assert [(spec.backend, spec.model) for spec in made.lanes] == [
        ("claude", "m"),
        ("claude", "opus"),
        ("claude", "haiku"),
        ("codex", "m"),
    ]
    assert (made.window, made.reply["backends"]) == (4, ["claude", "claude", "claude", "codex"])


def test_a_sequential_comparison_is_one_at_a_time():
    body = CompareBody(prompt="p", backends=["claude", "codex"], sequential=True)

    assert flow_view.compare(body, maker(), most=50).window == 1


def test_a_chain_shares_a_directory_only_where_it_was_asked_for():
    steps = [task("a", name="one"), task("{{steps.one}}")]
    shared = flow_view.chain(ChainBody(steps=steps, pass_working_dir=True), maker())
    apart = flow_view.chain(ChainBody(steps=steps, stop_on_failure=True), maker())

    assert [spec.workspace for spec in shared.lanes] == ["flow_x"] * 2
    assert [spec.workspace for spec in apart.lanes] == [None] * 2
    assert (shared.fail_fast, apart.fail_fast, apart.names) == (False, True, ("one", ""))


@pytest.mark.parametrize("name", ["pass_session_id", "persist_sessions"])
def test_what_keeps_sessions_in_a_chain_is_refused(name):
    with pytest.raises(UnsupportedParameter) as refused:
        flow_view.chain(ChainBody(steps=[task()], **{name: True}), maker())
    assert refused.value.field == name


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"prompt": " "}, "prompt"),
        ({"backends": ["claude", "/m"]}, "backends[1]"),
        ({"backends": ["claude/"]}, "backends[0]"),
    ],
)
def test_what_a_comparison_lacks_is_named_as_its_caller_wrote_it(wrong, field):
    with pytest.raises(InvalidRequest) as refused:
        flow_view.compare(CompareBody(**{"prompt": "p", "backends": ["claude"], **wrong}), maker(), most=50)

    assert refused.value.field == field
