"""A warden over a process that stands for the worker, with real runs below it, and every way to lose one of them."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process import scripts
from tests.process.conftest import Pids, until
from worker import tree, warden

ROOT = Path(__file__).parents[2]
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(pids: Pids) -> Iterator[Start]:
    """Starts a warden over tests/process/worker_like.py; `prepare` is run in the warden first."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(what="STAY", script="", *, prepare="", call="", lifeline=None):
        call = call or f"sys.exit(warden.run(argv, os.environ, lifeline={lifeline}))"
        code = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); from worker import warden\n"
        code += f"argv = [{sys.executable!r}, '-m', 'tests.process.worker_like', *sys.argv[1:]]\n{prepare}\n{call}"
        env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(pids.file), what, script],
            env=env,
            cwd=ROOT,
            start_new_session=True,
            pass_fds=() if lifeline is None else (lifeline,),
        )
        started.append(child)
        return child

    yield begin
    for child in started:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        child.wait(10)


def bad_tree(pids: Pids) -> str:
    return f"{scripts.tool('tool', pids.file)} {scripts.daemon('daemon', pids.file)} {scripts.stay('cli', pids.file)}"


ALL = ("worker0", "cli", "tool", "daemon")


def test_a_killed_worker_leaves_nothing_and_is_started_again(start: Start, pids: Pids):
    child = start("STAY", bad_tree(pids))
    worker, *rest = pids.expect(*ALL)

    os.kill(worker, signal.SIGKILL)

    assert pids.gone(worker, *rest, limit_s=1.0)
    (again,) = pids.expect("worker1")
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 0
    assert pids.gone(again, *pids.lines().values())


def test_what_forks_while_it_is_ended_is_ended(start: Start, pids: Pids, tmp_path: Path):
    bomb = tmp_path / "bomb.py"
    bomb.write_text(scripts.BOMB)
    script = f"{sys.executable} -S -E {bomb} {pids.file} 7 & wait"
    child = start("STAY", script, call="sys.exit(warden.run(argv, os.environ, restart=False))")
    (worker,) = pids.expect("worker0")
    until(lambda: len(pids.lines()) > 30)

    os.kill(worker, signal.SIGKILL)

    assert child.wait(1) == 128 + signal.SIGKILL
    assert pids.alive(*pids.lines().values()) == []


def test_one_that_is_not_to_start_it_again_returns_its_code(start: Start, pids: Pids):
    child = start("STAY", bad_tree(pids), call="sys.exit(warden.run(argv, os.environ, restart=False))")
    worker, *rest = pids.expect(*ALL)

    os.kill(worker, signal.SIGKILL)

    assert child.wait(5) == 128 + signal.SIGKILL
    assert pids.gone(*rest, limit_s=0)


def test_a_killed_warden_takes_all_with_it(start: Start, pids: Pids):
    child = start("STAY", bad_tree(pids))
    found = pids.expect(*ALL)

    child.kill()

    assert pids.gone(*found, limit_s=1.0)


def test_both_killed_at_once_are_cleared_up_after_at_the_next_start(start: Start, pids: Pids):
    child = start("STAY", bad_tree(pids))
    worker, *rest = pids.expect(*ALL)

    child.send_signal(signal.SIGSTOP)  # it cannot act upon the worker's death before its own
    os.kill(worker, signal.SIGKILL)
    assert pids.gone(worker)
    child.kill()
    child.wait()
    # Now nobody is left to end them, except whichever worker starts next on this host: of another test, or this.
    start("EXIT", call="sys.exit(warden.run(argv, os.environ, restart=False))")

    assert pids.gone(*rest, limit_s=2.0)


def test_the_end_of_its_own_lifeline_ends_everything(start: Start, pids: Pids):
    read, write = os.pipe()
    child = start("STAY", bad_tree(pids), lifeline=read)
    os.close(read)
    found = pids.expect(*ALL)

    os.close(write)

    assert pids.gone(*found, limit_s=1.0)
    assert child.wait(5) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_first_signal_lets_the_worker_end_in_its_own_way(start: Start, pids: Pids, number):
    child = start("STAY", bad_tree(pids))
    found = pids.expect(*ALL)

    child.send_signal(number)

    assert child.wait(10) == 0
    assert pids.gone(*found, limit_s=0)


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGINT), (signal.SIGQUIT,)])
def test_impatience_has_a_limit(start: Start, pids: Pids, numbers):
    child = start("DEAF", prepare="warden._IMPATIENT_S = 0.2")
    (worker,) = pids.expect("worker0")

    for number in numbers:
        child.send_signal(number)

    assert child.wait(3) == 128 + signal.SIGKILL
    assert pids.gone(worker)


def test_one_signal_alone_is_patient(start: Start, pids: Pids):
    child = start("DEAF", prepare="warden._IMPATIENT_S = 0.05")
    (worker,) = pids.expect("worker0")

    child.send_signal(signal.SIGTERM)

    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    assert pids.alive(worker) == [worker]
    child.send_signal(signal.SIGTERM)
    assert child.wait(5) == 128 + signal.SIGKILL


def test_a_worker_that_dies_at_every_start_is_started_again_and_again(start: Start, pids: Pids):
    child = start("CRASH", prepare="warden._PAUSE_S = 0.01")

    pids.expect(*[f"worker{i}" for i in range(9)])

    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 128 + signal.SIGKILL


def test_one_whose_configuration_is_wrong_is_not(start: Start, pids: Pids):
    child = start("WRONG")

    assert child.wait(10) == os.EX_CONFIG
    assert list(pids.lines()) == ["worker0"]


# -- one that is frozen

MINDED = "sys.exit(warden.run(argv, os.environ, lease_s=0.1))"
SOON = "warden._SILENCE_S = 0.5"


def test_a_frozen_worker_is_killed_with_all_below_it_and_another_is_started(start: Start, pids: Pids):
    child = start("BEAT", bad_tree(pids), prepare=SOON, call=MINDED)
    worker, *rest = pids.expect(*ALL)

    os.kill(worker, signal.SIGSTOP)

    assert pids.gone(worker, *rest, limit_s=2.0)
    pids.expect("worker1")
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 0


def test_one_whose_loop_turns_no_more_likewise(start: Start, pids: Pids):
    start("SPIN", bad_tree(pids), prepare=SOON, call=MINDED)
    found = pids.expect(*ALL)

    assert pids.gone(*found, limit_s=5.0)
    pids.expect("worker1")


@pytest.mark.parametrize("what", ["BEAT", "STAY", "CLOSE"])
def test_one_that_speaks_or_has_not_spoken_yet_or_ends_in_good_order_lives(start: Start, pids: Pids, what):
    child = start(what, bad_tree(pids), prepare="warden._SILENCE_S = 1.0", call=MINDED)
    found = pids.expect(*ALL)

    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(2)

    assert pids.alive(*found) == found
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 0


def test_one_that_stood_still_together_with_its_warden_lives(start: Start, pids: Pids):
    prepare = "warden._LATE_S = 1.0; warden._SILENCE_S = 1.0"
    child = start("BEAT", bad_tree(pids), prepare=prepare, call=MINDED)
    worker, *rest = pids.expect(*ALL)

    os.kill(worker, signal.SIGSTOP)
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(2.5)  # a machine that is suspended
    child.send_signal(signal.SIGCONT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.2)
    os.kill(worker, signal.SIGCONT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(1.5)

    assert pids.alive(worker, *rest) == [worker, *rest]


def test_a_signal_between_two_lives_is_heard_at_once(start: Start, pids: Pids):
    child = start("CRASH", prepare="warden.min = lambda *_: 60.0")
    (worker,) = pids.expect("worker0")
    assert pids.gone(worker, limit_s=5)
    until(lambda: not tree.children(child.pid))

    child.send_signal(signal.SIGTERM)

    assert child.wait(2) == 128 + signal.SIGKILL
    assert "worker1" not in pids.lines()


def test_no_cli_inherits_a_lifeline(start: Start, pids: Pids):
    read, write = os.pipe()
    start("STAY", bad_tree(pids), lifeline=read)
    found = pids.expect("cli", "tool", "daemon")

    for pid in found:
        kinds = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert len([kind for kind in kinds if kind.startswith("pipe:")]) <= 3
        assert not {os.readlink(f"/proc/self/fd/{fd}") for fd in (read, write)} & set(kinds)
    os.close(write)
    assert pids.gone(*found)
    os.close(read)


def test_it_is_small(start: Start, pids: Pids):
    child = start("STAY", bad_tree(pids), call="warden.become(argv, os.environ)")
    found = pids.expect(*ALL)

    status = Path(f"/proc/{child.pid}/status").read_text()

    assert int(status.split("VmRSS:")[1].split()[0]) < 15 * 1024
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 0
    assert pids.gone(*found, limit_s=0)


def test_it_reaps_what_comes_to_it(start: Start, pids: Pids):
    # The worker stands still and so reaps nothing; what is started beside it comes to the warden and must not pile up.
    prepare = "import subprocess\nfor i in range(3): subprocess.Popen(['/bin/sh', '-c', 'setsid sh -c : &'])"
    child = start("STAY", scripts.stay("cli", pids.file), prepare=prepare)
    (worker, _) = pids.expect("worker0", "cli")

    until(lambda: tree.children(child.pid) == [worker], 2)

    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 0


def test_one_that_cannot_be_started_is_said(start: Start):
    child = start(call="sys.exit(warden.run(['/nowhere/python'], os.environ, restart=False))")

    assert child.wait(5) == 127


def test_a_lifeline_is_watched_until_its_end():
    import threading

    read, write = os.pipe()
    ended = threading.Event()

    warden.watch_lifeline(read, ended.set)
    os.write(write, b"x")
    assert not ended.is_set()
    os.close(write)

    assert ended.wait(5)
    os.close(read)
