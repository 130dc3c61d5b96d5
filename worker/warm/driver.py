"""What a backend's warm way must give, and what it may rely on."""

import abc
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import msgspec

from worker.backends.base import Launch, Parser, Place
from worker.course import Course
from worker.process import Process
from worker.stage import Prepared
from worker.warm.wire import Wire

if TYPE_CHECKING:
    from worker.warm.resident import Resident


class Cold(msgspec.Struct, frozen=True):
    """A run that the warm way cannot carry. `reason`: one word or two, for counting."""

    reason: str


class Plan(msgspec.Struct, frozen=True):
    """How a run is carried out warm. `fixed`: all that a warm process must have been started with to serve it, and
    nothing else of the run: two with equal ones may share a process, and it is kept for the start of the next.
    `what`: the driver's own."""

    fixed: Hashable
    what: Any


class Driver(abc.ABC):
    """One backend's warm way; what it keeps in mind is bounded. All limits are defaults of `backends.<name>.warm`."""

    name: str
    least: tuple[int, ...]  # the oldest version of the CLI that is known to speak the protocol
    size = 4  # processes of this backend at most
    at_once = 64  # runs on one
    single = False  # a process serves one run; `size` of them wait for the runs that come most, while the host is calm
    recycle_after = 300
    max_rss_mb = 700  # of the CLI's own processes; three times as much is not waited for by its runs
    start_within_s = 20.0

    @abc.abstractmethod
    def plan(self, prepared: Prepared) -> Plan | Cold:
        """Pure: the backend's own module decides."""

    def stamp(self, fixed: Any) -> Hashable:  # noqa: ARG002  # most read nothing of the host that a run would read anew
        """Of what a process reads at its start besides `fixed`: one with another stamp is of yesterday. Quick."""
        return None

    @abc.abstractmethod
    def launch(self, fixed: Any, place: Place) -> Launch:
        """How a process is started that can serve runs of this `Plan.fixed`. `place` is its own, for all its life."""

    @abc.abstractmethod
    def connect(self, process: Process) -> Wire: ...

    @abc.abstractmethod
    async def greet(self, resident: "Resident") -> None:
        """Until it can serve. Raises: Gone, Refused."""

    @abc.abstractmethod
    async def open(self, resident: "Resident", plan: Plan, prepared: Prepared) -> tuple[Course, Parser]:
        """All up to the point where the run does something; entering the course goes past it. What has been opened and
        is not returned must be closed. Raises: Gone, and the process is ended; Refused, and this run goes cold."""
