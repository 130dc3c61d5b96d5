"""The routes of those who answer for the service: what was used, and who did what."""

import datetime
import re
from collections.abc import Iterable, Mapping
from typing import Any

from litestar import Response, get

from api.context import context_of
from api.exchange import Req, json
from api.native.requests import number, whose
from shared.errors import InvalidRequest, PermissionDenied
from shared.store.usage import Used

_EPOCH = datetime.date(1970, 1, 1)
_DEFAULT_DAYS = 30
_MOST_DAYS = 400
DIMENSIONS: tuple[str, ...] = ("day", "tenant", "key", "backend", "model")
_TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
_ENTRY = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?").fullmatch
_LOOK_AT = 10_000  # entries at most, where a filter passes over them


@get("/usage")
async def read_usage(request: Req) -> Response[bytes]:
    """Days are UTC. Admins see all tenants, others their own."""
    ctx = context_of(request)
    today = datetime.datetime.fromtimestamp(ctx.now(), datetime.UTC).date()
    last = _day(request, "to", today)
    first = _day(request, "from", last - datetime.timedelta(days=_DEFAULT_DAYS - 1))
    if not 0 <= (last - first).days < _MOST_DAYS:
        raise InvalidRequest(f"from {first} to {last} must be 1 to {_MOST_DAYS} days", field="from")
    tenant = whose(request, default_all=True)
    by = _dimensions(request)
    days = range((first - _EPOCH).days, (last - _EPOCH).days + 1)
    used = await ctx.usage.read(days, None if tenant is None else [tenant])
    used = [
        one for one in used if all(_fits(request, name, getattr(one, name)) for name in ("key", "backend", "model"))
    ]
    rows = summed(used, by)
    body = {"from": str(first), "to": str(last), "by": list(by), "usage": rows, "total": _shown(_sum(used))}
    return json(body)


def summed(used: Iterable[Used], by: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each combination of what is asked for, in its order."""
    groups: dict[tuple[Any, ...], list[Used]] = {}
    for one in used:
        groups.setdefault(tuple(getattr(one, name) for name in by), []).append(one)
    rows = []
    for group in sorted(groups):
        row: dict[str, Any] = dict(zip(by, group, strict=True))
        if "day" in row:
            row["day"] = str(_EPOCH + datetime.timedelta(days=row["day"]))
        rows.append({**row, **_shown(_sum(groups[group]))})
    return rows


def _sum(used: Iterable[Used]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in used:
        for name, count in one.measures.items():
            total[name] = total.get(name, 0) + count
    return total


def _shown(sums: Mapping[str, int]) -> dict[str, Any]:
    """`cost_usd` is null where no CLI has reported any."""
    runs = {name: sums.get(name, 0) for name in ("succeeded", "failed", "cancelled")}
    cost = sums.get("cost_microusd")
    return {
        "runs": {"total": sum(runs.values()), **runs},
        "token_usage": {name: sums.get(name, 0) for name in _TOKENS},
        "cost_usd": None if cost is None else cost / 1e6,
        "duration_ms": sums.get("took_ms", 0),
    }


def _day(request: Req, name: str, default: datetime.date) -> datetime.date:
    given = request.query_params.get(name)
    if given is None:
        return default
    try:
        found = datetime.datetime.strptime(given, "%Y-%m-%d").replace(tzinfo=datetime.UTC).date()
    except ValueError:
        found = _EPOCH
    if found.year < 2000:
        raise InvalidRequest(f"{name} must be a day such as 2026-01-31, not {given[:40]!r}", field=name)
    return found


def _dimensions(request: Req) -> tuple[str, ...]:
    given = request.query_params.get("by")
    if given is None:
        return DIMENSIONS
    wanted = [name.strip() for name in given.split(",") if name.strip()]
    if strange := [name for name in wanted if name not in DIMENSIONS]:
        raise InvalidRequest(f"by: {strange[0][:40]!r} is none of {', '.join(DIMENSIONS)}", field="by")
    return tuple(name for name in DIMENSIONS if name in wanted)


def _fits(request: Req, name: str, value: str) -> bool:
    given = request.query_params.get(name)
    return given is None or given == value


@get("/audit")
async def read_audit(request: Req) -> Response[bytes]:
    """For admins; the newest first, a page at a time: `next` is the `before` of the one that follows."""
    if not request.scope["state"].get("admin"):
        raise PermissionDenied("only a key with `role: admin` may read the audit log")
    ctx = context_of(request)
    limit = number(request, "limit", 100, 1, 1000)
    before = request.query_params.get("before")
    if before is not None and not _ENTRY(before):
        raise InvalidRequest(f"before must be the id of an entry, not {before[:40]!r}", field="before")
    shown: list[dict[str, Any]] = []
    looked = 0
    more = True
    while more and len(shown) < limit and looked < _LOOK_AT:
        page = await ctx.audit.read(before=before, count=limit)
        more = len(page) == limit
        for kept in page:
            before, looked, entry = kept.id, looked + 1, kept.entry
            if all(
                _fits(request, name, getattr(entry, name)) for name in ("action", "tenant", "owner", "target", "key")
            ):
                at = datetime.datetime.fromtimestamp(kept.at_s, datetime.UTC).isoformat(timespec="milliseconds")
                about = {name: getattr(entry, name) for name in entry.__struct_fields__}
                shown.append({"id": kept.id, "at": at.replace("+00:00", "Z"), **about})
                if len(shown) == limit:
                    more = True
                    break
    return json({"entries": shown, "next": before if more else None})


handlers = [read_usage, read_audit]
