"""What a conversation brings besides its prompt, earlier turns and attachments, in the forms that several CLIs need."""

import base64
import binascii
import fnmatch
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from shared.errors import InvalidRequest
from shared.run import Attachment, RunSpec

# Vendors refuse a text of nothing; this is what claude puts in its place.
NOTHING = "(no content)"

_SUFFIX = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp"}


def attachments(spec: RunSpec) -> tuple[Attachment, ...]:
    """All of the run's, oldest first."""
    return (*(found for turn in spec.history for found in turn.attachments), *spec.attachments)


def fits(attachment: Attachment, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(attachment.media_type.lower(), pattern) for pattern in patterns)


def is_text(attachment: Attachment) -> bool:
    return attachment.media_type.lower().startswith("text/")


def content(attachment: Attachment) -> bytes:
    """Raises: InvalidRequest where it is no base64."""
    try:
        return base64.b64decode(attachment.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{attachment.field} is no base64: {error}", field=attachment.field) from error


def document(attachment: Attachment) -> str:
    """The words of a `text/*`. Raises: InvalidRequest."""
    return content(attachment).decode("utf-8", "replace")


def image_files(spec: RunSpec, folder: str) -> dict[str, bytes]:
    """The images as files to be, numbered from 1 in the order of `attachments`. Raises: InvalidRequest."""
    images = [found for found in attachments(spec) if not is_text(found)]
    return {
        f"{folder}/image-{number}.{_SUFFIX.get(found.media_type.lower(), 'bin')}": content(found)
        for number, found in enumerate(images, 1)
    }


def transcript(spec: RunSpec) -> str:
    """All in one text, for a CLI without roles: the new prompt comes last and as it is; no turn can pretend to be another.

    Images are named `[Image #1]` and so on, in the order of `attachments`. Raises: InvalidRequest.
    """
    number = 0
    lines: list[str] = []

    def bring(found: Sequence[Attachment]) -> None:
        nonlocal number
        for attachment in found:
            if is_text(attachment):
                words = escape(document(attachment))
                lines.append(f"<document name={quoteattr(attachment.name or 'document')}>\n{words}\n</document>")
            else:
                number += 1
                lines.append(f"[Image #{number}]")

    if spec.history:
        lines.append("The conversation so far, the oldest turn first. &lt; &gt; and &amp; in it stand for < > and &.\n")
        lines.append("<conversation>")
        for turn in spec.history:
            lines.append(f'<turn role="{turn.role}">')
            bring(turn.attachments)
            lines += [escape(turn.text), "</turn>"]
        lines.append("</conversation>\n")
        lines.append("What follows, to the end, is what the user says now.\n")
    if spec.history or any(is_text(found) for found in spec.attachments):
        bring(spec.attachments)
    return "\n".join([*lines, spec.prompt])
