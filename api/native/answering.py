"""How a native run is answered: whole, as a stream, or for now with where to look."""

from functools import partial
from typing import Any

from litestar import Response

from api.errors import RunFailed
from api.exchange import NOBODY, Answer, Exchange, Put, Req, at_once, detached, json, submitted
from api.native.render import Ndjson, Sse
from api.native.wire import answer, view
from shared.run import Run, RunSpec


async def taken(
    request: Req, spec: RunSpec, *, endpoint: str, body: bytes, output_format: str, put: Put | None = None
) -> Answer:
    """Raises: what admission raises. Its answer: RunFailed."""
    if "respond-async" in request.headers.get("prefer", ""):
        run, _ = await detached(request, spec, endpoint=endpoint, body=body, put=put)
        headers = {"location": f"/api/v1/runs/{run.id}", "preference-applied": "respond-async"}
        return at_once(json(view(run), headers, status=202))
    exchange = await submitted(request, spec, endpoint=endpoint, body=body, put=put)
    if "text/event-stream" in request.headers.get("accept", ""):
        return partial(exchange.streamed, Sse(exchange.spec), headers={}, fails=_without_exit)
    if output_format == "stream-json":
        return partial(exchange.streamed, Ndjson(exchange.spec), headers={}, fails=_without_exit)
    return partial(_whole, exchange)


async def _whole(exchange: Exchange) -> Response[Any]:
    ended = await exchange.whole()
    return NOBODY if ended is None else _report(ended)


def _without_exit(run: Run) -> bool:
    return run.outcome is not None and run.outcome.exit_code is None


def _report(run: Run) -> Response[bytes]:
    """200 where the CLI ran, even if it failed: the run was carried out and this is its report."""
    assert run.outcome is not None
    failure = run.outcome.failure
    if failure is not None and run.outcome.exit_code is None:
        raise RunFailed(failure, run.id)
    headers = {}
    if run.outcome.not_enforced:
        headers["x-clinvk-not-enforced"] = ", ".join(run.outcome.not_enforced)
    if run.outcome.model:
        headers["x-clinvk-model"] = run.outcome.model.encode("ascii", "replace").decode()
    return json(answer(run), headers)
