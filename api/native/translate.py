"""From a native body to what is asked of a worker; pure."""

from api.native.wire import PromptBody
from shared.errors import InvalidRequest
from shared.run import RunSpec

_MAX_RETRY = 5


def to_spec(
    body: PromptBody, *, model: str | None, run_id: str, session_id: str, tenant: str, request_id: str
) -> RunSpec:
    """Raises: InvalidRequest for values that cannot be meant."""
    for name in ("max_tokens", "max_turns", "timeout_secs"):
        value = getattr(body, name)
        if value is not None and value <= 0:
            raise InvalidRequest(f"{name} must be above 0, not {value}", field=name, issue="must be above 0")
    if not 0 <= body.retry <= _MAX_RETRY:
        raise InvalidRequest(f"retry must be from 0 to {_MAX_RETRY}", field="retry")
    if not body.prompt.strip():
        raise InvalidRequest("prompt must not be blank", field="prompt")
    if body.workdir is not None and (not body.workdir.startswith("/") or "\0" in body.workdir):
        raise InvalidRequest(f"workdir must be an absolute path, not {body.workdir!r}", field="workdir")
    for index, flag in enumerate(body.extra):
        if "\0" in flag:
            raise InvalidRequest("a flag must not hold a NUL", field=f"extra[{index}]")
    return RunSpec(
        id=run_id,
        tenant=tenant,
        backend=body.backend,
        prompt=body.prompt,
        model=model,
        system_prompt=body.system_prompt,
        system_prompt_mode=body.system_prompt_mode,
        workdir=body.workdir,
        add_dirs=tuple(body.add_dirs),
        ephemeral=body.ephemeral,
        session_id=None if body.ephemeral or body.dry_run else session_id,
        approval_mode=body.approval_mode,
        sandbox_mode=body.sandbox_mode,
        max_turns=body.max_turns,
        max_tokens=body.max_tokens,
        extra=tuple(body.extra),
        verbose=body.verbose,
        dry_run=body.dry_run,
        timeout_s=body.timeout_secs,
        retry=body.retry,
        priority=body.priority,
        labels=body.labels,
        metadata=body.metadata,
        request_id=request_id,
        output_format=body.output_format,
    )
