"""Logs say what they are about, hold no secret and cannot be forged."""

import asyncio
import io
import json
import logging
import warnings

import pytest

from shared import log

_log = logging.getLogger("clinvk.test")


@pytest.fixture
def started():
    """Starts logging into a text; all is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    quiet = {name: logging.getLogger(name).level for name in log._QUIET}

    def start(level="info", form="json"):
        out = io.StringIO()
        log.start(level, form, out)
        return out

    yield start
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    for name, before in quiet.items():
        logging.getLogger(name).setLevel(before)


def test_a_json_line_holds_its_fields_and_masks_secrets(started):
    out = started(form="auto")

    _log.info("to redis://user:hunter2@host", extra={"request_id": "r1", "h": "Bearer abc", "n": 3})

    row = json.loads(out.getvalue())
    assert (row["message"], row["request_id"], row["h"]) == ("to redis://***@host", "r1", "Bearer ***")
    assert (row["level"], row["logger"], row["n"]) == ("info", "clinvk.test", 3)


@pytest.mark.parametrize(
    "text",
    [
        "rediss://:SECRET-a@h:1/0",
        "redis://u:SECRET/with@signs@h",
        "sentinel://u:SECRET@h1:1;sentinel://u:SECRET@h2:1",
        "unix:///x?password=SECRET&db=1",
        "Authorization: Bearer SECRET",
        "{'authorization': 'bearer SECRET'}",
        "X-Api-Key: SECRET",
        "api_key=SECRET, next",
        "sk-ant-SECRET-012345",
        "key AIzaSECRET0123456789abcdefghijk",
        "ghp_SECRET0123456789",
    ],
)
def test_what_looks_like_a_secret_is_masked(text):
    assert "SECRET" not in log.mask(text)


@pytest.mark.parametrize("text", ["https://host/a@b", "basic facts", "task-force", "a: b", "http://h:80/x"])
def test_what_is_no_secret_is_left(text):
    assert log.mask(text) == text


@pytest.mark.parametrize("unit", ["://:", "://", "://@", "a:b@", "bearer ", "sk-", "token="])
def test_masking_takes_no_longer_than_the_text_is_long(unit):
    text = unit * 20_000  # for hours, if it looked at each end from each beginning

    assert log.mask(text) is not None


def test_a_secret_in_a_traceback_is_masked_in_both_forms(started):
    for form in ("json", "text"):
        out = started(form=form)

        try:
            raise ValueError("redis://u:SECRET@h")
        except ValueError:
            _log.exception("failed")

        assert "SECRET" not in out.getvalue()
        assert "ValueError" in out.getvalue()


def test_lines_say_what_they_are_about_each_task_its_own(started):
    out = started()

    async def one(run_id):
        with log.about(run_id=run_id):
            await asyncio.sleep(0)
            with log.about(request_id="r"):
                _log.info("inner")
            await asyncio.sleep(0)
            _log.info("outer")

    async def both():
        with log.about(tenant="t"):
            await asyncio.gather(one("run_a"), one("run_b"))

    asyncio.run(both())
    _log.info("after")

    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    told = {(row["message"], row.get("run_id"), row.get("request_id"), row.get("tenant")) for row in rows}
    assert told == {
        ("inner", "run_a", "r", "t"),
        ("inner", "run_b", "r", "t"),
        ("outer", "run_a", None, "t"),
        ("outer", "run_b", None, "t"),
        ("after", None, None, None),
    }


def test_a_message_cannot_forge_a_line_or_move_the_cursor(started):
    out = started(form="text")

    _log.info("said %s", "a\nb\r\x1b[2J\x07", extra={"x": "1\n2"})

    assert out.getvalue().count("\n") == 1
    assert "a\\nb\\r\\x1b[2J\\x07" in out.getvalue()


def test_a_message_is_cut_so_that_no_prompt_fills_the_log(started):
    out = started()

    _log.info("x" * 100_000)

    assert len(out.getvalue()) < 10_000


def test_libraries_are_quieter_than_we_are(started):
    out = started("info")

    logging.getLogger("celery.worker").info("celery's info")
    logging.getLogger("uvicorn.access").info("an access")
    logging.getLogger("kombu").warning("kombu's warning")
    _log.info("ours")

    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == ["kombu's warning", "ours"]


def test_warnings_of_python_are_logged(started):
    out = started()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old", stacklevel=1)

    assert "old" in json.loads(out.getvalue())["message"]
