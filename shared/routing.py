"""Which instances can carry out a run, and why none can; pure but for the time of day."""

import fnmatch
import time
from collections.abc import Iterator, Sequence

from shared.errors import (
    BackendLimited,
    BackendNotFound,
    BackendUnavailable,
    ClinvkError,
    InvalidRequest,
    NotEnforceable,
    SessionHostUnavailable,
    TryLater,
    UnsupportedParameter,
)
from shared.host import BackendState, Capabilities, Instance, Readiness
from shared.run import Attachment, RunSpec
from shared.store.hosts import offers

KNOWN_BACKENDS = ("claude", "codex", "gemini", "echo")

Able = tuple[Instance, BackendState]

LANES = {"parallel": "tasks", "chain": "steps", "compare": "backends"}


def named(error: TryLater | InvalidRequest, lanes: str, lane: int) -> ClinvkError:
    """The same refusal, with the lane that it is about."""
    where = f"{lanes}[{lane}]"
    if isinstance(error, InvalidRequest):
        field = f"{where}.{error.field}" if error.field else where
        return type(error)(f"{where}: {error.message}", field=field, issue=error.message)
    return type(error)(f"{where}: {error.message}", retry_after_s=error.retry_after_s)


def has_labels(instance: Instance, spec: RunSpec) -> bool:
    return all(instance.labels.get(key) == value for key, value in spec.labels.items())


def matching(fleet: Sequence[Instance], spec: RunSpec) -> list[Able]:
    """Those that take runs of its backend now and have its labels."""
    return [(instance, state) for instance, state in offers(fleet, spec.backend) if has_labels(instance, spec)]


def fitting(able: Sequence[Able], spec: RunSpec) -> list[Able]:
    """Those that can do and hold all that is asked. Raises: what `check` says of the last one where there is none."""
    fit = []
    refusal: InvalidRequest | None = None
    for instance, state in able:
        try:
            check(spec, state.capabilities)
        except InvalidRequest as error:
            refusal = error
        else:
            fit.append((instance, state))
    if not fit and refusal is not None:
        raise refusal
    return fit


def nobody(fleet: Sequence[Instance], spec: RunSpec) -> ClinvkError:
    """Why no instance takes the run now."""
    known = [s for i in fleet for s in i.backends if s.name == spec.backend]
    if spec.backend not in KNOWN_BACKENDS and not known:
        offered = sorted({s.name for i in fleet for s in i.backends if s.readiness is Readiness.READY})
        return BackendNotFound(
            f"there is no backend {spec.backend!r}; known are {', '.join(KNOWN_BACKENDS)}"
            + (f", offered now: {', '.join(offered)}" if offered else ""),
            field="backend",
        )
    labelled = [(i, s) for i in fleet if has_labels(i, spec) for s in i.backends if s.name == spec.backend]
    limited = [state for _, state in labelled if state.readiness is Readiness.LIMITED]
    if limited:
        return _limited(spec.backend, limited)
    reasons = sorted({state.reason or f"{instance.host} is drained" for instance, state in labelled})
    why = "; ".join(reasons) or ("no live worker offers it" if fleet else "no worker is connected")
    if spec.labels:
        why += f" (asked for labels {spec.labels})"
    return BackendUnavailable(f"backend {spec.backend!r} cannot run now: {why}", retry_after_s=5)


def _limited(backend: str, states: Sequence[BackendState]) -> BackendLimited:
    wait_s = max(min(state.until or 0.0 for state in states) - time.time(), 1.0)
    return BackendLimited(f"{backend}: {states[0].reason}", retry_after_s=wait_s)


def gone(fleet: Sequence[Instance], spec: RunSpec, host: str) -> BackendLimited | SessionHostUnavailable:
    """Why a run whose directory is on a host cannot go on there."""
    here = [(i, s) for i in fleet if i.host == host for s in i.backends if s.name == spec.backend]
    limited = [state for _, state in here if state.readiness is Readiness.LIMITED]
    if limited:
        return _limited(spec.backend, limited)
    what = "the directory of its chain" if spec.session_id is None else f"the session {spec.session_id}"
    why = "which is gone"
    if here:
        instance, state = here[0]
        why = "which is drained" if instance.draining else f"where {spec.backend} cannot run: {state.reason}"
    elif any(instance.host == host for instance in fleet):
        why = f"which has no {spec.backend}"
    return SessionHostUnavailable(f"{what} is on the host {host!r}, {why}", retry_after_s=10)


def common(fleet: Sequence[Instance], lanes: Sequence[RunSpec]) -> tuple[set[str], list[Able]]:
    """The hosts that can carry out all of these, which share a directory, and who can begin there.

    Raises: what says why there is none, with the step that it is about."""
    hosts: set[str] = set()
    first: list[Able] = []
    for number, spec in enumerate(lanes):
        able = matching(fleet, spec)
        if not able:
            error = nobody(fleet, spec)
            raise named(error, "steps", spec.lane) if isinstance(error, TryLater | InvalidRequest) else error
        try:
            fit = fitting(able, spec)
        except InvalidRequest as error:
            raise named(error, "steps", spec.lane) from error
        here = {instance.host for instance, _ in fit}
        if number == 0:
            hosts, first = here, fit
        elif not hosts & here:
            raise BackendUnavailable(
                f"steps[{spec.lane}]: with pass_working_dir all steps run on one host, and no live host can run them "
                f"all: this one ({spec.backend}) can run on {', '.join(sorted(here))}, those before it together only "
                f"on {', '.join(sorted(hosts))}",
                retry_after_s=5,
            )
        hosts = hosts & here
    return hosts, [(instance, state) for instance, state in first if instance.host in hosts]


def check(spec: RunSpec, able: Capabilities) -> None:
    """Refuses what the CLI cannot do or hold. Raises: NotEnforceable, UnsupportedParameter, InvalidRequest."""
    sandbox, approval = spec.sandbox_mode or "", spec.approval_mode or ""
    if sandbox not in able.modes:
        raise NotEnforceable(f"{spec.backend} cannot hold sandbox_mode {sandbox!r}", field="sandbox_mode")
    if approval and approval not in able.modes[sandbox]:
        raise NotEnforceable(
            f"{spec.backend} cannot hold approval_mode {approval!r}"
            + (f" with sandbox_mode {sandbox!r}" if sandbox else "")
            + f"; it can hold {', '.join(able.modes[sandbox]) or 'none'}",
            field="approval_mode",
        )
    if spec.system_prompt is not None and spec.system_prompt_mode not in able.system_prompt:
        raise UnsupportedParameter(
            f"{spec.backend} cannot {spec.system_prompt_mode} its system prompt", field="system_prompt"
        )
    for index, flag in enumerate(spec.extra):
        name, equals, _ = flag.partition("=")
        if name + equals not in able.extra:
            allowed = ", ".join(able.extra) or "none"
            raise UnsupportedParameter(
                f"{flag!r} is not a flag that callers may pass to {spec.backend}; allowed: {allowed}",
                field=f"extra[{index}]",
            )
    if spec.schema is not None and "schema" not in able.options:
        raise UnsupportedParameter(f"{spec.backend} cannot hold its answer to a JSON schema", field="schema")
    for one in attachments(spec):
        if not any(fnmatch.fnmatchcase(one.media_type, pattern) for pattern in able.attachments):
            takes = ", ".join(able.attachments) or "text alone"
            raise UnsupportedParameter(
                f"{one.field}: {spec.backend} cannot take {one.media_type}; it takes {takes}", field=one.field
            )
    if not spec.prompt.strip() and not spec.attachments:
        raise InvalidRequest("a prompt must not be blank", field="prompt")


def attachments(spec: RunSpec) -> Iterator[Attachment]:
    """All that the run brings besides text, in the order of the conversation."""
    for turn in spec.history:
        yield from turn.attachments
    yield from spec.attachments
