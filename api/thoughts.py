"""Gathers a run's reasoning, which a whole answer shows apart from its text."""

from collections.abc import Sequence

from shared.event import Thinking, decode


class Thoughts:
    def __init__(self) -> None:
        self._parts: list[str] = []

    def see(self, lines: Sequence[bytes]) -> None:
        """Encoded events, in their order."""
        for line in lines:
            if line.startswith(b'{"type":"thinking"') and (event := decode(line)) is not None:
                assert isinstance(event.content, Thinking)
                self._parts.append(event.content.text)

    @property
    def text(self) -> str:
        return "".join(self._parts)
