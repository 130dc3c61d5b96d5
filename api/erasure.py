"""Leaves nothing of a run or a flow: in the store at once, on the host that carried it out by a chore."""

import asyncio
import contextlib

from api import audit
from api.context import Context, context_of
from api.exchange import Req
from shared.dispatch import CANCELLED
from shared.errors import Conflict, LogExpired
from shared.flow import Flow, FlowStatus
from shared.run import Run

_END_WITHIN_S = 10.0  # how long a cancel is waited for


async def settled(ctx: Context, id: str) -> None:
    """Waits for the end of a run or a flow that was told to end, as long as that may take."""
    follower = await ctx.relay.follow(id, 0)
    try:
        with contextlib.suppress(TimeoutError, LogExpired):
            async with asyncio.timeout(_END_WITHIN_S):
                while not follower.ended:
                    await follower.next(_END_WITHIN_S)
    finally:
        await ctx.release(follower)


async def erase_run(request: Req, run: Run) -> None:
    """Ends it first, where it has not ended. A session cannot forget one of its turns, so it goes with it.

    Raises: Conflict where it still ends, where another turn of its session is under way, or for a run of a flow."""
    ctx, flow_id, session_id = context_of(request), run.spec.flow_id, run.spec.session_id
    if flow_id is not None:
        raise Conflict(
            f"the run {run.id} is part of the flow {flow_id}, whose other runs and log hold its text too; erase all of it: "
            f"DELETE /api/v1/flows/{flow_id}?erase=true"
        )
    if not run.status.final:
        await ctx.dispatch.cancel(run)
        await settled(ctx, run.id)
        run = await ctx.runs.get(run.id) or run
        if not run.status.final:
            raise Conflict(f"the run {run.id} still ends; ask again in a moment")
    if session_id is not None:
        how = await ctx.sessions.forget(session_id)
        if how == "active":
            raise Conflict(f"another turn of the session {session_id} is under way; cancel its run first")
        if how == "deleted":
            await audit.told(request, "session.delete", session_id, owner=run.spec.tenant, result="deleted")
    await ctx.runs.forget(run.id)
    await audit.told(request, "run.erase", run.id, owner=run.spec.tenant, result="erased")


async def erase_flow(request: Req, flow: Flow) -> None:
    """All its runs with it. Raises: Conflict where it still ends."""
    ctx = context_of(request)
    record = await ctx.flows.head(flow.id)
    if record is not None and record.status is FlowStatus.RUNNING:
        await ctx.dispatch.cancel_flow(flow.id, CANCELLED)
        await settled(ctx, flow.id)
    if not await ctx.flows.forget(flow):
        raise Conflict(f"the flow {flow.id} still ends; ask again in a moment")
    await audit.told(request, "flow.erase", flow.id, owner=flow.tenant, result="erased")
