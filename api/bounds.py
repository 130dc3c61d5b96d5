"""How much one body may hold: what no honest client reaches, and would stop the loop for all others."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from shared.errors import InvalidRequest
from shared.run import Turn

MOST_VALUES = 200_000  # members and entries of all objects and lists of a body together
MOST_PARTS = 10_000  # messages (items) and content parts together
METADATA_BYTES = 64 << 10
MOST_REPEATED = 32 << 20  # characters of one prompt and system prompt, told once for each backend of a comparison

# Of sound JSON without escaped quotes, up to the next value: strings, and objects and lists that are empty, are stepped
# over whole. No alternative is ever gone back on further than over some blanks. Nothing possessive: Python before 3.11.5
# loses its place in such a group.
_NEXT = re.compile(rb'(?:[^",\[{]+|"[^"]*"|[\[{][ \t\r\n]*[\]}])*(?:([,\[{])|\Z)').finditer

_HOLDERS = ("content", "output", "tool_calls", "source")


def of_values(body: bytes) -> None:
    """Looks at the bytes and makes no objects of them.

    Raises: InvalidRequest for more than MOST_VALUES, msgspec.DecodeError for what is no JSON."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") <= MOST_VALUES:  # those in strings are among them
        return
    msgspec.json.decode(body, type=msgspec.Raw)  # fast; of what is no JSON the scan would take long
    if next(itertools.islice(_values(body), MOST_VALUES, None), None) is not None:
        raise InvalidRequest(
            f"the body holds more than {MOST_VALUES:,} values; its objects and lists may have {MOST_VALUES:,} members "
            "and entries together"
        )


def _values(body: bytes) -> Iterator[re.Match[bytes]]:
    """One for each member and entry."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    return (found for found in _NEXT(plain) if found[1] is not None)


def of_parts(value: object, field: str) -> None:
    """Before they are converted: counts a list of messages or items, and the parts within. Raises: InvalidRequest."""
    count, left = 0, [value]
    while left:
        one = left.pop()
        if isinstance(one, list):
            count += len(one)
            if count > MOST_PARTS:
                raise InvalidRequest(
                    f"{field} has {count:,} messages and content parts or more; at most {MOST_PARTS:,} in all are allowed",
                    field=field,
                )
            left.extend(one)
        elif isinstance(one, dict):
            left.extend(one[name] for name in _HOLDERS if name in one)


def of_metadata(value: object) -> None:
    """Raises: InvalidRequest."""
    size = len(msgspec.json.encode(value))
    if size > METADATA_BYTES:
        raise InvalidRequest(
            f"metadata may have at most {METADATA_BYTES:,} bytes as JSON, not {size:,}", field="metadata"
        )


def of_copies(count: int, texts: Iterable[str | None], field: str) -> None:
    """Each run of a comparison brings its prompt anew to Redis and the workers. Raises: InvalidRequest."""
    size = count * sum(len(text or "") for text in texts)
    if size > MOST_REPEATED:
        raise InvalidRequest(
            f"{field}: the prompts of {count} runs would have {size:,} characters together; at most {MOST_REPEATED:,} "
            "are allowed",
            field=field,
        )


def of_history(turns: Sequence[Turn], kept: str, most: int, field: str) -> None:
    """What earlier requests have brought may be as much as one request may bring itself (`most`), so that a chain of
    responses ends somewhere. Raises: InvalidRequest."""
    size = len(kept) + sum(len(turn.text) + sum(len(one.data) for one in turn.attachments) for turn in turns)
    if size > most or len(turns) > MOST_PARTS:
        raise InvalidRequest(
            f"{field}: the conversation before has {size:,} characters in {len(turns):,} turns; it is gone on with up to "
            f"{most:,} (server.max_request_body_bytes) in {MOST_PARTS:,}",
            field=field,
        )
