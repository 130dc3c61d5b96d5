"""The message that the store writes, against a stock Celery."""

import json
import subprocess
import sys

import pytest
from celery import Celery
from kombu import Exchange, Queue

from shared import names
from shared.queue import message
from tests.servers import RedisServer

pytestmark = pytest.mark.processes


@pytest.fixture
def server():
    made = RedisServer()
    yield made
    made.close()


def stock(server: RedisServer) -> Celery:
    app = Celery("stock", broker=server.url.replace("unix://", "redis+socket://"), set_as_current=False)
    app.conf.task_queues = [Queue("echo", Exchange("", type="direct"), routing_key="echo")]
    app.conf.worker_enable_remote_control = False
    return app


_WORKER = """
import sys
from celery import Celery
from kombu import Exchange, Queue
app = Celery("stock", broker=sys.argv[1])
app.conf.task_queues = [Queue("echo", Exchange("", type="direct"), routing_key="echo")]
app.conf.worker_redirect_stdouts = False
@app.task(name="clinvk.run", bind=True)
def run(task):
    print("carried out", task.request.id, flush=True)
app.worker_main(["worker", "--pool=solo", "--without-gossip", "--without-mingle", "--without-heartbeat"])
"""


@pytest.mark.filterwarnings("ignore")  # celery's own
def test_it_is_what_apply_async_would_send(server):
    app = stock(server)
    app.send_task(names.TASK, (), task_id="run_1", queue="echo", ignore_result=True)
    client = server.client()
    theirs, ours = json.loads(client.lpop("echo")), json.loads(message("run_1", "echo", "tag"))
    client.close()
    app.close()

    assert set(theirs) == set(ours)
    assert set(theirs["headers"]) == set(ours["headers"])
    for name, value in ours["headers"].items():
        if name != "origin":
            assert theirs["headers"][name] == value, name
    assert set(theirs["properties"]) == set(ours["properties"])
    for name, value in ours["properties"].items():
        if name not in ("delivery_tag", "reply_to"):
            assert theirs["properties"][name] == value, name
    assert theirs["body"] == ours["body"]


def test_a_stock_worker_carries_it_out(server):
    client = server.client()
    client.lpush("echo", message("run_42", "echo", "tag-1"))
    url = server.url.replace("unix://", "redis+socket://")
    env = {"PATH": "/usr/bin:/bin", "HOME": str(server.folder)}
    words = [sys.executable, "-W", "ignore", "-c", _WORKER, url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, text=True) as worker:
        try:
            assert worker.stdout is not None
            assert any("carried out run_42" in line for line in worker.stdout)
        finally:
            worker.kill()
    client.close()
