"""Writes down who did what to whose: in the audit log that admins read, and as a line of this process' log."""

import ipaddress
import logging

import msgspec

from api.context import context_of
from api.exchange import Req, key_of, request_id_of, tenant_of
from api.limits import client_address
from shared.errors import StoreUnavailable
from shared.store.audit import Entry

_log = logging.getLogger("clinvk.audit")


async def told(request: Req, action: str, target: str, *, owner: str, result: str) -> None:
    """Once it has been done. Where the store is away just then, the line of the log is all there is, and it says so."""
    ctx, key = context_of(request), key_of(request)
    proxies = [ipaddress.ip_network(one, strict=False) for one in ctx.config.server.trusted_proxies]
    entry = Entry(
        action=action,
        target=target,
        owner=owner,
        tenant=tenant_of(request),
        key="" if key is None else key.id,
        address=client_address(request.scope.get("client"), dict(request.scope["headers"]), proxies),
        request_id=request_id_of(request),
        result=result,
    )
    kept = True
    try:
        await ctx.audit.add(entry)
    except StoreUnavailable:
        kept = False
    # `tenant` (who did it) and `request_id` stand on every line already.
    extra = {
        f"audit_{name}": value for name, value in msgspec.structs.asdict(entry).items() if name not in _ON_EACH_LINE
    }
    if target.startswith(("run_", "flow_")):
        extra["run_id"] = target
    _log.log(
        logging.INFO if kept else logging.ERROR,
        "%s %s: %s%s",
        action,
        target,
        result,
        "" if kept else " (the store was away: this line is the only record)",
        extra=extra,
    )


_ON_EACH_LINE = ("tenant", "request_id", "action", "target", "result")
