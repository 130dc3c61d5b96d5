"""Sessions: made with their first run, kept true by every end of a run, listed by last use."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from shared import names
from shared.redis import Scripts, text
from shared.run import RunSpec, Usage
from shared.session import Session
from shared.store.lists import Lists
from shared.store.reading import each, reading

_TITLE_CHARS = 80
_PROMPT_CHARS = 10_000

# What later turns take over from the first, where they do not say otherwise.
KEPT: tuple[str, ...] = (
    "model",
    "system_prompt",
    "system_prompt_mode",
    "workdir",
    "add_dirs",
    "approval_mode",
    "sandbox_mode",
)
KEPT += ("max_turns", "max_tokens", "extra", "labels")


class Chore(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a host is to remove: a deleted session's directory and the CLI's own record, or a flow's directory."""

    backend: str = ""
    session: str = ""
    cli_id: str = ""
    workspace: str = ""


_chore = msgspec.json.Decoder(Chore)


def opening(spec: RunSpec, tags: Sequence[str]) -> dict[str, str]:
    """The fields of a session that begins with this run, as the store keeps them."""
    kept = {name: getattr(spec, name) for name in KEPT if getattr(spec, name)}
    title = " ".join(spec.prompt[:400].split())
    fields: dict[str, Any] = {
        "backend": spec.backend,
        "initial_prompt": spec.prompt[:_PROMPT_CHARS],
        "title": title if len(title) <= _TITLE_CHARS else title[: _TITLE_CHARS - 1] + "…",
        "tags": msgspec.json.encode(list(tags)).decode(),
        "metadata": msgspec.json.encode(spec.metadata).decode(),
        "options": msgspec.json.encode(kept).decode(),
    }
    if spec.workdir:
        fields["working_dir"] = spec.workdir
    if spec.model:
        fields["model"] = spec.model
    return fields


class Sessions:
    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._redis = scripts.redis
        self._lists = Lists(scripts)

    async def get(self, tenant: str | None, id: str) -> Session | None:
        """None for another tenant's; without a tenant whosever it is."""
        fields = await self._redis("HGETALL", names.session(id))
        with reading(id):
            found = _session(id, _pairs(fields))
        return found if found is not None and tenant in (None, found.tenant) else None

    async def starting_with(self, tenant: str, prefix: str) -> list[str]:
        """At most two ids that begin so: one is it, two are too many."""
        low, high = f"[{prefix}", f"[{prefix}\xff"
        found = await self._redis("ZRANGEBYLEX", names.session_ids(tenant), low, high, "LIMIT", 0, 2)
        return [text(id) for id in found]

    async def list_all(
        self, tenants: Sequence[str], *, backend: str | None, status: str | None, limit: int, offset: int
    ) -> tuple[list[Session], int]:
        """The same over several tenants."""
        whose = [names.sessions(tenant, backend or "", status or "") for tenant in tenants]
        found, total = await self._lists.page(whose, limit=limit, offset=offset)
        rows = await self._redis.all([("HGETALL", names.session(one.id)) for one in found]) if found else []
        shown = [each(one.id, partial(_session, one.id, _pairs(row))) for one, row in zip(found, rows, strict=True)]
        return [session for session in shown if session is not None], total

    async def list(
        self, tenant: str, *, backend: str | None, status: str | None, limit: int, offset: int
    ) -> tuple[list[Session], int]:
        """The last used first, and how many there are; one round trip whatever their number."""
        total, rows = await self._scripts("sessions", tenant, backend or "", status or "", offset, limit)
        found = [each(str(row[0]), partial(_listed, row)) for row in rows]
        return [session for session in found if session is not None], int(total)

    async def count(self) -> int:
        return int(await self._redis("ZCARD", names.SESSIONS))

    async def forget(self, id: str, *, idle_since_s: float | None = None) -> Literal["deleted", "active", ""]:
        """Deletes it unless a turn is under way, or it was used after `idle_since_s`; its host then gets a chore."""
        since = "" if idle_since_s is None else int(idle_since_s * 1000)
        reply = text(await self._scripts("forget_session", id, since))
        return "deleted" if reply == "deleted" else "active" if reply == "active" else ""

    async def chore(self, host: str) -> tuple[bytes, Chore] | None:
        """The next one of a host, which stays on its list until it is `done`: it may be done twice."""
        while (found := await self._redis("LINDEX", names.chores(host), -1)) is not None:
            if (chore := each(f"a chore of {host}", partial(_chore.decode, found))) is not None:
                return found, chore
            await self.done(host, found)
        return None

    async def done(self, host: str, chore: bytes) -> None:
        await self._redis("LREM", names.chores(host), -1, chore)


def _pairs(flat: Sequence[bytes]) -> dict[str, str]:
    return {text(flat[i]): text(flat[i + 1]) for i in range(0, len(flat), 2)}


def _listed(row: Sequence[bytes]) -> Session | None:
    return _session(text(row[0]), _pairs(row[1:]))


def _session(id: str, fields: Mapping[str, str]) -> Session | None:
    if "tenant" not in fields:
        return None
    return msgspec.convert(
        {
            "id": id,
            "tenant": fields["tenant"],
            "backend": fields["backend"],
            "created_at": int(fields["created"]) / 1000,
            "last_used": int(fields["last_used"]) / 1000,
            "status": fields["status"],
            "turn_count": int(fields.get("turn_count", 0)),
            "usage": Usage(
                *(int(fields.get(f"{name}_tokens", 0)) for name in ("input", "output", "cached", "reasoning"))
            ),
            "host": fields.get("host"),
            "cli_id": fields.get("cli_id"),
            "working_dir": fields.get("working_dir"),
            "model": fields.get("model"),
            "initial_prompt": fields.get("initial_prompt", ""),
            "title": fields.get("title", ""),
            "tags": msgspec.json.decode(fields.get("tags", "[]")),
            "metadata": msgspec.json.decode(fields.get("metadata", "{}")),
            "options": msgspec.json.decode(fields.get("options", "{}")),
        },
        Session,
    )
