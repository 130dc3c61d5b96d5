"""Logs of every process: JSON lines, or text on a terminal; never a prompt, never a secret.

log.start(config.log.level, config.log.format)          # once, by the process's cli
with log.about(run_id=run.id, tenant=run.spec.tenant):  # every line below it says so, in this task alone
    _log.info("claimed", extra={"attempt": 2})
"""

import contextlib
import contextvars
import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

_about: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("about")

# Libraries that say at info what only their makers want to know.
_QUIET = ("celery", "kombu", "amqp", "redis", "uvicorn", "asyncio", "litestar", "httpx", "httpcore")
_MAX_CHARS = 8_000
_SECRETS = re.compile(
    r"(?<=://)[^/\s'\"]*(?=@)"  # user and password of a URL
    r"|(?<=://)[^\s'\"]*:[^\s'\"]*(?=@)"  # a password with a slash in it
    r"|(?i:(?<=bearer ))[^\s,'\"]+|(?i:(?<=basic ))[\w+/]{8,}={0,2}"
    r"|\b(?:sk|gh[opsu]|github_pat|xox[abp])[-_][\w-]{8,}|\bAIza[\w-]{20,}"  # what vendors' keys look like
    r"|(?i:(?<=password=)|(?<=api_key=)|(?<=api-key: )|(?<=token=)|(?<=secret=))[^\s&,;'\"]+"
)
# A CLI's words must neither forge a line nor move the cursor of whoever reads them.
_CONTROLS = {code: f"\\x{code:02x}" for code in [*range(32), *range(127, 160)] if code != 9} | {10: "\\n", 13: "\\r"}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def mask(text: str) -> str:
    """The last net under secrets: passwords in URLs, bearer tokens, keys of the known vendors."""
    return _SECRETS.sub("***", text)


@contextlib.contextmanager
def about(*, request_id: str | None = None, run_id: str | None = None, tenant: str | None = None) -> Iterator[None]:
    """What the lines logged inside are about, in this task and those it starts."""
    before = _about.get({})
    given = {"request_id": request_id, "run_id": run_id, "tenant": tenant}
    _about.set({**before, **{name: value for name, value in given.items() if value is not None}})
    try:
        yield
    finally:
        _about.set(before)


class _About(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in _about.get({}).items():
            record.__dict__.setdefault(name, value)
        return True


def _message(record: logging.LogRecord) -> str:
    text = mask(record.getMessage())
    return text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + f"... ({len(text)} characters)"


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name: value if isinstance(value, int | float | None) else mask(str(value))
        for name, value in vars(record).items()
        if name not in _STANDARD
    }


class Text(logging.Formatter):
    """`14:03:12 info    worker.runner: claimed  run_id=run_4k2m attempt=2`"""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{at} {record.levelname.lower():7} {record.name}: {_message(record)}"
        extras = " ".join(f"{name}={value}" for name, value in _extras(record).items())
        line = (line + "  " + extras if extras else line).translate(_CONTROLS)
        if record.exc_info:
            lines = mask(self.formatException(record.exc_info)).splitlines()
            line += "".join("\n  " + one.translate(_CONTROLS) for one in lines)
        return line


class Json(logging.Formatter):
    """One object a line: time, level, logger, message, what it is about, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        row = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **_extras(record),
        }
        if record.exc_info:
            row["exception"] = mask(self.formatException(record.exc_info))
        return json.dumps(row, ensure_ascii=False)


def start(level: str, form: str, stream: TextIO | None = None) -> None:
    """Once a process, by its cli. `form`: auto, text or json."""
    out = stream or sys.stderr
    handler = logging.StreamHandler(out)
    handler.addFilter(_About())
    handler.setFormatter(Text() if form == "text" or (form == "auto" and out.isatty()) else Json())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    for name in _QUIET:
        # One step quieter than ours, but an error is never kept back.
        quieter = logging.INFO if root.level <= logging.DEBUG else max(logging.WARNING, root.level)
        logging.getLogger(name).setLevel(quieter)
