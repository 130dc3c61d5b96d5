"""The Celery side: one task whose id is the run's id, on a pool that is the runner's loop; late ack, no result backend.

Messages are asked for only of the queues that the gate lets through now. A Redis that refuses writes (a full disk, too few
replicas, a failover) is waited for as one that is away: Celery itself would take the refusal for the end of the world.
"""

import concurrent.futures
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import celery.apps.worker
import kombu.transport
import kombu.transport.redis
import kombu.transport.virtual.base
from billiard.einfo import ExceptionInfo
from celery import Celery, bootsteps
from celery.concurrency.base import BasePool
from celery.exceptions import Reject, SecurityWarning
from kombu import Exchange, Queue
from kombu.transport.virtual.base import Empty
from kombu.utils.scheduling import round_robin_cycle
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError

from shared import log, names
from shared.redis_url import Place, parse
from worker.gate import Gate

_log = logging.getLogger(__name__)

CarryOut = Callable[[str, str], "concurrent.futures.Future[bool]"]

_REFUSED_S = 1.0  # between attempts to take messages from a Redis that refuses
_CONNECT_S = 2.0
_KEEPALIVE = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 3, socket.TCP_USER_TIMEOUT: 10_000}
_NARROW_S = 0.1  # how long one look for messages takes at most while a queue is left out of it


class _Cycle(round_robin_cycle):  # type: ignore[misc]  # kombu ships no types
    """The queues in turn, without those that the gate holds back."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def consume(self, n: int) -> list[str]:
        return [queue for queue in super().consume(n) if self._gate.wants(queue)]


class _Delivered(kombu.transport.virtual.base.QoS):  # type: ignore[misc]  # kombu ships no types
    """Lets go of what it cannot give back, such as when Redis is away: the sweep sends a new hint."""

    def restore_unacked(self) -> list[Any]:
        super().restore_unacked()
        return []  # kombu writes what stands here to a file in TMPDIR, one for each lost connection


_Base: Any = object  # one of kombu's channels, by the classes below


class _Gated(_Base):  # type: ignore[misc]  # as above
    """A channel's way to take messages. Keeps its client: stock kombu 5.7 makes a new one for each message. Asks of the queues that the gate lets through."""

    gate: Gate | None = None
    _kept: Any = None
    _not_before = 0.0  # monotonic
    _refused = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.QoS = _Delivered
        if self.gate is not None:
            self._queue_cycle = _Cycle(self.gate)

    def _brpop_start(self, timeout: float | None = None) -> None:
        if time.monotonic() >= self._not_before:
            narrow = self.gate is not None and self.gate.narrow
            super()._brpop_start(_NARROW_S if narrow else timeout)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            found = super()._brpop_read(**options)
        except ReadOnlyError as error:  # it is a replica now; the way to the new master is another connection
            raise RedisConnectionError(str(error)) from error
        except ResponseError as error:
            if not self._refused:
                _log.warning("Redis gives no messages, which is tried again each second: %s", error)
            self._refused = True
            self._not_before = time.monotonic() + _REFUSED_S
            raise Empty from error
        except Empty:
            self._served()
            raise
        self._served()
        return found

    def _served(self) -> None:
        if self._refused:
            _log.warning("Redis gives messages again")
            self._refused = False

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._kept is None:
            self._kept = super()._create_client()
        return self._kept


class _Channel(_Gated, kombu.transport.redis.Channel):  # type: ignore[misc]  # as above
    from_transport_options = (*kombu.transport.redis.Channel.from_transport_options, "gate")


class _SentinelChannel(_Gated, kombu.transport.redis.SentinelChannel):  # type: ignore[misc]  # as above
    from_transport_options = (*kombu.transport.redis.SentinelChannel.from_transport_options, "gate")


class Transport(kombu.transport.redis.Transport):  # type: ignore[misc]  # as above
    Channel = _Channel
    connection_errors = (*kombu.transport.redis.Transport.connection_errors, ResponseError)


class SentinelTransport(Transport):
    Channel = _SentinelChannel
    default_port = 26379


# A URL's scheme names its transport, whatever `broker_transport` says; so the names are given to the one above.
for _scheme in ("redis", "rediss", "redis+socket"):
    kombu.transport.TRANSPORT_ALIASES[_scheme] = "worker.celery_app:Transport"
kombu.transport.TRANSPORT_ALIASES["sentinel"] = "worker.celery_app:SentinelTransport"


class Pool(BasePool):  # type: ignore[misc]  # celery ships no types
    """Gives a task to the runner's loop, and its end back to Celery: a run needs no thread of its own.

    Celery's threads pool would hold one for each run, only to wait: twice the switches between threads, and megabytes
    at some hundred runs.
    """

    body_can_be_buffer = True
    signal_safe = False
    carry_out: CarryOut  # these three are set by `create_worker`
    gate: Gate
    is_stopping: Callable[[], bool]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._under_way: set[concurrent.futures.Future[bool]] = set()

    def on_apply(
        self,
        target: Any,  # noqa: ARG002  # celery's tracer, which would wait for the task's end
        args: Any,
        kwargs: Any,  # noqa: ARG002  # as above
        *,
        callback: Callable[[Any], Any],
        accept_callback: Callable[[int, float], Any],
        correlation_id: str,
        **_: Any,
    ) -> None:
        accept_callback(os.getpid(), time.monotonic())
        kind = type(self)
        queue = str(args[2]["delivery_info"]["routing_key"])
        kind.gate.take(queue)  # before the next look for messages
        run = kind.carry_out(correlation_id, queue) if kind.gate.serves(queue) else _not_here()
        self._under_way.add(run)
        run.add_done_callback(lambda run: self._done(run, callback))
        run.add_done_callback(lambda _: kind.gate.give(queue))

    def _done(self, run: "concurrent.futures.Future[bool]", callback: Callable[[Any], Any]) -> None:
        """`callback` takes (failed, value or its traceback, seconds), and acknowledges or puts back."""
        try:
            try:
                if not run.result():
                    raise Reject("this worker takes no more runs", requeue=True)
            except BaseException:  # noqa: BLE001  # Celery is told, whatever it was
                callback((1, ExceptionInfo(), 0.0))
            else:
                callback((0, None, 0.0))
        except Exception:  # noqa: BLE001  # such as a broker that is away
            _log.exception("Celery could not be told of a run's end")
        finally:
            self._under_way.discard(run)

    def on_stop(self) -> None:
        """Celery's warm shutdown: returns when no run is under way, which the runner's grace bounds. Where Celery has
        died, the runs go on under the next."""
        if type(self).is_stopping():
            concurrent.futures.wait(list(self._under_way))


def _sentinel_options(place: Place) -> dict[str, Any]:
    if not place.service:
        return {}
    tls = {"ssl": True, **place.tls} if place.tls is not None else {}
    given = {**place.sentinel_login, **tls, "socket_timeout": _CONNECT_S, "socket_connect_timeout": _CONNECT_S}
    return {"master_name": place.service, "sentinel_kwargs": given}


def create_worker(
    url: str,
    queues: Sequence[str],
    carry_out: CarryOut,
    gate: Gate,
    on_ready: Callable[[], None],
    on_stop: Callable[[], None],
    is_stopping: Callable[[], bool],
    *,
    hostname: str,
    concurrency: int,
    loglevel: str,
    form: log.Form = "text",
) -> Any:
    """Celery's worker, to be started on the main thread; when that returns though nobody is stopping, it has died and
    another may be made. `carry_out` starts a run, of a queue, in the runner's loop; its result False puts the message
    back."""
    place = parse(url)
    app = Celery("clinvk", broker=place.broker, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_use_ssl=place.tls,
        broker_transport_options={
            # Otherwise kombu writes each message into Redis a second time until it is acknowledged, half of its work,
            # to give it to another worker later. Here a message is a hint at a record, and the sweep gives another.
            "ack_emulation": False,
            "priority_steps": [0],  # otherwise four lists for each queue; whose turn it is, our own lines decide
            "socket_keepalive": not place.path,
            # Whoever waits for a message says nothing: of a host that is lost it would hear nothing for hours.
            "socket_keepalive_options": None if place.path else _KEEPALIVE,
            "socket_connect_timeout": _CONNECT_S,
            **_sentinel_options(place),
            "gate": gate,
        },
        task_queues=[Queue(name, Exchange("", type="direct"), routing_key=name) for name in queues],
        task_default_queue=queues[0],
        task_acks_late=True,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )

    @app.task(name=names.TASK, acks_late=True, ignore_result=True)  # type: ignore[untyped-decorator]  # celery ships no types
    def run() -> None:
        """`Pool` carries it out."""

    class Ready(bootsteps.StartStopStep):  # type: ignore[misc]  # as above
        """Tells when the consumer takes messages, and when it begins to stop."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:  # noqa: ARG002  # celery's signature
            on_ready()

    app.steps["consumer"].add(Ready)

    from celery.signals import setup_logging, worker_shutting_down

    warnings.simplefilter("ignore", SecurityWarning)  # of root, in a paragraph; worker.main says it in a line
    # With anybody connected, Celery leaves the logs as shared.log has set them up.
    celery.apps.worker.safe_say = lambda text, *_: log.say(form, "worker", "info", text)  # past the logs, as its own
    setup_logging.connect(_leave_logs, weak=False, dispatch_uid="clinvk")
    worker_shutting_down.connect(lambda **_: on_stop(), weak=False, dispatch_uid="clinvk")
    given = {"carry_out": staticmethod(carry_out), "gate": gate, "is_stopping": staticmethod(is_stopping)}
    worker = app.Worker(
        hostname=hostname,
        pool_cls=type("Pool", (Pool,), given),
        concurrency=concurrency,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        optimization="fair",
        loglevel=loglevel,
        quiet=True,
    )
    for name in ("celery.worker.strategy", "celery.worker.request", "celery.app.trace"):
        logging.getLogger(name).addFilter(_of_run)
    gate.on_change = lambda: worker.hub.call_soon(_nothing)  # which wakes it, so that it looks anew
    return worker


def _leave_logs(**_: Any) -> None:
    """A receiver that does nothing."""


def _of_run(record: logging.LogRecord) -> bool:
    """Celery's own lines about a task, whose id is the run's."""
    about = record.__dict__.pop("data", None)
    if isinstance(about, dict) and "id" in about:
        record.__dict__["run_id"] = about["id"]
    return True


def _not_here() -> "concurrent.futures.Future[bool]":
    """Puts the message back, for whoever has the backend."""
    answer: concurrent.futures.Future[bool] = concurrent.futures.Future()
    answer.set_result(False)
    return answer


def _nothing() -> None:
    """Work for a hub that is only to be woken."""
