"""Stands for the Celery process under a warden: argv: FILE, what it is to do (see `main`), a script for a run."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from worker import tree
from worker.backends.base import Launch
from worker.process import Process
from worker.warden import HEARTBEAT, LIFELINE, watch_lifeline


def end_at_once() -> None:
    tree.end_everything(3.0)
    os._exit(1)


async def beat(heartbeat: int) -> None:
    while True:
        os.write(heartbeat, b".")
        await asyncio.sleep(0.02)


async def carry_out(script: str, what: str, heartbeat: int) -> None:
    launch = Launch(argv=("/bin/sh", "-c", script), env={"PATH": "/usr/bin:/bin"}, cwd="/tmp", stdin=b"")
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    beating = asyncio.create_task(beat(heartbeat)) if what in ("BEAT", "SPIN", "CLOSE") else None
    async with await Process.start(launch, run_id="run_w", instance="ins_w", scratch="/tmp"):
        if what == "SPIN":
            asyncio.get_running_loop().call_later(0.1, spin)
        if what == "CLOSE":
            beating.cancel()
            os.close(heartbeat)
        await told.wait()


def spin() -> None:
    while True:
        pass


def main() -> int:
    file, what, script = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    tree.become_subreaper()
    lifeline = int(os.environ.pop(LIFELINE))
    heartbeat = int(os.environ.pop(HEARTBEAT))
    os.set_inheritable(heartbeat, False)
    watch_lifeline(lifeline, end_at_once)
    if what == "DEAF":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lives = file.read_text().count("worker") if file.exists() else 0
    with file.open("a") as out:
        out.write(f"worker{lives} {os.getpid()}\n")
    if what == "CRASH":
        os.kill(os.getpid(), signal.SIGKILL)
    if what in ("EXIT", "WRONG"):
        return 3 if what == "EXIT" else os.EX_CONFIG
    if what == "DEAF":
        while True:
            signal.pause()
    asyncio.run(carry_out(script, what, heartbeat))
    return 0


if __name__ == "__main__":
    sys.exit(main())
