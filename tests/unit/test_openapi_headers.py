"""The headers of answers, as the document tells of them: `tests/system/test_contract.py` holds the service to it."""

import datetime

from api import openapi
from api.deprecation import Deprecated
from api.openapi_headers import OF_200, OF_202
from api.openapi_routes import OPERATIONS

ROW = Deprecated(since=datetime.date(2026, 1, 2), sunset=datetime.date(2026, 7, 3), successor="/api/v2/things")


def test_whatever_the_document_refers_to_is_there_and_nothing_else_is():
    document = openapi.document()
    text = str(document)

    for kind, found in document["components"].items():
        for name in found if kind in ("headers", "responses") else ():
            used = f"'#/components/{kind}/{name}'" in text
            # A header is there in both ways, whichever of them is in use.
            assert used or kind == "headers", name
    known = {f"#/components/{kind}/{name}" for kind, found in document["components"].items() for name in found}
    referred = {part.split("'")[0] for part in text.split("'$ref': '")[1:]}
    assert referred <= known


def test_headers_are_told_of_routes_that_there_are():
    ids = {one.id for one in OPERATIONS}

    assert set(OF_200) | set(OF_202) <= ids
    assert set(OF_202) <= {one.id for one in OPERATIONS if one.accepted}


def test_a_route_on_its_way_out_says_so_in_each_of_its_answers():
    operation = next(one for one in OPERATIONS if one.id == "get-run")

    told = openapi._described(operation, {("GET", operation.path): ROW})["responses"]

    for status, answer in told.items():
        maybe = "-if-any" if status in ("408", "431") else ""
        for name in ("Deprecation", "Sunset", "Link"):
            assert answer["headers"][name] == {"$ref": f"#/components/headers/{name}{maybe}"}
    assert "Deprecation" not in str(openapi._described(operation, {})["responses"])
