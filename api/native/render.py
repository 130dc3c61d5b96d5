"""The unified events as NDJSON or SSE."""

import time
from collections.abc import Sequence

from api.stream import Renderer, one_line
from shared.errors import ClinvkError
from shared.event import Error, encode
from shared.run import RunSpec


class Ndjson(Renderer):
    media_type = "application/x-ndjson"

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec

    def events(self, lines: Sequence[bytes], first: int) -> bytes:  # noqa: ARG002  # the lines hold their sequences
        return one_line(b"\n".join(lines)) + b"\n"

    def heartbeat(self) -> bytes:
        return b"\n"

    def broken(self, error: ClinvkError, sequence: int) -> bytes:
        line = encode(
            Error(error.code, error.message),
            backend=self._spec.backend,
            session_id=self._spec.session_id or "",
            sequence=sequence,
            at_s=time.time(),
        )
        return self.events([line], sequence)


class Sse(Ndjson):
    """The sequence is the id, for `Last-Event-ID`."""

    media_type = Renderer.media_type

    def events(self, lines: Sequence[bytes], first: int) -> bytes:
        parts = [
            b"id: %d\nevent: %s\ndata: %s\n\n" % (first + i, _type(line), one_line(line))
            for i, line in enumerate(lines)
        ]
        return b"".join(parts)

    def heartbeat(self) -> bytes:
        return b": keep-alive\n\n"


class FlowNdjson(Ndjson):
    """The events of all runs of a flow, each with its lane and run: `{"lane","run_id","event"}`; at last the flow's own
    `done` or `error`."""


class FlowSse(Sse, FlowNdjson):
    """The same; the ids count within the flow."""


def _type(line: bytes) -> bytes:
    if line.startswith(b'{"lane":'):
        return b"lane"
    return line[9 : line.index(b'"', 9)]  # behind {"type":"
