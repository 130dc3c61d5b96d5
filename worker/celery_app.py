"""The Celery side: one task whose id is the run's id, on the threads pool, with late ack and no result backend."""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any

import kombu.transport
import kombu.transport.redis
from celery import Celery, bootsteps
from celery.exceptions import Reject
from kombu import Exchange, Queue

from shared import names


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


def broker_url(url: str) -> str:
    return url.replace("unix://", "redis+socket://", 1)


def create_celery(
    url: str,
    queues: Sequence[str],
    carry_out: Callable[[str], "concurrent.futures.Future[bool]"],
    on_ready: Callable[[], None],
    on_stop: Callable[[], None],
) -> Celery:
    """`carry_out` starts a run in the runner's loop; its result False puts the message back."""
    app = Celery("clinvk", broker=broker_url(url), set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            # Otherwise kombu writes each message into Redis a second time until it is acknowledged, half of its work,
            # to give it to another worker later. Here a message is a hint at a record, and the sweep gives another.
            "ack_emulation": False,
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

    @app.task(name=names.TASK, bind=True, acks_late=True, ignore_result=True)  # type: ignore[untyped-decorator]  # celery ships no types
    def run(task: Any) -> None:
        if not carry_out(task.request.id).result():
            raise Reject("this worker takes no more runs", requeue=True)

    class Ready(bootsteps.StartStopStep):  # type: ignore[misc]  # as above
        """Tells when the consumer takes messages, and when it begins to stop."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:  # noqa: ARG002  # celery's signature
            on_ready()

    app.steps["consumer"].add(Ready)

    from celery.signals import worker_shutting_down

    worker_shutting_down.connect(lambda **_: on_stop(), weak=False)
    return app
