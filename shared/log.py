"""Logs of every process: JSON lines, or text on a terminal; never a prompt, never a secret."""

import json
import logging
import re
import sys
import time
from typing import TextIO

_QUIET = ("celery", "kombu", "amqp", "uvicorn", "asyncio", "litestar")
_SECRETS = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?<=[Bb]earer )\S+|(?<=sk-)[\w-]{8,}")
_STANDARD = frozenset(vars(logging.makeLogRecord({})))


def mask(text: str) -> str:
    """The last net under secrets: URL passwords and bearer tokens."""
    return _SECRETS.sub("***", text)


class Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{at} {record.levelname.lower():7} {record.name}: {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return mask(line)


class Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        row = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": mask(record.getMessage()),
        }
        row |= {name: mask(str(value)) for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            row["exception"] = mask(self.formatException(record.exc_info))
        return json.dumps(row, ensure_ascii=False)


def start(level: str, form: str, stream: TextIO | None = None) -> None:
    """Once a process, by its cli. `form`: auto, text or json."""
    out = stream or sys.stderr
    handler = logging.StreamHandler(out)
    handler.setFormatter(Text() if form == "text" or (form == "auto" and out.isatty()) else Json())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
