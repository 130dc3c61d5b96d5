"""Routes on their way out say so in every answer and in the document."""

import asyncio
import datetime

import pytest
from litestar import Litestar, get

from api import openapi
from api.deprecation import TABLE, Deprecated, Deprecations
from api.openapi_routes import OPERATIONS

ROW = Deprecated(since=datetime.date(2026, 1, 2), sunset=datetime.date(2026, 7, 3), successor="/api/v2/things/{id}")


@get("/things/{id:str}", sync_to_thread=False)
def thing(id: str) -> str:
    if id == "broken":
        raise ValueError
    return id


def answered(method: str, path: str) -> tuple[int, dict[str, str]]:
    app = Deprecations(Litestar([thing], openapi_config=None, logging_config=None), {("GET", "/things/{id}"): ROW})
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "headers": [],
        "query_string": b"",
    }
    scope |= {"server": ("h", 1), "client": ("c", 1), "scheme": "http", "http_version": "1.1", "root_path": ""}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.mark.filterwarnings(
    "ignore:.*deprecated inferred style"
)  # how Litestar would rather be told of path parameters
@pytest.mark.parametrize(("path", "status"), [("/things/x", 200), ("/things/broken", 500)])
def test_every_answer_of_the_route_says_since_when_until_when_and_what_instead(path, status):
    found, headers = answered("GET", path)

    assert found == status
    assert headers["deprecation"] == "@1767312000"
    assert headers["sunset"] == "Fri, 03 Jul 2026 00:00:00 GMT"
    assert headers["link"] == '</api/v2/things/{id}>; rel="successor-version"'


@pytest.mark.filterwarnings("ignore:.*deprecated inferred style")  # as above
def test_other_routes_say_nothing():
    assert "deprecation" not in answered("GET", "/nothing")[1]


@pytest.mark.parametrize(
    ("path", "told"),
    [("/things/x", True), ("/things/new", False), ("/things/x/y", False), ("/files/a/b", True), ("/thingsxx", False)],
)
def test_who_is_refused_before_the_route_is_told_too(path, told):
    async def refused(scope, receive, send):
        await send({"type": "http.response.start", "status": 401, "headers": []})

    table = {("GET", "/things/{id}"): ROW, ("GET", "/files/{name}"): ROW}
    layer = Deprecations(refused, table, ["/things/{id:str}", "/things/new", "/files/{name:path}"])
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(layer({"type": "http", "method": "GET", "path": path}, None, send))

    assert (b"deprecation" in dict(sent[0]["headers"])) == told


def test_the_document_marks_the_operation():
    operation = OPERATIONS[0]

    told = openapi._described(operation, {(operation.method.upper(), operation.path): ROW})

    assert told["deprecated"] is True
    assert "Deprecated since 2026-01-02. It may be gone from 2026-07-03 on." in told["description"]
    assert "deprecated" not in openapi._described(operation)


def test_every_row_of_the_table_is_a_route_and_stays_for_six_months():
    routes = {(one.method.upper(), one.path) for one in OPERATIONS}

    assert set(TABLE) <= routes
    assert all(row.sunset is None or (row.sunset - row.since).days >= 180 for row in TABLE.values())
