"""Gemini's warm way: a resident `gemini --acp`, a session of it for each run.

Sessions are made one at a time (its lock stalls them otherwise) and never closed, since it cannot: it is replaced after
some fifty. No tool of it runs commands, and what asks is denied.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from worker.backends import gemini_acp as acp
from worker.backends.base import Exit, Launch, Parser, Place
from worker.backends.gemini import MODEL
from worker.backends.options import resolve
from worker.course import Course
from worker.process import Process
from worker.stage import Prepared
from worker.warm import gemini_home
from worker.warm.driver import Cold, Driver, Plan
from worker.warm.gemini_home import Home
from worker.warm.guest import Guest
from worker.warm.rpc import Call, Refused, Rpc
from worker.warm.wire import Gone, Strand, Wire

if TYPE_CHECKING:
    from worker.warm.resident import Resident

_log = logging.getLogger(__name__)

_CALL_S = 10.0
_TURN_S = 7 * 24 * 3600.0  # the run's own limits end it
_SYSTEMS = 64
_TOLD_S = 10.0  # until it has said a history again
_NO_LOGIN = (-32000, 401, 403)


class _What(msgspec.Struct, frozen=True):
    way: acp.Way
    model: str
    logged_in: bool  # by files, which another login replaces


class Acp(Rpc):
    def __init__(self, process: Process) -> None:
        super().__init__(process, strand_name="sessionId", marked=True)
        self.making = asyncio.Lock()
        self.home: Home | None = None


class GeminiDriver(Driver):
    name = "gemini"
    least = acp.LEAST_VERSION
    at_once = 16
    recycle_after = 50
    max_rss_mb = 700

    def __init__(self) -> None:
        self._systems: dict[str, bool] = {}  # the last system prompts that came, the newest last

    def plan(self, prepared: Prepared) -> Plan | Cold:
        settings, place = prepared.settings, prepared.place
        options = resolve(prepared.spec, settings, prepared.backend.capabilities(as_root=settings.as_root))
        if reason := acp.reason_against(prepared.spec, options, settings):
            return Cold(reason)
        if gemini_home.configured(place.cwd, place.scratch):
            return Cold("workdir")
        way = acp.way(options)
        if way.system is not None and not self._seen(way.system):
            return Cold("system")
        apart = "" if prepared.spec.workdir is None else prepared.spec.tenant
        fixed = acp.fixed(way, settings, place, prepared.env, apart)
        logged_in = not dict(fixed.env).get("GEMINI_API_KEY")
        return Plan(fixed=fixed, what=_What(way, options.model or MODEL, logged_in))

    def _seen(self, system: str) -> bool:
        """Whether such a system prompt has come before: for one that comes once, no process is started."""
        known = self._systems.pop(system, False)
        self._systems[system] = True
        if len(self._systems) > _SYSTEMS:
            del self._systems[next(iter(self._systems))]
        return known

    def launch(self, fixed: acp.Fixed, place: Place) -> Launch:
        return acp.launch(fixed, place)

    def connect(self, process: Process) -> Wire:
        return Acp(process)

    async def greet(self, resident: "Resident") -> None:
        wire = _wire(resident)
        wire.home = Home(resident.place.own_home, resident.place.scratch)
        none = {"fs": {"readTextFile": False, "writeTextFile": False}, "terminal": False}
        reply = await wire.call(
            "initialize", {"protocolVersion": 1, "clientCapabilities": none}, limit_s=self.start_within_s
        )
        version = reply.result.get("protocolVersion") if isinstance(reply.result, dict) else None
        if version != 1:
            raise Gone(f"it speaks version {version!r} of the protocol, not 1")

    async def open(self, resident: "Resident", plan: Plan, prepared: Prepared) -> tuple[Course, Parser]:
        session = _Session(resident, prepared, plan.what)
        try:
            await session.open()
        except BaseException:
            await session.close()
            raise
        return session, acp.AcpParser(plan.what.model)


def _wire(resident: "Resident") -> Acp:
    assert isinstance(resident.wire, Acp)
    return resident.wire


class _Stamped(Strand):
    def add(self, line: bytes) -> None:
        super().add(acp.stamped(line, asyncio.get_running_loop().time()))


class _Told(Strand):
    """Counts the messages of a history that is said again."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = count
        self.all = asyncio.Event()

    def add(self, line: bytes) -> None:
        if b"_message_chunk" in line[:300]:
            self._left -= 1
            if self._left <= 0:
                self.all.set()


class _Session(Guest):
    def __init__(self, resident: "Resident", prepared: Prepared, what: _What) -> None:
        spec, place = prepared.spec, prepared.place
        self._prompt = acp.prompt(spec)
        folders = (place.scratch, *((place.cwd,) if spec.workdir is None else ()))
        super().__init__(resident, spec.id, folders, _Stamped())
        self._wire = _wire(resident)
        assert self._wire.home is not None
        self._home = self._wire.home
        self._spec = spec
        self._place = place
        self._what = what
        self._id: str | None = None
        self._talking: asyncio.Task[None] | None = None
        self._entered = False

    async def open(self) -> None:
        try:
            await self._open()
        except OSError as error:
            raise Refused("session/new", 0, f"its files cannot be written: {error.strerror}") from error

    async def _open(self) -> None:
        self._entered = True
        self._home.enter(self._place.cwd)
        earlier = acp.earlier(self._spec, self._place.cwd)
        told = _Told(0 if earlier is None else acp.told_again(earlier[1]))
        try:
            async with self._wire.making:
                id = await self._made(earlier, told)
            await self._call("session/set_model", {"sessionId": id, "modelId": self._what.model})
            if earlier is not None:
                async with asyncio.timeout(_TOLD_S):
                    await told.all.wait()
        except TimeoutError:
            raise Refused("session/load", 0, "it did not say the whole history again") from None
        except Refused as error:
            self._see(error)
            raise

    def _see(self, error: Refused) -> None:
        """A login that is not taken may have been replaced since this process got its copy."""
        if error.code in _NO_LOGIN and self._what.logged_in:
            self.resident.drain("login")

    async def _made(self, earlier: tuple[str, bytes] | None, told: _Told) -> str:
        """The id of a session as this run needs it. Nobody else makes one meanwhile."""
        where = {"cwd": self._place.cwd, "mcpServers": []}
        try:
            if earlier is None:
                reply = await self._call("session/new", where)
                self._id = id = str(reply["sessionId"])
            else:
                self._id = id = earlier[0]
                self._home.put(self._place.cwd, *earlier)
                self._wire.attach(id, told)
                await self._call("session/load", {"sessionId": id, **where})
            if self._what.way.edits:
                await self._call("session/set_mode", {"sessionId": id, "modeId": self._what.way.mode})
        except (KeyError, TypeError):
            raise Refused("session/new", 0, "an answer without a session") from None
        return id

    async def _call(self, method: str, params: Any) -> Any:
        return (await self._wire.call(method, params, limit_s=_CALL_S)).result

    # -- the guest's

    async def start(self) -> None:
        assert self._id is not None
        self.strand.add(acp.session_line(self._id))
        self._wire.attach(self._id, self.strand, self._answer)
        call = self._wire.send("session/prompt", {"sessionId": self._id, "prompt": self._prompt})
        self._talking = asyncio.create_task(self._talk(self._id, call), name=f"talk-{self.run_id}")

    def _answer(self, method: str, params: Any) -> Any:
        if method != "session/request_permission":
            raise LookupError(method)
        request = {"method": method, "params": params}
        self.strand.add(msgspec.json.encode(request) + b"\n")
        return acp.permission(request)

    async def _talk(self, id: str, call: Call) -> None:
        """The turn, until the CLI has said what came of it."""
        try:
            reply = await self._wire.answer(call, limit_s=_TURN_S)
            last, code = reply.line, 0
        except Refused as error:
            self._see(error)
            said = {"code": error.code, "message": error.message, "data": error.data}
            last, code = msgspec.json.encode({"error": said}) + b"\n", 1
        except Gone as error:
            self.resident.condemn("hung", str(error))  # where it is dead, this says nothing
            return
        chat = self._home.chat(self._place.cwd, id)
        if chat is not None:
            self.strand.add(acp.record_line(acp.record(chat[1])))
        self.strand.add(last)
        self.strand.end(Exit(code=code))

    def interrupt(self) -> None:
        # Behind the prompt, which it has taken when it reads this.
        self._wire.notify("session/cancel", {"sessionId": self._id})

    def detach(self) -> None:
        if self._talking is not None:
            self._talking.cancel()
        if self._id is not None:
            self._wire.detach(self._id)
        try:
            try:
                if self._begun and self._id is not None and self._spec.session_id is not None:
                    self._keep(self._id)
            finally:
                if self._entered:
                    self._home.leave(self._place.cwd, self._id)
        except OSError as error:
            _log.warning("run %s: what gemini wrote of it is not put in its place: %s", self.run_id, error.strerror)

    def _keep(self, id: str) -> None:
        """For the session's next turn, which a process of its own carries out."""
        chat = self._home.chat(self._place.cwd, id)
        if chat is not None:
            gemini_home.keep(self._place.own_home, self._place.cwd, chat)
