"""How the processes of a run are known and ended, on real processes."""

import os
import signal
import subprocess
import time

import pytest

from tests.process import scripts
from tests.process.conftest import Pids, until
from worker import tree

GONE = "4194300:1"  # a warden that cannot be: its start time is that of the kernel's own threads


def started(mark: tree.Mark, script: str, **env: str) -> "subprocess.Popen[bytes]":
    with tree.spawning, tree.tagged(mark.tag):
        child = subprocess.Popen(
            ["/bin/sh", "-c", script], env={"PATH": "/usr/bin:/bin", **env}, start_new_session=True
        )
    tree.own.add(child.pid)
    return child


def finish(child: "subprocess.Popen[bytes]") -> int:
    code = child.wait(10)
    tree.own.discard(child.pid)
    return code


def end(mark: tree.Mark) -> bool:
    """Whether nothing of it is left; what is, is told to end."""
    found, believable = tree.leftovers(mark, ())
    tree.kill(found)
    return believable and not found


def end_strays() -> bool:
    found = tree.strays()
    tree.kill(found)
    return not found


def mine() -> str:
    return tree.warden_mark(os.getpid())


def test_no_process_is_no_error():
    child = subprocess.Popen(["/bin/true"])
    child.wait()

    assert tree.look(child.pid) is None
    assert tree.tag_of(child.pid) == 0
    assert tree.environ(child.pid) == {}
    assert tree.children(child.pid) == []


def test_a_process_with_the_same_pid_and_another_start_is_never_signalled(pids: Pids):
    child = subprocess.Popen(["/bin/sh", "-c", scripts.stay("child", pids.file)])
    pids.expect("child")
    seen = tree.look(child.pid)
    assert seen is not None

    sent = tree.send(seen._replace(start=seen.start - 1), signal.SIGKILL)

    assert not sent
    assert child.poll() is None
    assert tree.send(seen, signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL


def test_a_tag_outlives_environment_session_and_parents_and_stays_with_the_run(subreaper, pids: Pids):
    mark, other = tree.new_mark("run_1", mine()), tree.new_mark("run_2", mine())
    before = tree.tag_of(os.getpid())
    child = started(mark, scripts.daemon("daemon", pids.file))
    assert finish(child) == 0
    (daemon,) = pids.expect("daemon")

    assert tree.tag_of(daemon) == mark.tag
    assert tree.tag_of(os.getpid()) == before
    until(lambda: end(other), 1)
    assert pids.alive(daemon) == [daemon]
    found, _ = tree.leftovers(mark, ())
    assert daemon in {seen.pid for seen in found}
    until(lambda: end(mark), 1)
    assert pids.gone(daemon, limit_s=0)


def test_a_marker_in_the_environment_says_it_where_there_is_no_tag(subreaper, pids: Pids, monkeypatch):
    monkeypatch.setattr(tree, "can_tag", lambda: False)
    mark = tree.new_mark("run_1", mine())
    child = started(mark, scripts.tool("tool", pids.file), CLINVK_RUN="run_1")
    finish(child)
    (tool,) = pids.expect("tool")

    found, _ = tree.leftovers(mark, ())

    assert tree.tag_of(tool) == 0
    assert tool in {seen.pid for seen in found}
    until(lambda: end(mark), 1)


def test_what_was_seen_below_a_cli_is_known_though_it_has_neither(subreaper, pids: Pids, monkeypatch):
    monkeypatch.setattr(tree, "can_tag", lambda: False)
    mark = tree.new_mark("run_1", mine())
    script = f"{scripts.daemon('daemon', pids.file)} setsid env -i sh -c '{scripts.stay('tool', pids.file)}' & wait"
    child = started(mark, script, CLINVK_RUN="run_1")
    (tool, _) = pids.expect("tool", "daemon")
    known = set(tree.below([child.pid]))
    child.kill()
    finish(child)

    found, _ = tree.leftovers(mark, known)

    assert tool in {seen.pid for seen in found}
    until(end_strays, 1)


def test_a_dead_orphan_is_reaped_and_the_look_taken_again(subreaper, pids: Pids):
    mark = tree.new_mark("run_1", mine())
    child = started(mark, f"(setsid sh -c '{scripts.say('short', pids.file)}' &) ; exit 0")
    finish(child)
    (short,) = pids.expect("short")
    assert pids.gone(short)

    until(lambda: tree.leftovers(mark, ()) == ([], True), 1)

    assert tree.look(short) is None


def test_a_child_of_somebody_elses_here_is_neither_ended_nor_reaped(subreaper):
    ours = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, ours.pid, os.WEXITED | os.WNOWAIT)

    assert tree.leftovers(tree.new_mark("run_1", mine()), ()) == ([], True)

    assert ours.wait() == 0


def test_nothing_left_is_found_in_well_under_a_millisecond(subreaper):
    mark = tree.new_mark("run_1", mine())
    took = []
    for _ in range(200):
        begun = time.thread_time()  # what others do meanwhile does not count
        tree.leftovers(mark, ())
        took.append(time.thread_time() - begun)

    assert sorted(took)[100] < 0.0005


def test_a_kernel_that_lists_no_children_is_searched_whole(subreaper, pids: Pids, monkeypatch):
    monkeypatch.setattr(tree, "_lists_children", lambda: False)
    mark = tree.new_mark("run_1", mine())
    child = started(mark, scripts.daemon("daemon", pids.file))
    finish(child)
    (daemon,) = pids.expect("daemon")

    found, _ = tree.leftovers(mark, ())

    assert daemon in {seen.pid for seen in found}
    until(lambda: end(mark), 1)


@pytest.mark.parametrize("left", [scripts.tool, scripts.daemon])
def test_what_belongs_to_a_dead_warden_is_ended_at_the_next_start(subreaper, pids: Pids, left):
    child = started(tree.new_mark("run_1", GONE), left("left", pids.file), CLINVK_RUN="run_1", CLINVK_WARDEN=GONE)
    finish(child)
    found = pids.expect("left")

    ended = tree.end_forsaken()

    assert set(found) <= set(ended)
    assert pids.gone(*found)
    until(end_strays, 1)


def test_markers_alone_say_that_a_warden_is_dead(subreaper, pids: Pids, monkeypatch):
    monkeypatch.setattr(tree, "can_tag", lambda: False)
    child = started(tree.new_mark("run_1", GONE), scripts.tool("left", pids.file), CLINVK_RUN="r", CLINVK_WARDEN=GONE)
    finish(child)
    found = pids.expect("left")

    assert set(found) <= set(tree.end_forsaken())

    assert pids.gone(*found)
    until(end_strays, 1)


def test_what_belongs_to_a_warden_that_lives_is_left_alone(subreaper, pids: Pids):
    mark = tree.new_mark("run_1", mine())
    child = started(mark, scripts.daemon("daemon", pids.file), CLINVK_RUN="run_1", CLINVK_WARDEN=mine())
    finish(child)
    (daemon,) = pids.expect("daemon")

    assert daemon not in tree.end_forsaken()

    assert pids.alive(daemon) == [daemon]
    until(end_strays, 1)
