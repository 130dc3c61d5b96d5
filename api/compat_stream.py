"""What the streams of the compatible surfaces do alike: what is shown cannot be taken back, and a failure is the end."""

import abc

from api.stream import Renderer
from shared.errors import ClinvkError
from shared.event import Content, Error, Progress, decode
from shared.run import Failure

RESTARTED = Failure(
    "backend_error", "the model's stream was cut and it began its answer anew, with other words; ask again", "restarted"
)


class CompatRenderer(Renderer):
    """A dialect writes `content` and `failed`; an event that it has no words for is passed over."""

    def __init__(self) -> None:
        self._over = False

    @property
    def over(self) -> bool:
        return self._over

    def event(self, line: bytes) -> bytes:
        """One event in the dialect's words; nothing after a failure."""
        if self._over:
            return b""
        event = decode(line)
        match None if event is None else event.content:
            case None:
                return b""
            case Error(code=code, message=message, details=details):
                return self._end(Failure(code, message, str(details.get("cause", "")), details.get("retry_after_s")))
            case Progress(restart_at=int()):
                return self._end(RESTARTED)
            case content:
                return self.content(content)

    def broken(self, error: ClinvkError, sequence: int) -> bytes:  # noqa: ARG002  # these dialects say nothing of it
        return self._end(Failure(error.code, error.message))

    def _end(self, failure: Failure) -> bytes:
        self._over = True
        return self.failed(failure)

    @abc.abstractmethod
    def content(self, content: Content) -> bytes: ...

    @abc.abstractmethod
    def failed(self, failure: Failure) -> bytes: ...
