"""What every backend does alike with a run's options: the host's defaults, the flags a caller may pass."""

from collections.abc import Sequence

import msgspec

from shared.errors import InvalidRequest, NotEnforceable, UnsupportedParameter
from shared.host import Capabilities
from shared.run import RunSpec
from worker.backends.base import Settings
from worker.backends.turns import attachments, fits

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """A run's options after the host's defaults; "" for: the CLI's own way."""

    model: str | None
    approval: str
    sandbox: str
    max_turns: int | None
    max_tokens: int | None
    system_prompt: str | None
    effort: str | None
    thinking_tokens: int | None


def resolve(spec: RunSpec, settings: Settings, able: Capabilities) -> Options:
    """Raises: InvalidRequest, NotEnforceable, UnsupportedParameter."""
    if not spec.prompt.strip():
        raise InvalidRequest("a prompt must not be blank", field="prompt")
    refuse(spec, able)
    model = spec.model or settings.model
    if model is not None and (model.startswith("-") or "\0" in model):
        raise InvalidRequest(f"a model's name must not begin with '-': {model!r}", field="model")
    found = Options(
        model=None if model == spec.backend else model,
        approval=spec.approval_mode or settings.approval_mode or "",
        sandbox=spec.sandbox_mode or settings.sandbox_mode or "",
        max_turns=spec.max_turns or settings.max_turns,
        max_tokens=spec.max_tokens or settings.max_tokens,
        system_prompt=spec.system_prompt if spec.system_prompt is not None else settings.system_prompt,
        effort=spec.effort,
        thinking_tokens=spec.thinking_tokens,
    )
    held = able.modes.get(found.sandbox)
    if held is None:
        raise NotEnforceable(f"{spec.backend} cannot hold sandbox_mode {found.sandbox!r}", field="sandbox_mode")
    if found.approval and found.approval not in held:
        raise NotEnforceable(
            f"{spec.backend} cannot hold approval_mode {found.approval!r} with sandbox_mode {found.sandbox or 'default'!r}",
            field="approval_mode",
        )
    if found.system_prompt is not None and spec.system_prompt_mode not in able.system_prompt:
        raise UnsupportedParameter(
            f"{spec.backend} cannot {spec.system_prompt_mode} its system prompt", field="system_prompt"
        )
    return found


def refuse(spec: RunSpec, able: Capabilities) -> None:
    """What must not be dropped in silence. Raises: InvalidRequest, UnsupportedParameter."""
    if spec.schema is not None:
        if "schema" not in able.options:
            raise UnsupportedParameter(f"{spec.backend} cannot be held to a schema", field="schema")
        if spec.schema.get("type") != "object":  # vendors refuse it, and not all of them clearly
            raise InvalidRequest("the root of the schema must have the type 'object'", field="schema")
    if spec.effort is not None and "effort" in able.options and spec.effort not in _EFFORTS:
        raise UnsupportedParameter(
            f"{spec.backend} has no effort {spec.effort!r}; it has {', '.join(_EFFORTS)}", field="effort"
        )
    for attachment in attachments(spec):
        if not fits(attachment, able.attachments):
            raise UnsupportedParameter(
                f"{spec.backend} cannot be given {attachment.media_type!r}; it takes "
                + (", ".join(able.attachments) or "no attachments"),
                field=attachment.field,
            )


def extra(spec: RunSpec, settings: Settings, allowed: Sequence[str]) -> tuple[str, ...]:
    """The caller's flags, each a word of its own (`--flag` or `--flag=value`). Raises: UnsupportedParameter."""
    for index, flag in enumerate(spec.extra):
        name, equals, _ = flag.partition("=")
        if not name.startswith("--") or name + equals not in (*allowed, *settings.allow_extra) or "\0" in flag:
            raise UnsupportedParameter(
                f"{flag!r} is not a flag that callers may pass to {spec.backend}; allowed: "
                + (", ".join((*allowed, *settings.allow_extra)) or "none"),
                field=f"extra[{index}]",
            )
    return spec.extra


def lacking(options: Options, able: Capabilities) -> tuple[str, ...]:
    """The plain options asked for that the CLI has nothing for."""
    asked = {
        "max_turns": options.max_turns,
        "max_tokens": options.max_tokens,
        "effort": options.effort,
        "thinking": options.thinking_tokens,
    }
    return tuple(name for name, value in asked.items() if value is not None and name not in able.options)
