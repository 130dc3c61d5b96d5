"""Flows made of native bodies, and shown in the ancestor's shapes; pure."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from api import bounds
from api.models import of_backend
from api.native.translate import to_spec
from api.native.wire import ChainBody, CompareBody, LaneResult, ParallelBody, PromptBody, StepBody, answer, known
from shared.errors import InvalidRequest, PermissionDenied, UnsupportedParameter
from shared.flow import Flow, FlowRecord, unknown_names
from shared.run import Failure, RunSpec

MOST_LANES = 1000

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch
_SESSION = re.compile(r"\{\{\s*session\s*\}\}").search


class Maker:
    """Makes the runs of a flow, all of one tenant and one request."""

    def __init__(
        self,
        flow_id: str,
        tenant: str,
        request_id: str,
        aliases: Mapping[str, str],
        grant: Callable[[RunSpec], RunSpec] = lambda spec: spec,
    ) -> None:
        self.flow_id = flow_id
        self.tenant = tenant
        self._request_id = request_id
        self._aliases = aliases
        self._grant = grant

    def spec(self, body: PromptBody, lane: int, where: str, *, dry_run: bool, workspace: str | None = None) -> RunSpec:
        """Raises: InvalidRequest, PermissionDenied, the field below `where`."""
        body.ephemeral = True
        body.dry_run = body.dry_run or dry_run
        try:
            spec = to_spec(
                body,
                model=of_backend(body.backend, body.model, self._aliases),
                run_id=f"run_{self.flow_id.removeprefix('flow_')}-{lane}",
                session_id="",
                tenant=self.tenant,
                request_id=self._request_id,
            )
            spec = self._grant(spec)
        except InvalidRequest as error:
            raise below(error, where) from error
        except PermissionDenied as error:
            field = f"{where}.{error.details.get('field', '')}".rstrip(".")
            raise PermissionDenied(f"{where}: {error.message}", details={**error.details, "field": field}) from error
        return msgspec.structs.replace(spec, flow_id=self.flow_id, lane=lane, workspace=workspace)


def below(error: InvalidRequest, where: str) -> InvalidRequest:
    """The same refusal, its field named as the caller wrote it."""
    field = f"{where}.{error.field}" if error.field else where
    return type(error)(f"{where}: {error.message}", field=field, issue=error.message)


def parallel(body: ParallelBody, make: Maker, *, window: int, most: int, fail_fast: bool) -> Flow:
    """Raises: InvalidRequest."""
    _bounds(body.tasks, "tasks")
    if body.max_parallel is not None and body.max_parallel < 1:
        raise InvalidRequest("max_parallel must be above 0", field="max_parallel")
    lanes = []
    for lane, task in enumerate(body.tasks):
        where = f"tasks[{lane}]"
        lanes.append(make.spec(known(task, PromptBody, where), lane, where, dry_run=body.dry_run))
    return Flow(
        id=make.flow_id,
        tenant=make.tenant,
        kind="parallel",
        lanes=tuple(lanes),
        window=min(body.max_parallel or window, most),
        fail_fast=fail_fast if body.fail_fast is None else body.fail_fast,
    )


def chain(body: ChainBody, make: Maker) -> Flow:
    """Raises: InvalidRequest, UnsupportedParameter."""
    for name in ("pass_session_id", "persist_sessions"):
        if getattr(body, name):
            raise UnsupportedParameter(f"{name}: the runs of a chain keep no session; use /sessions", field=name)
    _bounds(body.steps, "steps")
    steps = [known(step, StepBody, f"steps[{lane}]") for lane, step in enumerate(body.steps)]
    names = tuple(step.name for step in steps)
    workspace = make.flow_id if body.pass_working_dir else None
    lanes = []
    for lane, step in enumerate(steps):
        where = f"steps[{lane}]"
        if step.name and not _NAME(step.name):
            raise InvalidRequest(
                f"{where}.name: {step.name!r} must be of letters, digits, - and _", field=f"{where}.name"
            )
        if step.name and names.index(step.name) != lane:
            raise InvalidRequest(f"{where}.name: {step.name!r} stands twice", field=f"{where}.name")
        if _SESSION(step.prompt):
            raise UnsupportedParameter(f"{where}.prompt: {{{{session}}}} is not offered", field=f"{where}.prompt")
        if strange := unknown_names(step.prompt, lane, names):
            raise InvalidRequest(
                f"{where}.prompt: {strange[0]} stands for nothing; a step may name {{{{previous}}}} and steps before it",
                field=f"{where}.prompt",
            )
        lanes.append(make.spec(step, lane, where, dry_run=body.dry_run, workspace=workspace))
    return Flow(
        id=make.flow_id,
        tenant=make.tenant,
        kind="chain",
        lanes=tuple(lanes),
        names=names,
        fail_fast=body.stop_on_failure,
    )


def compare(body: CompareBody, make: Maker, *, most: int) -> Flow:
    """Raises: InvalidRequest."""
    _bounds(body.backends, "backends")
    bounds.of_copies(len(body.backends), (body.prompt, body.system_prompt), "backends")
    if not body.prompt.strip():
        raise InvalidRequest("prompt must not be blank", field="prompt")
    lanes = []
    for lane, entry in enumerate(body.backends):
        where = f"backends[{lane}]"
        if isinstance(entry, str):
            backend, _, model = entry.partition("/")
        else:
            if strange := set(entry) - {"backend", "model"}:
                raise InvalidRequest(f"{where}: unknown field {min(strange)!r}", field=f"{where}.{min(strange)}")
            backend, model = entry.get("backend", ""), entry.get("model", "")
        if not backend or (isinstance(entry, str) and entry.endswith("/")):
            raise InvalidRequest(f"{where} must be a backend, or backend/model, not {entry!r}", field=where)
        task = PromptBody(
            backend=backend,
            prompt=body.prompt,
            model=model or body.model,
            workdir=body.workdir,
            system_prompt=body.system_prompt,
            approval_mode=body.approval_mode,
            sandbox_mode=body.sandbox_mode,
            timeout_secs=body.timeout_secs,
        )
        lanes.append(make.spec(task, lane, where, dry_run=body.dry_run))
    return Flow(
        id=make.flow_id,
        tenant=make.tenant,
        kind="compare",
        lanes=tuple(lanes),
        window=1 if body.sequential else min(len(lanes), most),
        reply={"prompt": body.prompt, "backends": [lane.backend for lane in lanes]},
    )


def _bounds(items: list[Any], name: str) -> None:
    if not 1 <= len(items) <= MOST_LANES:
        raise InvalidRequest(f"{name} must hold 1 to {MOST_LANES} entries, not {len(items)}", field=name)


def shown(record: FlowRecord) -> dict[str, Any]:
    """The answer of a flow, ended or not."""
    results = [result(record, lane) for lane in range(len(record.flow.lanes))]
    good = sum(one.status == "succeeded" for one in results)
    bad = sum(one.status in ("failed", "cancelled") for one in results)
    took = ((record.ended_at or record.created_at) - record.created_at) * 1000
    about: dict[str, Any] = {"flow_id": record.flow.id, "kind": record.flow.kind, "status": record.status.value}
    match record.flow.kind:
        case "parallel":
            cancelled = sum(one.status == "cancelled" for one in results)
            about |= {"total_tasks": len(results), "completed": good, "failed": bad, "cancelled": cancelled}
        case "chain":
            failed = next((one.step for one in results if one.status in ("failed", "cancelled")), 0)
            about |= {"total_steps": len(results), "completed_steps": good, "failed_step": failed}
        case "compare":
            about |= {"prompt": record.flow.reply["prompt"], "backends": record.flow.reply["backends"]}
    return {**about, "results": results, "total_duration_ms": int(took)}


def result(record: FlowRecord, lane: int) -> LaneResult:
    spec = record.flow.lanes[lane]
    run = record.runs.get(lane)
    chain_ = record.flow.kind == "chain"
    base: dict[str, Any] = {"index": lane, "backend": spec.backend, "model": spec.model}
    if chain_:
        base |= {"step": lane + 1, "name": record.flow.names[lane] or None}
    if run is None:
        failure = record.closed.get(lane)
        if failure is None:
            return LaneResult(**base, status="waiting")
        return LaneResult(**base, **_failed(failure))
    base |= {"run_id": run.id}
    if run.outcome is None:
        return LaneResult(**base, status=run.status.value)
    told = answer(run)
    return LaneResult(
        **base,
        status=run.status.value,
        exit_code=told.exit_code,
        duration_ms=told.duration_ms,
        output=told.output,
        error=told.error,
        error_code=told.error_code,
        error_cause=told.error_cause,
        token_usage=told.token_usage,
    )


def _failed(failure: Failure) -> dict[str, Any]:
    status = "cancelled" if failure.code == "cancelled" else "failed"
    return {"status": status, "error": failure.message, "error_code": failure.code, "error_cause": failure.cause}
