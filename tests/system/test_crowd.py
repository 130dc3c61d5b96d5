"""A small crowd on one API process; `python -m bench.crowd` is the large one."""

import asyncio

import pytest

from bench.crowd import crowd, hanging
from tests.system.service import serving

pytestmark = pytest.mark.processes


def test_idle_connections_and_open_streams_are_all_served_and_leave_nothing():
    with serving(CLINVK_SERVER__HEARTBEAT_SECS="1") as service:
        base, pid = service.apis[0][1], service.apis[0][0].pid
        ids = hanging(service, 4)

        told = asyncio.run(crowd(base, pid, ids, streams=200, idle=1000, seconds=3))

    assert told["open"] >= 1190
    assert told["left"] <= 2
    assert told["amid_p99_ms"] < 1000
    assert told["kib_stream"] < 80
    assert told["kib_idle"] < 40
