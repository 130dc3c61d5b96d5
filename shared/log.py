"""Logs of every process: JSON lines, or text on a terminal; never a prompt, never a secret.

log.start(config.log.level, config.log.format, process="api")  # once, by the process's cli
with log.about(**spec.about):  # every line below it says so, in this task and those it starts
    _log.info("claimed", extra={"attempt": 2})
log.begin(request_id=id)  # the same for a whole task, such as a request's
log.note(run_id=run.id)  # what is only known further down
"""

import contextlib
import contextvars
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal, TextIO

_about: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("about")

# Libraries that say at info what only their makers want to know.
_QUIET: tuple[str, ...] = ("celery", "kombu", "amqp", "redis", "uvicorn", "asyncio", "litestar", "httpx", "httpcore")
_QUIET = (*_QUIET, "urllib3", "opentelemetry")
_MAX_CHARS = 8_000
_MASKED_CHARS = 64_000  # what is looked at of a line; no pattern may take longer than its length
_URL = re.compile(r"://(?:(?!://)[^\s'\"])+")
_SECRETS = re.compile(
    r"(?i:(?<=bearer ))[^\s,'\"]+|(?i:(?<=basic ))[\w+/]{8,}={0,2}"
    r"|\b(?:sk|gh[opsu]|github_pat|xox[abp])[-_][\w-]{8,}|\bAIza[\w-]{20,}"  # what vendors' keys look like
    r"|(?i:(?<=password=)|(?<=api_key=)|(?<=api-key: )|(?<=token=)|(?<=secret=))[^\s&,;'\"]+"
)
# A CLI's words must neither forge a line nor move the cursor of whoever reads them.
_CONTROLS = {code: f"\\x{code:02x}" for code in [*range(32), *range(127, 160)] if code != 9} | {10: "\\n", 13: "\\r"}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "process_kind", "color_message"}


def mask(text: str) -> str:
    """The last net under secrets: passwords in URLs, bearer tokens, keys of the known vendors."""
    return _SECRETS.sub("***", _URL.sub(_without_login, text))


def _without_login(url: re.Match[str]) -> str:
    """User and password stand before the last @ of the host; a password may hold a slash."""
    rest = url[0][3:]
    at = rest.partition("/")[0].rfind("@")
    if at < 0 and ":" in rest[: max(rest.rfind("@"), 0)]:
        at = rest.rfind("@")
    return url[0] if at < 0 else "://***" + rest[at:]


@contextlib.contextmanager
def about(**what: str) -> Iterator[None]:
    """What the lines logged inside are about, in this task and those it starts: `request_id`, `run_id`, `tenant`,
    `trace_id`."""
    before = _about.get(None) or {}
    _about.set({**before, **what})
    try:
        yield
    finally:
        _about.set(before)


def begin(**what: str) -> None:
    """What this task is about from now on, and nothing of what it was about before."""
    _about.set(what)


def note(**what: str) -> None:
    """What has become known of it, also for the lines of those who called, up to where `begin` or `about` stands."""
    found = _about.get(None)
    if found is not None:
        found.update(what)


class _About(logging.Filter):
    """Puts on each line what it is about, and which process says so."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in (_about.get(None) or {}).items():
            record.__dict__.setdefault(name, value)
        record.__dict__.setdefault("process_kind", self._process)
        return True


def _message(record: logging.LogRecord) -> str:
    said = record.getMessage()
    text = mask(said[:_MASKED_CHARS])
    return text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + f"... ({len(said)} characters)"


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
    """One object a line: time, level, process, logger, message, what it is about, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        row = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": record.__dict__.get("process_kind", ""),
            "pid": record.process,
            "logger": record.name,
            "message": _message(record),
            **_extras(record),
        }
        if record.exc_info:
            row["exception"] = mask(self.formatException(record.exc_info))
        return json.dumps(row, ensure_ascii=False)


Form = Literal["json", "text"]


def resolve(form: str, stream: TextIO | None = None) -> Form:
    """What `log.format` comes to on this stream."""
    return "text" if form == "text" or (form == "auto" and (stream or sys.stderr).isatty()) else "json"


def start(level: str, form: str, stream: TextIO | None = None, *, process: str = "clinvk") -> Form:
    """Once a process, by its cli. `form`: auto, text or json. Returns what that has come to."""
    out = stream or sys.stderr
    resolved = resolve(form, out)
    handler = logging.StreamHandler(out)
    handler.addFilter(_About(process))
    handler.setFormatter(Text() if resolved == "text" else Json())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    for name in _QUIET:
        # One step quieter than ours, but an error is never kept back.
        quieter = logging.INFO if root.level <= logging.DEBUG else max(logging.WARNING, root.level)
        logging.getLogger(name).setLevel(quieter)
    return resolved


def last_words(message: str) -> None:
    """Why this process ends, for who started it: plain, but where its log is JSON a line of that."""
    if any(isinstance(handler.formatter, Json) for handler in logging.getLogger().handlers):
        logging.getLogger("clinvk").critical("%s", message)
    else:
        sys.stderr.write(f"clinvk: {message}\n")


def hook() -> None:
    """What nobody catches is logged too, as a line like the others: of the main thread, of threads, of destructors."""

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            logging.getLogger("clinvk").critical("ended by an exception", exc_info=(kind, error, trace))

    def in_thread(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread is not None else "?"
        logging.getLogger("clinvk").error("thread %s ended by an exception", name, exc_info=args.exc_value)

    def unraisable(args: "sys.UnraisableHookArgs") -> None:
        logging.getLogger("clinvk").error("an exception in a destructor", exc_info=args.exc_value)

    sys.excepthook = uncaught
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def say(form: Form, process: str, level: str, message: str) -> None:
    """One line to stderr at once and without locks: from a signal handler, and from who has no logging."""
    now = time.time()
    if form == "json":
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        row = {"time": at, "level": level, "process": process, "pid": os.getpid(), "logger": "clinvk"}
        line = json.dumps({**row, "message": mask(message)}, ensure_ascii=False)
    else:
        at = time.strftime("%H:%M:%S", time.localtime(now))
        line = f"{at} {level:7} clinvk {process}: {mask(message)}".translate(_CONTROLS)
    with contextlib.suppress(OSError):
        os.write(2, line.encode() + b"\n")
