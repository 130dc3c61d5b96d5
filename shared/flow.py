"""A flow: several runs from one request, and the pure decisions about what comes next."""

import enum
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from shared.run import Failure, Outcome, Run, RunSpec, Status

PREVIOUS_FAILED = "previous_failed"
LONGEST_PROMPT = 16 << 20  # characters, once its placeholders are filled in


class FlowStatus(enum.StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # every lane did
    FAILED = "failed"
    CANCELLED = "cancelled"


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. `lanes` are in the order of the request; a chain's prompts are templates until their turn."""

    id: str
    tenant: str
    kind: Literal["parallel", "compare", "chain"]
    lanes: tuple[RunSpec, ...]
    names: tuple[str, ...] = ()  # of a chain's steps; "" for none
    window: int = 1
    fail_fast: bool = False  # parallel: the first failure ends the rest; chain: stop_on_failure
    reply: dict[str, Any] = {}  # what the answer repeats of the request

    @property
    def stand_in(self) -> RunSpec:
        """A flow is followed, and its log ended, as a run's is."""
        return RunSpec(id=self.id, tenant=self.tenant, backend="flow", prompt="")

    @property
    def about(self) -> dict[str, str]:
        """What the log's lines about it carry: its id in the place of a run's, the request and the trace of its lanes."""
        asked = self.lanes[0].about if self.lanes else {}
        return asked | {"run_id": self.id, "tenant": self.tenant}


class FlowRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A flow as the store holds it; `runs` and `closed` are by lane. Times are seconds, by Redis' clock.

    Depending on what it was asked for, the runs are left out, or those that have ended have no outcome."""

    flow: Flow
    status: FlowStatus
    created_at: float
    ended_at: float | None = None
    detached: bool = False
    ends: int = 0  # how many of its runs have ended
    stop: Failure | None = None
    runs: Mapping[int, Run] = {}
    closed: Mapping[int, Failure] = {}  # lanes that got no run
    failure: Failure | None = None  # of the flow itself, once it has ended

    @property
    def left_alone(self) -> bool:
        """It was stopped, since its caller had gone: who asks again wants another one."""
        why = self.failure or self.stop
        return why is not None and why.cause == "hung_up"


class Next(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done now. All of it may be done twice."""

    stop: Failure | None = None  # the flow takes no more runs
    cancel: tuple[Run, ...] = ()
    start: RunSpec | None = None  # a chain's next step
    close: Mapping[int, Failure] = {}
    end: FlowStatus | None = None


FAILED_FAST = Failure("cancelled", "another task of its flow failed (fail_fast)", "failed_fast")


def decide(record: FlowRecord) -> Next:
    """From what is there to what comes next."""
    if record.status is not FlowStatus.RUNNING:
        return Next()
    stop = record.stop or _stops(record)
    living = tuple(run for run in record.runs.values() if not run.status.final)
    if stop is not None:
        missing = {n: stop for n in range(len(record.flow.lanes)) if n not in record.runs and n not in record.closed}
        if living:
            cancel = tuple(run for run in living if run.cancelling is None)
            return Next(stop=stop, cancel=cancel, close=missing)
        return Next(stop=stop, close=missing, end=_status(record, stop))
    if living:
        return Next()
    if record.flow.kind == "chain":
        return _next_step(record)
    return Next(end=_status(record, None))


def _stops(record: FlowRecord) -> Failure | None:
    if not record.flow.fail_fast:
        return None
    failed = [run for run in record.runs.values() if run.status in (Status.FAILED, Status.CANCELLED)]
    if not failed and not record.closed:
        return None
    if record.flow.kind != "chain":
        return FAILED_FAST
    lane = min([run.spec.lane for run in failed] + list(record.closed))
    return Failure("cancelled", f"{_step(record.flow, lane)} failed (stop_on_failure)", "stopped_on_failure")


def _status(record: FlowRecord, stop: Failure | None) -> FlowStatus:
    good = not record.closed and all(run.status is Status.SUCCEEDED for run in record.runs.values())
    if good and len(record.runs) == len(record.flow.lanes):  # whatever was ordered too late
        return FlowStatus.SUCCEEDED
    if stop is not None and stop.code == "cancelled" and stop.cause not in ("failed_fast", "stopped_on_failure"):
        return FlowStatus.CANCELLED
    return FlowStatus.FAILED


def _next_step(record: FlowRecord) -> Next:
    """The next step that can be started; steps before it whose material is missing are closed."""
    close: dict[int, Failure] = {}
    for lane, spec in enumerate(record.flow.lanes):
        if lane in record.runs or lane in record.closed:
            continue
        outputs = _outputs(record)
        for wanted in wants(spec.prompt, lane, record.flow.names):
            if wanted not in outputs:
                message = f"its prompt needs what {_step(record.flow, wanted)} was to answer, which failed"
                close[lane] = Failure("previous_failed", message, PREVIOUS_FAILED)
                break
        else:
            length = len(spec.prompt) + sum(len(outputs[n]) for n in wants(spec.prompt, lane, record.flow.names))
            if length <= LONGEST_PROMPT:
                prompt = fill(spec.prompt, lane, record.flow.names, outputs)
                return Next(close=close, start=msgspec.structs.replace(spec, prompt=prompt))
            message = f"its prompt would have {length} characters; the most is {LONGEST_PROMPT}"
            close[lane] = Failure("request_too_large", message, "prompt_too_large")
        if record.flow.fail_fast:
            break
    if close:  # looked at again with these in place
        return Next(close=close)
    return Next(end=_status(record, None))


def needed(record: FlowRecord) -> set[int]:
    """The lanes whose answers `decide` will look at."""
    flow = record.flow
    if flow.kind != "chain" or record.status is not FlowStatus.RUNNING:
        return set()
    ahead = [n for n in range(len(flow.lanes)) if n not in record.runs and n not in record.closed]
    return {wanted for n in ahead for wanted in wants(flow.lanes[n].prompt, n, flow.names) if wanted in record.runs}


def _outputs(record: FlowRecord) -> dict[int, str]:
    """What the steps that succeeded have answered; a failed step's text is no answer."""
    return {
        lane: run.outcome.output
        for lane, run in record.runs.items()
        if run.status is Status.SUCCEEDED and run.outcome is not None
    }


def _step(flow: Flow, lane: int) -> str:
    name = flow.names[lane] if lane < len(flow.names) else ""
    return f"step {lane + 1}" + (f" ({name})" if name else "")


_PLACEHOLDER = re.compile(r"\{\{\s*(?:(previous)|steps\.([A-Za-z0-9_-]+))\s*\}\}")


def wants(prompt: str, lane: int, names: Sequence[str]) -> list[int]:
    """The lanes whose answers a step's prompt names. Unknown names are found by `unknown_names`."""
    found = []
    for previous, name in _PLACEHOLDER.findall(prompt):
        if previous and lane > 0:
            found.append(lane - 1)
        elif name and name in names[:lane]:
            found.append(names.index(name))
    return found


def unknown_names(prompt: str, lane: int, names: Sequence[str]) -> list[str]:
    """Placeholders that stand for nothing: `{{previous}}` in the first step, steps that do not come before."""
    found = []
    for previous, name in _PLACEHOLDER.findall(prompt):
        if previous and lane == 0:
            found.append("{{previous}}")
        elif name and name not in names[:lane]:
            found.append("{{steps." + name + "}}")
    return found


def fill(prompt: str, lane: int, names: Sequence[str], outputs: Mapping[int, str]) -> str:
    """Placeholders are filled once; what they bring in is never looked at again."""

    def answer(found: "re.Match[str]") -> str:
        return outputs[lane - 1 if found[1] else names.index(found[2])]

    return _PLACEHOLDER.sub(answer, prompt)


def closing(record: FlowRecord, status: FlowStatus) -> Outcome:
    """A flow's own outcome; what its lanes came to stands with them."""
    last_s = max((run.ended_at or 0.0 for run in record.runs.values()), default=0.0)
    took_ms = max(int((last_s - record.created_at) * 1000), 0)
    if status is FlowStatus.SUCCEEDED:
        return Outcome(duration_ms=took_ms)
    if status is FlowStatus.CANCELLED:
        stopped = record.stop or Failure("cancelled", "the flow was cancelled", "cancelled")
        return Outcome(failure=stopped, duration_ms=took_ms)
    bad = sum(run.status is not Status.SUCCEEDED for run in record.runs.values()) + len(record.closed)
    why = f"{bad} of {len(record.flow.lanes)} did not succeed"
    return Outcome(failure=Failure("flow_failed", why, "flow_failed"), duration_ms=took_ms)
