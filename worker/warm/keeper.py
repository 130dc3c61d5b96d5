"""What decides of one backend's warm processes: when another is started, and which gives way."""

import abc

from worker.warm.resident import Resident
from worker.warm.shelf import Kind, Shelf


class Keeper(abc.ABC):
    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    @abc.abstractmethod
    def ask(self, kind: Kind) -> None:
        """A run of this kind has come."""

    @abc.abstractmethod
    def lack(self, kind: Kind) -> str:
        """There is none for it. A word for why, for counting; one may be started for those that come after."""

    @abc.abstractmethod
    def taken(self, resident: Resident) -> None:
        """It has been given a run."""

    @abc.abstractmethod
    def tend(self) -> bool:
        """Starts what is wanted and lets go of what has a successor; whether it waits for the host to be calm."""
