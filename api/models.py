"""Which backend a model's name stands for, and what its CLI is given as the name; pure."""

import fnmatch
from collections.abc import Mapping, Sequence

import msgspec

from shared.errors import ClinvkError
from shared.routing import KNOWN_BACKENDS


class ModelNotFound(ClinvkError):
    """Only with `strict_models`."""

    code = "model_not_found"


class Route(msgspec.Struct, frozen=True):
    """`model` None: the backend's configured model, or its CLI's own."""

    backend: str
    model: str | None


# Words for people who do not follow the vendors' names, as `claude-fast` or, where the backend is given, `fast`.
TIERS: Mapping[str, Mapping[str, str]] = {
    "claude": {"fast": "haiku", "balanced": "sonnet", "best": "opus"},
    "codex": {"fast": "gpt-6-luna", "balanced": "gpt-6-sol", "best": "gpt-6.1-sol"},
    "gemini": {"fast": "gemini-2.5-flash", "balanced": "gemini-2.5-pro", "best": "gemini-3.1-pro-preview"},
}

# Names that programs still send and no vendor serves any more.
RETIRED: Sequence[tuple[str, str]] = (
    ("claude-sonnet-4", "claude/sonnet"),
    ("claude-opus-4", "claude/opus"),
    ("claude-3*-sonnet*", "claude/sonnet"),
    ("claude-3*-opus*", "claude/opus"),
    ("claude-3*-haiku*", "claude/haiku"),
    ("claude-2*", "claude/sonnet"),
    ("claude-instant*", "claude/haiku"),
    ("gpt-3.5*", "codex"),
    ("gpt-4*", "codex"),
)

_PARTS = (("claude", "claude"), ("gpt", "codex"), ("codex", "codex"), ("gemini", "gemini"))


def route(name: str, *, default: str, aliases: Mapping[str, str], strict: bool = False) -> Route:
    """The table of the compatible surfaces. An alias stands for a backend, `backend/model`, or another name.

    Raises: ModelNotFound with `strict` where nothing but the default would be left.
    """
    target = _alias(name, [*aliases.items(), *RETIRED])
    backend, slash, model = target.partition("/")
    if backend in KNOWN_BACKENDS and (slash or target == backend):
        return Route(backend, of_backend(backend, model) if model else None)
    for backend, tiers in TIERS.items():
        if target.startswith(f"{backend}-") and target[len(backend) + 1 :] in tiers:
            return Route(backend, tiers[target[len(backend) + 1 :]])
    for part, backend in _PARTS:
        if part in target.lower():
            return Route(backend, target)
    if strict:
        raise ModelNotFound(f"the model {name!r} is not known here; GET the list of models for those that are")
    return Route(default, None)


def of_backend(backend: str, model: str | None, aliases: Mapping[str, str] | None = None) -> str | None:
    """The name for a backend that was named apart from it."""
    if model is None or model == backend:
        return None
    target = _alias(model, list((aliases or {}).items()))
    owner, slash, rest = target.partition("/")
    if owner == backend:
        target = rest if slash else ""
    return TIERS.get(backend, {}).get(target, target) or None


def listed(available: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """The names to show: backends that some live worker can run, their tiers, and the operator's aliases for them."""
    names = [*available]
    for backend in available:
        names += [f"{backend}-{tier}" for tier in TIERS.get(backend, {})]
    for name in aliases:
        plain = not any(sign in name for sign in "*?[")
        if plain and route(name, default="", aliases=aliases).backend in available and name not in names:
            names.append(name)
    return names


def _alias(name: str, aliases: Sequence[tuple[str, str]]) -> str:
    exact = dict(reversed(aliases))
    if name in exact:
        return exact[name]
    for pattern, target in aliases:
        if fnmatch.fnmatchcase(name, pattern):
            return target
    return name
