"""Every key of the configuration as a table: what the reference shows, and the type a value is converted to."""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.inspect import DictType, FloatType, IntType, ListType, LiteralType, Metadata, StrType, UnionType, type_info

from shared.config import BACKEND_NAMES, BackendConfig, Config
from shared.config_section import MANY, Section, meta

IGNORED = frozenset(
    {
        "session.auto_resume",
        "output.show_tokens",
        "output.show_timing",
        "output.color",
        "parallel.aggregate_output",
        "unified_flags.output_format",
    }
)
"""Keys of clinvoker, the program that this one follows, that mean nothing here: accepted with a warning."""


class Key(msgspec.Struct, frozen=True):
    """One key: what the reference shows, and the type its value is converted to."""

    path: str
    default: Any
    doc: str
    by: str
    right: str  # what a value must be, in words
    pending: bool
    secret: bool
    kind: Any  # the type its value is converted to

    @property
    def forms(self) -> frozenset[type]:
        """Of str, list and dict those that a value may be."""
        forms = {StrType: str, ListType: list, DictType: dict}
        return frozenset(forms[type(part)] for part in _parts(type_info(self.kind)) if type(part) in forms)

    def meant(self, value: Any) -> Any:
        """YAML takes an `off` without quotes for false."""
        words = [word for part in _parts(type_info(self.kind)) if isinstance(part, LiteralType) for word in part.values]
        return "off" if value is False and "off" in words else value


def keys() -> list[Key]:
    """Every key, in the order of the tree; `NAME` stands for a backend's."""
    return list(_keys(Config, "", ("NAME",)))


def all_keys() -> dict[str, Key]:
    """By path, with each backend's own."""
    return {entry.path: entry for entry in _keys(Config, "", BACKEND_NAMES)}


def _keys(kind: type[msgspec.Struct], prefix: str, backends: tuple[str, ...]) -> Iterator[Key]:
    for field in msgspec.structs.fields(kind):
        path = prefix + field.name
        if field.name == "backends":
            for name in backends:
                yield from _keys(BackendConfig, f"{path}.{name}.", ())
        elif isinstance(field.type, type) and issubclass(field.type, Section):
            yield from _keys(field.type, path + ".", ())
        else:
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            about = meta(field.type)
            extra: dict[str, Any] = about.extra or {}
            right = extra["right"] or _right(type_info(field.type))
            doc = about.description or ""
            yield Key(path, default, doc, extra["by"], right, extra["pending"], extra["secret"], field.type)


def _parts(info: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    """The types that a value may have, without null."""
    if isinstance(info, Metadata):
        return _parts(info.type)
    if isinstance(info, UnionType):
        return [part for kind in info.types for part in _parts(kind)]
    return [] if isinstance(info, msgspec.inspect.NoneType) else [info]


def _right(info: msgspec.inspect.Type) -> str:
    words = []
    for part in _parts(info):
        match part:
            case IntType(ge=low, le=high):
                words.append("a whole number" + _range(low, high))
            case FloatType(ge=low, gt=above, le=high):
                words.append("a number" + (_range(low, high) if above is None else f" above {above:g}"))
            case LiteralType(values=values):
                words.append("one of " + ", ".join(map(str, values)))
            case ListType():
                words.append("a list of texts")
            case DictType():
                words.append("names with their texts (put numbers, yes and no in quotes)")
            case StrType():
                words.append("text")
            case _:
                words.append("true or false")
    return " or ".join(words)


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f" from {low:g}" if high == MANY else f" from {low:g} to {high}"
