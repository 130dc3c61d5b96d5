"""The table of the backends."""

from collections.abc import Mapping

from worker.backends.base import Backend
from worker.backends.echo import Echo

BACKENDS: Mapping[str, Backend] = {backend.name: backend for backend in (Echo(),)}
