"""From a native body to what is asked of a worker; pure."""

from api import bounds
from api.native.wire import PromptBody
from shared.errors import InvalidRequest
from shared.run import MOST_DIRS, PATH_BYTES, RunSpec

_MAX_RETRY = 5
_MOST_FLAGS = 256
_FLAG_CHARS = 4096
_NAME_CHARS = 200


def to_spec(
    body: PromptBody, *, model: str | None, run_id: str, session_id: str, tenant: str, request_id: str
) -> RunSpec:
    """Raises: InvalidRequest for values that cannot be meant."""
    _bounds(body)
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


def _bounds(body: PromptBody) -> None:
    """What no real request passes, and a worker would look at for long. Raises: InvalidRequest."""
    bounds.of_metadata(body.metadata)
    for name, value in (("backend", body.backend), ("model", body.model)):
        if value is not None and (len(value) > _NAME_CHARS or not value.isprintable()):
            raise InvalidRequest(f"{name} must be a name of at most {_NAME_CHARS} printable characters", field=name)
    for name, count, most in (("add_dirs", len(body.add_dirs), MOST_DIRS), ("extra", len(body.extra), _MOST_FLAGS)):
        if count > most:
            raise InvalidRequest(f"{name} may have at most {most} entries, not {count}", field=name)
    paths = [("workdir", body.workdir or ""), *((f"add_dirs[{i}]", path) for i, path in enumerate(body.add_dirs))]
    for name, path in paths:
        if len(path.encode("utf-8", "replace")) >= PATH_BYTES:
            raise InvalidRequest(f"{name} must be a path of fewer than {PATH_BYTES} bytes", field=name)
    for index, flag in enumerate(body.extra):
        if len(flag) > _FLAG_CHARS:
            raise InvalidRequest(f"a flag may have at most {_FLAG_CHARS} characters", field=f"extra[{index}]")
