"""Splits a CLI's stdout into JSON objects, whatever the pieces it comes in; no limit to a line's length."""

from typing import Any

import msgspec

_decode = msgspec.json.Decoder().decode


class Lines:
    """`feed` gives the objects that the bytes complete; what is no JSON object is counted, never shown."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.strange = 0  # lines that were no JSON object
        self.last_strange = ""  # the last of them, cut

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        if b"\n" not in data:
            if data:
                self._parts.append(data)
            return []
        head, *rest = data.split(b"\n")
        self._parts.append(head)
        whole = [b"".join(self._parts), *rest[:-1]]
        self._parts = [rest[-1]] if rest[-1] else []
        return [item for line in whole if (item := self._object(line)) is not None]

    def flush(self) -> list[dict[str, Any]]:
        """A last line that lacks its newline."""
        line, self._parts = b"".join(self._parts), []
        item = self._object(line)
        return [] if item is None else [item]

    def _object(self, line: bytes) -> dict[str, Any] | None:
        if not line.strip():
            return None
        try:
            item = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            item = None
        if isinstance(item, dict):
            return item
        self.strange += 1
        self.last_strange = line[:400].decode(errors="replace")
        return None


def text(value: Any) -> str:
    """The value where it is text, else nothing."""
    return value if isinstance(value, str) else ""


def number(value: Any) -> int:
    """A count of tokens or turns; what is none is 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def part(value: Any, *path: str) -> Any:
    """What lies below an object by these keys; None where there is no such thing."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def parts(value: Any) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
