"""What comes next in a flow, from what is there."""

import pytest

from shared.flow import Flow, FlowRecord, FlowStatus, closing, decide, fill, unknown_names, wants
from shared.run import Failure, Outcome, Run, RunSpec, Status

BROKEN = Failure("backend_error", "m", "crashed")
CANCELLED = Failure("cancelled", "by its caller", "cancelled")


def flow(kind: str, *prompts: str, **more) -> Flow:
    lanes = tuple(
        RunSpec(id=f"run_f-{lane}", tenant="t", backend="echo", prompt=prompt, flow_id="flow_f", lane=lane)
        for lane, prompt in enumerate(prompts)
    )
    return Flow(id="flow_f", tenant="t", kind=kind, lanes=lanes, **{"names": ("",) * len(lanes), **more})


def record(flow: Flow, states: dict[int, str], **more) -> FlowRecord:
    """`states`: lane -> a status, or what it answered after `=`."""
    runs = {}
    for lane, state in states.items():
        status, _, output = state.partition("=")
        failure = {"failed": BROKEN, "cancelled": CANCELLED}.get(status)
        outcome = Outcome(output=output, failure=failure) if Status(status).final else None
        runs[lane] = Run(spec=flow.lanes[lane], status=Status(status), queue="echo", created_at=0, outcome=outcome)
    return FlowRecord(**{"flow": flow, "status": FlowStatus.RUNNING, "created_at": 0, "runs": runs, **more})


def test_a_chain_goes_on_with_what_was_answered_and_fills_it_in_once():
    chain = flow("chain", "one", "{{previous}} and {{ steps.a }}", names=("a", ""))

    todo = decide(record(chain, {0: "succeeded=x {{previous}} {{steps.a}}"}))

    assert todo.start is not None
    assert todo.start.id == "run_f-1"
    assert todo.start.prompt == "x {{previous}} {{steps.a}} and x {{previous}} {{steps.a}}"


def test_a_chain_waits_while_a_step_lives_and_ends_after_its_last():
    chain = flow("chain", "one", "two")

    assert decide(record(chain, {0: "running"})).start is None
    assert decide(record(chain, {0: "succeeded", 1: "running"})).end is None
    assert decide(record(chain, {0: "succeeded", 1: "succeeded"})).end is FlowStatus.SUCCEEDED


def test_a_failed_steps_text_is_never_fed_on():
    chain = flow("chain", "one", "{{previous}}", "three", "{{steps.b}}", names=("", "b", "", ""))

    first = decide(record(chain, {0: "failed=half"}))

    assert first.close[1].cause == "previous_failed"
    assert first.start is not None
    assert first.start.lane == 2
    after = decide(record(chain, {0: "failed=half", 2: "succeeded"}, closed=first.close))
    assert after.close[3].cause == "previous_failed"
    assert (
        decide(record(chain, {0: "failed", 2: "succeeded"}, closed={**first.close, **after.close})).end
        is FlowStatus.FAILED
    )


def test_a_chain_that_stops_on_failure_starts_nothing_more_and_says_why():
    chain = flow("chain", "one", "two", "three", fail_fast=True)

    todo = decide(record(chain, {0: "succeeded", 1: "failed"}))

    assert todo.start is None
    assert todo.stop is not None
    assert (todo.stop.cause, "step 2" in todo.stop.message) == ("stopped_on_failure", True)
    assert set(todo.close) == {2}
    assert todo.end is FlowStatus.FAILED


def test_a_fast_failure_cancels_what_lives_and_ends_when_nothing_does():
    many = flow("parallel", "a", "b", "c", fail_fast=True)

    todo = decide(record(many, {0: "failed", 1: "running", 2: "waiting"}))
    ended = decide(record(many, {0: "failed", 1: "cancelled", 2: "cancelled"}, stop=todo.stop))

    assert [run.spec.lane for run in todo.cancel] == [1, 2]
    assert todo.end is None
    assert ended.end is FlowStatus.FAILED


def test_without_it_the_others_go_on():
    many = flow("parallel", "a", "b")

    assert decide(record(many, {0: "failed", 1: "running"})).cancel == ()
    assert decide(record(many, {0: "failed", 1: "succeeded"})).end is FlowStatus.FAILED


def test_a_cancelled_flow_cancels_all_and_ends_as_cancelled():
    many = flow("parallel", "a", "b")

    assert len(decide(record(many, {0: "running", 1: "waiting"}, stop=CANCELLED)).cancel) == 2
    ended = record(many, {0: "cancelled", 1: "cancelled"}, stop=CANCELLED)
    assert decide(ended).end is FlowStatus.CANCELLED
    assert closing(ended, FlowStatus.CANCELLED).failure == CANCELLED


def test_a_comparison_with_a_lane_that_could_not_begin_fails_and_ends():
    pair = flow("compare", "a", "a")

    assert decide(record(pair, {0: "succeeded"}, closed={1: BROKEN})).end is FlowStatus.FAILED
    assert decide(record(pair, {}, closed={0: BROKEN, 1: BROKEN})).end is FlowStatus.FAILED


def test_an_ended_flow_is_left_alone():
    done = record(flow("parallel", "a"), {0: "succeeded"}, status=FlowStatus.SUCCEEDED)

    assert decide(done).end is None


@pytest.mark.parametrize(
    ("prompt", "lane", "unknown"),
    [
        ("{{previous}}", 0, ["{{previous}}"]),
        ("{{previous}}", 1, []),
        ("{{steps.a}}", 1, []),
        ("{{steps.b}}", 1, ["{{steps.b}}"]),
        ("{{steps.c}}", 1, ["{{steps.c}}"]),
        ("{{other}} {previous}", 0, []),
    ],
)
def test_a_placeholder_that_stands_for_nothing_is_found_before_anything_starts(prompt, lane, unknown):
    assert unknown_names(prompt, lane, ("a", "b")) == unknown


def test_filling_in_names_each_answer():
    assert wants("{{previous}} {{steps.a}}", 2, ("a", "b", "")) == [1, 0]
    assert fill("{{previous}}-{{steps.a}}", 2, ("a", "b", ""), {0: "A", 1: "B"}) == "B-A"
