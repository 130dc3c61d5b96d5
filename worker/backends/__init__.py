"""The table of the backends."""

from collections.abc import Mapping

from worker.backends.base import Backend
from worker.backends.claude import Claude
from worker.backends.codex import Codex
from worker.backends.echo import Echo
from worker.backends.gemini import Gemini

BACKENDS: Mapping[str, Backend] = {backend.name: backend for backend in (Claude(), Codex(), Gemini(), Echo())}
