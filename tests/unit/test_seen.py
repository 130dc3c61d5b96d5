"""What an API process sees of itself, and that its log says of which request it speaks."""

import asyncio
import io
import json
import logging
from pathlib import Path

import pytest

from api.layers import RequestIds
from api.seen import Seen
from shared import log
from shared.tally import Tally
from shared.vitals import Watch


class Hosts:
    """Fails in a way that nobody expects, then takes what it is told."""

    def __init__(self):
        self.told = []
        self.came = asyncio.Event()

    async def tell(self, api, vitals, *, life_s):
        if not self.told:
            self.told.append(None)
            raise TypeError("unexpected")
        self.told.append(vitals)
        self.came.set()


def test_what_it_does_not_expect_is_logged_and_it_goes_on(monkeypatch, caplog):
    async def main():
        monkeypatch.setattr("api.seen._TELL_S", 0.01)
        hosts = Hosts()
        seen = Seen(Watch("api", Path("/")))
        keeping = asyncio.create_task(seen.run(Tally(None), hosts, "api_1"))
        with seen.request(), seen.stream():
            await asyncio.wait_for(hosts.came.wait(), 5)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        return hosts.told[-1], seen.vitals(0)

    during, after = asyncio.run(main())

    assert "it goes on" in caplog.text
    assert (during.requests, during.streams) == (1, 1)
    assert (after.requests, after.streams) == (0, 0)
    assert during.rss_bytes > 1 << 20
    assert 0 < during.open_fds <= during.max_fds


@pytest.fixture
def out():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    made = io.StringIO()
    log.start("info", "json", made, process="api")
    yield made
    root.handlers[:], root.level = before
    logging.captureWarnings(capture=False)


def test_what_a_server_logs_of_a_failed_request_says_which_it_was_and_the_next_is_another(out):
    async def app(scope, receive, send):
        if scope["path"] == "/one":
            log.note(tenant="t")
        raise RuntimeError("broken")

    async def served(path):
        scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"x-request-id", path[1:].encode())]}
        try:
            await RequestIds(app)(scope, None, None)
        except RuntimeError:
            logging.getLogger("uvicorn.error").exception(
                "Exception in ASGI application"
            )  # as uvicorn does, in its task
        if path == "/one":  # what is pipelined begins in the task of the one before
            await asyncio.create_task(served("/two"))

    asyncio.run(served("/one"))

    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    told = [(row["request_id"], row.get("tenant")) for row in rows if row["logger"] == "uvicorn.error"]
    assert told == [("one", "t"), ("two", None)]
    assert len({row["trace_id"] for row in rows}) == 2
