"""A run as Redis holds it, field by field, made into a `Run`."""

from collections.abc import Sequence
from functools import partial

import msgspec

from shared.redis import text
from shared.run import Failure, Outcome, Run, RunSpec, Status
from shared.store.reading import each, reading

_spec = msgspec.json.Decoder(RunSpec)
_outcome = msgspec.json.Decoder(Outcome)
_failure = msgspec.json.Decoder(Failure)

FIELDS: tuple[str, ...] = (
    "status",
    "queue",
    "created",
    "queued",
    "started",
    "ended",
    "host",
    "instance",
    "attempt",
    "seq",
    "detached",
    "cancel",
)


def _seconds(value: bytes | None) -> float | None:
    return None if value is None else int(value) / 1000


def to_order(run_id: str, order: bytes) -> Failure:
    """Of a cancel: that it was ordered is certain, whatever the words."""
    return each(run_id, partial(_failure.decode, order)) or Failure("cancelled", "it was cancelled", "cancelled")


def to_run(id: str, row: Sequence[bytes | None], known: RunSpec | None = None) -> Run | None:
    """`known`: its spec, where the row has neither that nor an outcome. Raises: StoreDamaged."""
    with reading(id):
        return _read(row, known)


def _read(row: Sequence[bytes | None], known: RunSpec | None) -> Run | None:
    status, queue, created, queued, started, ended, host, instance, attempt, seq, detached, cancel = row[:12]
    spec, outcome = (None, None) if known is not None else row[12:]
    if spec is not None:
        known = _spec.decode(spec)
    if status is None or known is None:
        return None
    return Run(
        spec=known,
        status=Status(text(status)),
        queue=text(queue),
        created_at=_seconds(created) or 0.0,
        queued_at=_seconds(queued),
        started_at=_seconds(started),
        ended_at=_seconds(ended),
        host=None if host is None else text(host),
        instance=None if instance is None else text(instance),
        attempt=int(attempt or 0),
        sequence=int(seq or 0),
        detached=detached is not None,
        cancelling=None if cancel is None else _failure.decode(cancel),
        outcome=None if outcome is None else _outcome.decode(outcome),
    )
