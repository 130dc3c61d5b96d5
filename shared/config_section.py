"""What the configuration's tree is made of: sections, and keys that say who reads them and what they mean."""

from typing import Annotated, Any

import msgspec

from shared.log import mask


def key(doc: str, *, by: str = "both", right: str = "", pending: bool = False, secret: bool = False) -> msgspec.Meta:
    """`by`: api, worker or both. `right`: what a value must be, where the type does not say it well enough.

    `pending`: accepted, but not in force in this version.
    """
    return msgspec.Meta(description=doc, extra={"by": by, "right": right, "pending": pending, "secret": secret})


YEAR_S = 31_536_000
# No wait is endless, and none so long that a sum of times in milliseconds leaves what Redis' Lua can count.
Seconds = Annotated[float, msgspec.Meta(ge=0.1, le=YEAR_S)]
SecondsOrNone = Annotated[float, msgspec.Meta(ge=0, le=YEAR_S)]
MANY = 1_000_000_000
Count = Annotated[int, msgspec.Meta(ge=1, le=MANY)]
COUNT = "0 or a whole number above it"
Text = Annotated[str, msgspec.Meta(min_length=1)]
Variable = Annotated[str, msgspec.Meta(pattern=r"^[^=\x00]+$")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    def __repr__(self) -> str:
        return f"{type(self).__name__}({masked(self)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return list(masked(self).items())


def meta(annotated: Any) -> msgspec.Meta:
    metas: tuple[msgspec.Meta, ...] = annotated.__metadata__
    return next(meta for meta in metas if meta.extra)


def masked(section: msgspec.Struct) -> dict[str, Any]:
    """The tree as plain data with every secret hidden; an URL keeps what is no secret."""
    shown: dict[str, Any] = {}
    for field in msgspec.structs.fields(section):
        value = getattr(section, field.name)
        if isinstance(value, msgspec.Struct):
            shown[field.name] = masked(value)
        elif field.name == "backends":
            shown[field.name] = {name: masked(backend) for name, backend in value.items()}
        elif not (meta(field.type).extra or {})["secret"] or not value:
            shown[field.name] = msgspec.to_builtins(value)
        elif isinstance(value, dict):
            shown[field.name] = dict.fromkeys(value, "***")
        elif isinstance(value, list):
            shown[field.name] = ["***"] * len(value)
        else:
            shown[field.name] = mask(value) if "://" in value else "***"
    return shown
