"""Keeps a CLI's answer whole while it comes in pieces, and tells text that is sent again from text that goes on."""

from shared.event import Content, Message, Progress


class Answer:
    """Text of one run. A *segment* is what one message of the CLI added; a retry begins it anew."""

    def __init__(self) -> None:
        self._done: list[str] = []  # of segments that stand
        self._done_chars = 0
        self._segment: list[str] = []
        self._again: str | None = None  # the segment as it was sent before the retry
        self._matched = 0

    @property
    def text(self) -> str:
        """What the answer is so far."""
        return (
            "".join(self._done)
            + (self._again[: self._matched] if self._again is not None else "")
            + "".join(self._segment)
        )

    def close(self) -> list[Content]:
        """The segment stands; the next text begins a new one, a blank line apart."""
        events = self._settle()
        whole = "".join(self._segment)
        if whole:
            self._done.append(whole)
            self._done_chars += len(whole)
            self._segment = []
        return events

    def restart(self) -> None:
        """The CLI tries the message again: what it sends now may be what was sent before."""
        sent = self._again[: self._matched] if self._again is not None else ""
        self._again = sent + "".join(self._segment)
        self._segment = []
        self._matched = 0

    def add(self, text: str, *, partial: bool = True) -> list[Content]:
        """The events that show this text, less what has been shown."""
        if not text:
            return []
        events: list[Content] = []
        gap = "\n\n" if self._done and not self._done[-1].endswith("\n") else ""
        if self._again is not None:
            if self._matched == 0:
                text = gap + text
            rest = self._again[self._matched : self._matched + len(text)]
            same = _common(rest, text)
            self._matched += same
            text = text[same:]
            if not text and self._matched < len(self._again):
                return []
            events += self._settle()
        elif not self._segment:
            text = gap + text
        if text:
            self._segment.append(text)
            events.append(Message(text, is_partial=partial))
        return events

    def _settle(self) -> list[Content]:
        """Ends the comparison with what was sent before a retry."""
        if self._again is None:
            return []
        differs = self._matched < len(self._again)
        self._segment = [self._again[: self._matched], *self._segment]
        self._again = None
        if not differs:
            return []
        return [Progress("the CLI began its answer again", restart_at=self._done_chars + self._matched)]


def _common(a: str, b: str) -> int:
    if a == b[: len(a)] and len(a) <= len(b):
        return len(a)
    if b == a[: len(b)]:
        return len(b)
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
