"""The Celery message that hints at a run, byte for byte, without Celery.

Celery's protocol 2 inside kombu's Redis envelope (https://docs.celeryq.dev/en/stable/internals/protocol.html; kombu
5.7 `transport/virtual` and `transport/redis`). A run's id is the task's id and there are no arguments, so that one
template serves all runs and the store's scripts can write the message in the same step as the run's state.
`tests/process/test_message.py` gives it to a stock Celery worker and compares it with what `apply_async` sends.
"""

import base64
import json

from shared import names

_BODY = [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]

_MESSAGE = {
    "body": base64.b64encode(json.dumps(_BODY).encode()).decode(),
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": {
        "lang": "py",
        "task": names.TASK,
        "id": "@RUN@",
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": "@RUN@",
        "parent_id": None,
        "argsrepr": "()",
        "kwargsrepr": "{}",
        "origin": "clinvk",
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    },
    "properties": {
        "correlation_id": "@RUN@",
        "reply_to": "",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "@QUEUE@"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": "@TAG@",
    },
}

TEMPLATE = json.dumps(_MESSAGE)
"""`@RUN@`, `@QUEUE@` and `@TAG@` (unique for each delivery) are to be filled in; none needs escaping."""


def message(run_id: str, queue: str, tag: str) -> bytes:
    """What goes, by LPUSH, into the list named like the queue."""
    return TEMPLATE.replace("@RUN@", run_id).replace("@QUEUE@", queue).replace("@TAG@", tag).encode()
