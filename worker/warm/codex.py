"""Runs of codex on a resident `codex app-server`: a thread for each, its end, and its release to other processes."""

import contextlib
from collections.abc import Hashable
from typing import Any

import msgspec

from shared.event import Content
from shared.run import Outcome, RunSpec
from worker import stamps
from worker.backends import codex_app
from worker.backends.base import Exit, Launch, Parser, Place
from worker.backends.lines import part, text
from worker.course import Course
from worker.process import Process
from worker.stage import Prepared
from worker.tree import RUN
from worker.warm import authorities
from worker.warm.driver import Cold, Driver, Plan
from worker.warm.guest import Guest
from worker.warm.resident import Resident
from worker.warm.rpc import Refused, Reply, Rpc
from worker.warm.wire import UNREADABLE, Wire

_CALL_S = 15.0
_LEAVE_S = 5.0


class _Heard(msgspec.Struct, rename="camel"):
    """What the driver needs of a notification."""

    thread_id: str | None = None
    turn: "_Turn | None" = None
    thread: "_Thread | None" = None
    item: "_Item | None" = None


class _Turn(msgspec.Struct):
    id: str = ""
    status: str = ""


class _Thread(msgspec.Struct, rename="camel"):
    id: str = ""
    parent_thread_id: str | None = None


class _Item(msgspec.Struct):
    type: str = ""


_heard = msgspec.json.Decoder(_Heard)
_TOLD = ("turn/started", "turn/completed", "thread/started", "item/started")


class _Connection(Rpc):
    """Knows which run a thread is of; the threads that a run's model has opened for itself (sub-agents) are its too."""

    def __init__(self, process: Process) -> None:
        super().__init__(process, strand_name="threadId", marked=False)
        self.guests: dict[str, _Guest] = {}
        self.standing = codex_app.Standing(None, frozenset())

    def heard(self, method: str, params: msgspec.Raw) -> None:
        if method not in _TOLD:
            return
        try:
            told = _heard.decode(params)
        except UNREADABLE:
            return
        if told.thread is not None and told.thread.parent_thread_id is not None:
            guest = self.guests.get(told.thread.parent_thread_id)
            if guest is not None:
                self.guests[told.thread.id] = guest
            return
        guest = self.guests.get(told.thread_id or "")
        if guest is not None and told.thread_id is not None:
            if told.turn is not None:
                guest.turned(told.thread_id, told.turn.id, begun=method == "turn/started", status=told.turn.status)
            elif told.item is not None and told.item.type == "commandExecution":
                guest.claim_soon()


class CodexDriver(Driver):
    """An ephemeral thread is never unloaded and costs a megabyte: a process is recycled by count and by size."""

    name = "codex"
    least = (0, 169, 0)
    size = 4
    recycle_after = 300
    max_rss_mb = 600

    def plan(self, prepared: Prepared) -> Plan | Cold:
        if (reason := codex_app.unfit(prepared.spec, prepared.settings)) is not None:
            return Cold(reason)
        marks = {RUN: prepared.spec.id, "TMPDIR": f"{prepared.scratch}/tmp"}
        return Plan(
            codex_app.kind(prepared.settings, prepared.env),
            codex_app.talk(prepared.spec, prepared.settings, prepared.place, marks),
        )

    def stamp(self, fixed: Any) -> Hashable:
        assert isinstance(fixed, codex_app.Kind)
        return authorities.seen(), tuple(map(stamps.of_file, fixed.watched))

    def launch(self, fixed: Any, place: Place) -> Launch:
        assert isinstance(fixed, codex_app.Kind)
        return fixed.launch(place, authorities.one_by_one(dict(fixed.env)))

    def connect(self, process: Process) -> Wire:
        return _Connection(process)

    async def greet(self, resident: Resident) -> None:
        wire = _wire(resident)
        about = {"clientInfo": {"name": "clinvk", "version": "1"}, "capabilities": {"experimentalApi": True}}
        await wire.call("initialize", about, limit_s=self.start_within_s)
        wire.notify("initialized")
        read = await wire.call("config/read", {"includeLayers": False}, limit_s=self.start_within_s)
        wire.standing = codex_app.Standing.of(read.result)

    async def open(self, resident: Resident, plan: Plan, prepared: Prepared) -> tuple[Course, Parser]:
        talk = codex_app.distrusting(plan.what, _wire(resident).standing)
        if talk is None:
            raise Refused(
                "thread/start", 0, "its directory lies below one that codex' configuration trusts or does not"
            )
        spec, place = prepared.spec, prepared.place
        folders = [place.scratch]
        if spec.session_id is not None:  # whose turns come one after the other
            folders.append(place.own_home.rpartition("/")[0])
        guest = _Guest(resident, spec.id, tuple(folders), talk)
        try:
            await guest.open()
        except BaseException:
            await guest.close()
            raise
        assert isinstance(plan.fixed, codex_app.Kind)
        return guest, _Parser(spec, resident if plan.fixed.logged_in else None)


class _Parser(codex_app.AppParser):
    """`resident`: one that has its login from files or a keyring, which may hold another by now."""

    def __init__(self, spec: RunSpec, resident: Resident | None) -> None:
        super().__init__(spec)
        self._resident = resident

    def finish(self, exit: Exit) -> tuple[list[Content], Outcome]:
        events, outcome = super().finish(exit)
        if self._resident is not None and outcome.failure is not None and outcome.failure.code == "backend_login":
            self._resident.drain("login")
        return events, outcome


def _wire(resident: Resident) -> _Connection:
    assert isinstance(resident.wire, _Connection)
    return resident.wire


class _Guest(Guest):
    def __init__(self, resident: Resident, run_id: str, folders: tuple[str, ...], talk: codex_app.Talk) -> None:
        super().__init__(resident, run_id, folders)
        self._wire = _wire(resident)
        self._talk = talk
        self._thread = ""
        self._turns: dict[str, str] = {}  # those under way, by thread
        self._told = False  # of a turn: there is a file of the thread
        self._interrupted = False

    async def open(self) -> None:
        talk = self._talk
        if talk.resume is None:
            reply = await self._wire.call("thread/start", talk.thread, limit_s=_CALL_S)
        else:
            reply = await self._resumed(talk.resume)
        self._thread = thread = text(part(reply.result, "thread", "id"))
        if not thread:
            raise Refused("thread/start", 0, "an answer without a thread")
        self._wire.guests[thread] = self
        self._wire.attach(thread, self.strand)
        self.strand.add(reply.line)
        if talk.items:
            await self._wire.call("thread/inject_items", {"threadId": thread, "items": talk.items}, limit_s=_CALL_S)

    async def _resumed(self, thread: str) -> Reply:
        asked = {"threadId": thread, **self._talk.thread}
        try:
            return await self._wire.call("thread/resume", asked, limit_s=_CALL_S)
        except Refused as refused:  # laid aside by a process that was killed before it took it up again?
            try:
                await self._wire.call("thread/unarchive", {"threadId": thread}, limit_s=_CALL_S)
            except Refused:
                raise refused from None
            return await self._wire.call("thread/resume", asked, limit_s=_CALL_S)

    async def start(self) -> None:
        await self._wire.call("turn/start", {"threadId": self._thread, **self._talk.turn}, limit_s=_CALL_S)

    def turned(self, thread: str, turn: str, *, begun: bool, status: str) -> None:
        self._told = True
        if begun:
            self._turns[thread] = turn
            if self._interrupted:
                self._interrupt(thread, turn)
            return
        self._turns.pop(thread, None)
        if thread == self._thread:
            self.strand.end(Exit(code=0 if status == "completed" else 1))

    def interrupt(self) -> None:
        self._interrupted = True  # a turn that it tells of after this is interrupted then
        for thread, turn in ({self._thread: ""} | self._turns).items():  # no name: whatever is about to begin there
            self._interrupt(thread, turn)

    def _interrupt(self, thread: str, turn: str) -> None:
        self._wire.ask("turn/interrupt", {"threadId": thread, "turnId": turn})  # refused where it has just ended

    async def leave(self) -> None:
        for thread, turn in list(self._turns.items()):  # of threads that the model opened for itself, still under way
            with contextlib.suppress(Refused):
                await self._wire.call("turn/interrupt", {"threadId": thread, "turnId": turn}, limit_s=_LEAVE_S)
        if self._talk.kept and (self._told or (self._thread and self._talk.resume)):
            # It would hold the thread's file for itself. To lay it aside and take it up is the way to let go of it.
            await self._wire.call("thread/archive", {"threadId": self._thread}, limit_s=_LEAVE_S)
            await self._wire.call("thread/unarchive", {"threadId": self._thread}, limit_s=_LEAVE_S)

    def detach(self) -> None:
        for thread in [thread for thread, guest in self._wire.guests.items() if guest is self]:
            del self._wire.guests[thread]
            self._wire.detach(thread)
