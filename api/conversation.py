"""A conversation as a dialect brings it, made into a prompt with what went before it; pure."""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from shared.errors import InvalidRequest, UnsupportedParameter
from shared.run import Attachment, Turn

_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<more>(?:;[\w.+-]+=[^;,]*)*)(?P<b64>;base64)?,", re.ASCII)

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


class Talk(msgspec.Struct, frozen=True):
    """What a run is given: `history` alternates and begins with the user's turn; `prompt` is the user's last."""

    system: str | None
    history: tuple[Turn, ...]
    prompt: str
    attachments: tuple[Attachment, ...]


class _Open(msgspec.Struct):
    """A turn that more may be said in; its parts are joined once, at its end."""

    role: Literal["user", "assistant"]
    texts: list[str]
    attachments: list[Attachment]

    def closed(self) -> Turn:
        text = "\n\n".join(filter(None, self.texts))
        return Turn(role=self.role, text=text, attachments=tuple(self.attachments))


class Conversation:
    """Gathers turns in their order. Turns of one side that follow each other become one."""

    def __init__(self, history: Sequence[Turn] = ()) -> None:
        self._system: list[str] = []
        self._turns: list[_Open] = [_Open(turn.role, [turn.text], list(turn.attachments)) for turn in history]

    def instruct(self, text: str) -> None:
        """A system or developer text, wherever it stands."""
        if text.strip():
            self._system.append(text)

    def say(self, role: Literal["user", "assistant"], text: str, attachments: Sequence[Attachment] = ()) -> None:
        if not text and not attachments:
            return
        if not self._turns and role == "assistant":
            self._turns.append(_Open("user", ["(The assistant began the conversation.)"], []))
        if not self._turns or self._turns[-1].role != role:
            self._turns.append(_Open(role, [], []))
        last = self._turns[-1]
        last.texts.append(text)
        last.attachments.extend(attachments)

    @property
    def system(self) -> str:
        return "\n\n".join(self._system)

    @property
    def turns(self) -> tuple[Turn, ...]:
        return tuple(turn.closed() for turn in self._turns)

    def finish(self, field: str) -> Talk:
        """Raises: InvalidRequest where there is nothing to answer; `field` is where the turns stood."""
        system = "\n\n".join(self._system) or None
        if not self._turns and system is not None:  # instructions alone are what is asked
            return Talk(None, (), system, ())
        if not self._turns:
            raise InvalidRequest(f"{field} must hold a message of the user", field=field)
        *history, last = self.turns
        if last.role == "assistant":
            raise InvalidRequest(
                f"{field}: the last one must be the user's or a tool's; an answer that is begun cannot be gone on with",
                field=field,
            )
        if not last.text.strip() and not last.attachments:
            raise InvalidRequest(f"{field}: the last one is blank", field=field)
        return Talk(system, tuple(history), last.text, last.attachments)


def attachment(field: str, *, media_type: str, data: str, name: str | None = None) -> Attachment:
    """Raises: InvalidRequest for what is no base64."""
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{field}: not valid base64", field=field) from error
    return Attachment(media_type=media_type.lower(), data=data, name=name, field=field)


def from_url(field: str, url: str, name: str | None = None) -> Attachment:
    """A `data:` URL. Others are not fetched: the gateway calls nobody on a caller's behalf.

    Raises: InvalidRequest, UnsupportedParameter.
    """
    found = _DATA_URL.match(url[:300])
    if found is None:
        raise UnsupportedParameter(
            f"{field}: only `data:` URLs can be carried, not {url[:60]!r}; send the content itself, as base64",
            field=field,
        )
    media_type = found["type"] or "text/plain"
    rest = url[found.end() :]
    if not found["b64"]:
        raise UnsupportedParameter(f"{field}: a `data:` URL must be base64", field=field)
    return attachment(field, media_type=media_type, data=rest, name=name)


def tool_call(name: str, arguments: object, id: str = "") -> str:
    """A call of a client's own tool, as words: no CLI takes them as calls."""
    said = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
    return f"[called the tool {name}{f' ({id})' if id else ''} with {said}]"


def tool_result(text: str, id: str = "") -> str:
    return f"[result of the tool call{f' {id}' if id else ''}]\n{text}"


def effort_of(value: object, field: str) -> str | None:
    """Raises: InvalidRequest."""
    if value is None:
        return None
    if value not in EFFORTS:
        raise InvalidRequest(f"{field} must be one of {', '.join(EFFORTS)}, not {value!r}", field=field)
    return str(value)


def schema_of(value: object, field: str) -> dict[str, Any]:
    """Raises: InvalidRequest for what is no JSON schema of an object."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{field} must be a JSON schema", field=field)
    return dict(value)


def field(data: Mapping[str, Any], name: str, where: str, *, required: bool = True) -> str:
    """A text of a part. Raises: InvalidRequest that names it."""
    value = data.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{name} must be text", field=f"{where}.{name}")
    return value


def unknown_part(where: str, kind: object, known: Sequence[str]) -> InvalidRequest:
    return UnsupportedParameter(
        f"{where}: a part of type {kind!r} cannot be carried; known are {', '.join(known)}", field=where
    )
