"""Tells text that gemini sends again after a retry of its own from text that goes on: nothing in its output marks it."""

from shared.event import Content
from worker.backends.answer import Answer

_RETRY_GAP_S = 0.5


class Again:
    """After a pause, what equals the message from its beginning is held back until it has said it all again (then it
    was a retry) or differs (then it is the answer going on)."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._segment = ""  # of the current message, as sent
        self._held: list[str] = []  # may be that segment sent again
        self._at = 0.0

    def add(self, words: str, at: float) -> list[Content]:
        """`at`: seconds on any clock."""
        gap, self._at = at - self._at, at
        if self._held:
            self._held.append(words)
        elif self._segment and gap >= _RETRY_GAP_S and self._segment.startswith(words):
            self._held = [words]
        else:
            self._segment += words
            return self._answer.add(words)
        again = "".join(self._held)
        if self._segment.startswith(again) and len(again) < len(self._segment):
            return []
        if again.startswith(self._segment):
            self._held = []
            rest = again[len(self._segment) :]
            self._segment = again
            return self._answer.add(rest)
        return self.release()

    def release(self) -> list[Content]:
        """Nothing follows that could tell what is held back."""
        words, self._held = "".join(self._held), []
        self._segment += words
        return self._answer.add(words)

    def close(self) -> list[Content]:
        """The message has ended; what comes is another."""
        events = self.release()
        self._segment = ""
        return [*events, *self._answer.close()]
