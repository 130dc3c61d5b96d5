"""The fenced blocks of the documents. A test that carries some out names them, so that none is forgotten."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "README.zh.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

Claim = tuple[str, int]


class Block(NamedTuple):
    """`kind` is what stands behind the fence; `text` says that it is no example: a drawing, a form, an excerpt."""

    page: str
    number: int
    kind: str
    text: str

    @property
    def claim(self) -> Claim:
        return self.page, self.number


def blocks(page: str) -> list[Block]:
    found = _FENCE.findall((ROOT / page).read_text())
    return [Block(page, number, kind, text) for number, (kind, text) in enumerate(found)]


def one(page: str, kind: str, word: str = "") -> Block:
    """The only block of a page of its kind, that holds a word."""
    (found,) = (block for block in blocks(page) if block.kind == kind and word in block.text)
    return found
