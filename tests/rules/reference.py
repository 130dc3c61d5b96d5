"""The tables of docs/configuration.md, made from the code: `python -m tests.rules.reference` writes them (`make fix`)."""

import itertools
from pathlib import Path
from typing import Any

import msgspec

from shared.config_keys import Key, keys
from shared.config_sources import VARIABLES, variable_of

PATH = Path(__file__).parents[2] / "docs" / "configuration.md"
BEGIN = "<!-- The tables below are made by `make fix` from shared/config.py. -->\n"
END = "<!-- end of the tables -->\n"


def render(page: str) -> str:
    """The page with its tables as the code has them."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + tables() + END + after


def tables() -> str:
    made = ""
    for section, found in itertools.groupby(keys(), _section):
        made += (
            f"\n### {section}\n\n| key | variable | it is | default | read by | meaning |\n|---|---|---|---|---|---|\n"
        )
        made += "".join(map(_row, found))
    return made + "\n"


def _section(key: Key) -> str:
    return key.path.rpartition(".")[0] or "top level"


def _row(key: Key) -> str:
    name = key.path.rpartition(".")[2]
    variable = variable_of(key.path)
    if key.path == "backends.NAME.model":
        variable += "`, `" + "`, `".join(name for path, name in VARIABLES.items() if path.endswith(".model"))
    later = " *(not yet in force)*" if key.pending else ""
    default = "" if key.default in (None, [], {}) else f"`{_plain(key.default)}`"
    return f"| `{name}` | `{variable}` | {key.right} | {default} | {key.by} | {key.doc}{later} |\n"


def _plain(value: Any) -> str:
    return msgspec.json.encode(value).decode().strip('"')


if __name__ == "__main__":
    PATH.write_text(render(PATH.read_text()))
