"""The Celery side: one task whose id is the run's id, on a pool that is the runner's loop; late ack, no result backend."""

import concurrent.futures
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import kombu.transport
import kombu.transport.redis
from billiard.einfo import ExceptionInfo
from celery import Celery, bootsteps
from celery.concurrency.base import BasePool
from celery.exceptions import Reject
from kombu import Exchange, Queue

from shared import names

_log = logging.getLogger(__name__)

CarryOut = Callable[[str], "concurrent.futures.Future[bool]"]


class _Channel(kombu.transport.redis.Channel):  # type: ignore[misc]  # kombu ships no types
    """Keeps its client: stock kombu 5.7 makes a new one for each message."""

    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._kept is None:
            self._kept = super()._create_client()
        return self._kept


class Transport(kombu.transport.redis.Transport):  # type: ignore[misc]  # as above
    Channel = _Channel


# A URL's scheme names its transport, whatever `broker_transport` says; so the names are given to the one above.
for _scheme in ("redis", "rediss", "redis+socket"):
    kombu.transport.TRANSPORT_ALIASES[_scheme] = "worker.celery_app:Transport"


class Pool(BasePool):  # type: ignore[misc]  # celery ships no types
    """Gives a task to the runner's loop, and its end back to Celery: a run needs no thread of its own.

    Celery's threads pool would hold one for each run, only to wait: twice the switches between threads, and megabytes
    at some hundred runs.
    """

    body_can_be_buffer = True
    signal_safe = False
    carry_out: CarryOut  # set by `create_worker`

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._under_way: set[concurrent.futures.Future[bool]] = set()

    def on_apply(
        self,
        target: Any,  # noqa: ARG002  # celery's tracer, which would wait for the task's end
        args: Any,  # noqa: ARG002  # the task has none
        kwargs: Any,  # noqa: ARG002  # as above
        *,
        callback: Callable[[Any], Any],
        accept_callback: Callable[[int, float], Any],
        correlation_id: str,
        **_: Any,
    ) -> None:
        accept_callback(os.getpid(), time.monotonic())
        run = type(self).carry_out(correlation_id)
        self._under_way.add(run)
        run.add_done_callback(lambda run: self._done(run, callback))

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
        """Celery's warm shutdown: returns when no run is under way, which the runner's grace bounds."""
        concurrent.futures.wait(list(self._under_way))


def broker_url(url: str) -> str:
    return url.replace("unix://", "redis+socket://", 1)


def create_worker(
    url: str,
    queues: Sequence[str],
    carry_out: CarryOut,
    on_ready: Callable[[], None],
    on_stop: Callable[[], None],
    *,
    hostname: str,
    concurrency: int,
    loglevel: str,
) -> Any:
    """Celery's worker, to be started on the main thread. `carry_out` starts a run in the runner's loop; its result
    False puts the message back."""
    app = Celery("clinvk", broker=broker_url(url), set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            # Otherwise kombu writes each message into Redis a second time until it is acknowledged, half of its work,
            # to give it to another worker later. Here a message is a hint at a record, and the sweep gives another.
            "ack_emulation": False,
            "priority_steps": [0],  # otherwise four lists for each queue; whose turn it is, our own lines decide
            "socket_keepalive": not url.startswith("unix:"),
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

    from celery.signals import worker_shutting_down

    worker_shutting_down.connect(lambda **_: on_stop(), weak=False)
    return app.Worker(
        hostname=hostname,
        pool_cls=type("Pool", (Pool,), {"carry_out": staticmethod(carry_out)}),
        concurrency=concurrency,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        optimization="fair",
        loglevel=loglevel,
    )
