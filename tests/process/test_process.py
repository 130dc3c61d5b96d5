"""Bytes in and out of a CLI, and its end with all that it started, on real processes."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidRequest
from tests.process import scripts
from tests.process.conftest import Pids, until
from worker import process as module
from worker import tree
from worker.backends.base import Exit, Launch
from worker.process import Process
from worker.refusal import StartFailed

pytestmark = pytest.mark.usefixtures("subreaper")


def launch(tmp_path: Path, *argv: str, stdin: bytes = b"", **more: Any) -> Launch:
    return Launch(argv=argv, env={"PATH": "/usr/bin:/bin"}, cwd=str(tmp_path), stdin=stdin, **more)


def shell(tmp_path: Path, script: str, **more: Any) -> Launch:
    return launch(tmp_path, "/bin/sh", "-c", script, **more)


def start(what: Launch, run_id: str = "run_1") -> Awaitable[Process]:
    return Process.start(what, run_id=run_id, instance="ins_1", scratch=what.cwd)


async def outcome(what: Launch) -> tuple[Exit, bytes]:
    out = b""
    async with await start(what) as process:
        async for chunk in process.chunks():
            out += chunk
        return await process.wait(), out


def carry_out(what: Launch) -> tuple[Exit, bytes]:
    return asyncio.run(outcome(what))


async def file_says(pids: Pids, *names: str) -> list[int]:
    return await asyncio.to_thread(pids.expect, *names)


# -- bytes


@pytest.mark.parametrize("stdout", ["pipe", "file"])
def test_a_large_prompt_goes_in_and_comes_out_whole(tmp_path, stdout):
    prompt = os.urandom(1_500_000)

    exit, out = carry_out(launch(tmp_path, "/bin/cat", stdin=prompt, stdout=stdout))

    assert exit == Exit(code=0)
    assert out == prompt


@pytest.mark.parametrize("stdout", ["pipe", "file"])
def test_ten_megabytes_without_a_newline_are_no_line_too_long(tmp_path, stdout):
    exit, out = carry_out(shell(tmp_path, "head -c 10000000 /dev/zero", stdout=stdout))

    assert (exit.code, len(out)) == (0, 10_000_000)


def test_a_cli_that_closes_its_stdin_early_is_no_fault(tmp_path):
    exit, out = carry_out(shell(tmp_path, "exec <&-; echo done", stdin=b"x" * 3_000_000))

    assert (exit.code, out) == (0, b"done\n")


def test_a_cli_that_ends_without_reading_its_stdin_is_no_fault(tmp_path):
    exit, _ = carry_out(shell(tmp_path, "exit 3", stdin=b"x" * 3_000_000))

    assert exit.code == 3


def test_of_stderr_the_end_is_kept(tmp_path):
    exit, out = carry_out(shell(tmp_path, "head -c 300000 /dev/zero | tr '\\0' x >&2; echo the end >&2; echo out"))

    assert out == b"out\n"
    assert exit.stderr.endswith("xthe end\n")
    assert len(exit.stderr) == 64 * 1024


def test_an_end_by_a_signal_is_a_negative_code(tmp_path):
    exit, _ = carry_out(shell(tmp_path, "kill -9 $$"))

    assert exit.code == -signal.SIGKILL


def test_bytes_come_as_they_are_written(tmp_path):
    async def talk() -> list[bytes]:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        heard = []
        async with await start(shell(tmp_path, f"echo one; read x < {fifo}; echo two")) as process:
            async for chunk in process.chunks():
                heard.append(chunk)
                if len(heard) == 1:  # only now may it write the second
                    await asyncio.to_thread(fifo.write_text, "go\n")
        return heard

    assert asyncio.run(talk()) == [b"one\n", b"two\n"]


def test_a_file_is_followed_while_it_is_written(tmp_path):
    async def talk() -> list[bytes]:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        heard = []
        async with await start(shell(tmp_path, f"echo one; read x < {fifo}; echo two", stdout="file")) as process:
            async for chunk in process.chunks():
                heard.append(chunk)
                if len(heard) == 1:
                    await asyncio.to_thread(fifo.write_text, "go\n")
        return heard

    assert asyncio.run(talk()) == [b"one\n", b"two\n"]


def test_a_file_that_grows_without_end_is_told_though_nobody_reads(tmp_path):
    async def nobody() -> None:
        told = asyncio.Event()
        what = shell(tmp_path, "head -c 5000000 /dev/zero; exec sleep 300", stdout="file")
        flood = module.Flood(3_000_000, told.set)
        async with await Process.start(what, run_id="run_1", instance="i", scratch=what.cwd, flood=flood):
            await asyncio.wait_for(told.wait(), 10)

    asyncio.run(nobody())


def test_one_that_stays_below_its_bound_is_not(tmp_path):
    async def read() -> int:
        told = asyncio.Event()
        what = shell(tmp_path, "head -c 3000000 /dev/zero", stdout="file")
        flood = module.Flood(3_000_000, told.set)
        async with await Process.start(what, run_id="run_1", instance="i", scratch=what.cwd, flood=flood) as process:
            total = 0
            async for chunk in process.chunks():
                total += len(chunk)
            assert not told.is_set()
            return total

    assert asyncio.run(read()) == 3_000_000


def test_a_reader_that_is_behind_holds_the_cli_back(tmp_path, pids):
    async def slow() -> int:
        script = f"head -c 5000000 /dev/zero; {scripts.say('written', pids.file)}"
        async with await start(shell(tmp_path, script)) as process:
            while not process._paused:
                await asyncio.sleep(0)
            assert len(process._buffer) <= module._BUFFER_BYTES + module._READ_BYTES
            assert "written" not in pids.lines()
            total = 0
            async for chunk in process.chunks():
                total += len(chunk)
            return total

    assert asyncio.run(slow()) == 5_000_000


@pytest.mark.parametrize("stdout", ["pipe", "file"])
def test_a_grandchild_that_holds_stdout_does_not_hang_the_reader_and_is_ended(tmp_path, pids, stdout):
    script = f"{scripts.tool('tool', pids.file)} while ! [ -s {pids.file} ]; do :; done; echo answer"
    begun = time.monotonic()

    exit, out = carry_out(shell(tmp_path, script, stdout=stdout))

    assert (exit.code, out) == (0, b"answer\n")
    assert time.monotonic() - begun < 2
    assert pids.gone(*pids.expect("tool"))


def test_what_the_cli_wrote_is_read_whole_though_the_reader_is_slow_and_a_grandchild_writes_on(tmp_path, pids):
    # 200 kB of answer fit into the pipe; the grandchild then fills whatever is left of it.
    script = f"head -c 200000 /dev/zero; setsid sh -c '{scripts.say('tool', pids.file)}; exec yes' & "
    script += f"while ! [ -s {pids.file} ]; do :; done"

    async def slow() -> bytes:
        async with await start(shell(tmp_path, script)) as process:
            await process.wait()
            out = b""
            async for chunk in process.chunks():
                out += chunk
            return out

    out = asyncio.run(slow())

    assert out.startswith(b"\0" * 200_000)
    assert pids.gone(*pids.expect("tool"))


# -- its end


def test_the_marker_and_nothing_but_its_three_files_are_inherited(tmp_path):
    read, write = os.pipe()
    os.set_inheritable(read, True)
    try:
        _, out = carry_out(shell(tmp_path, "env; echo; ls /proc/self/fd; readlink /proc/self/cwd"))
    finally:
        os.close(read)
        os.close(write)

    environment, rest = out.decode().split("\n\n")
    names = {line.partition("=")[0]: line.partition("=")[2] for line in environment.splitlines()}
    assert (names["CLINVK_RUN"], names["CLINVK_INSTANCE"]) == ("run_1", "ins_1")
    assert names["CLINVK_WARDEN"] == tree.warden_mark(os.getpid())
    assert rest.split()[:4] == ["0", "1", "2", "3"]  # 3 is that of `ls` itself
    assert rest.split()[4:] == [str(tmp_path)]


def test_what_is_on_no_disk_is_read_by_the_child_as_often_as_it_likes_and_changed_by_nobody(tmp_path):
    before = sorted(os.listdir("/proc/self/fd"))
    script = 'cat "$TOLD" "$TOLD"; (echo more >>"$TOLD") 2>/dev/null; (: >"$TOLD") 2>/dev/null; cat "$TOLD"; ls -A .'

    _, out = carry_out(shell(tmp_path, script, unfiled={"TOLD": b"a secret\n"}))

    assert out == b"a secret\n" * 3
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("leave", [scripts.tool, scripts.daemon])
def test_what_a_cli_leaves_running_ends_with_it(tmp_path, pids, leave):
    script = f"{leave('left', pids.file)} while ! [ -s {pids.file} ]; do :; done; echo answer"

    _, out = carry_out(shell(tmp_path, script))

    assert out == b"answer\n"
    assert pids.gone(*pids.expect("left"), limit_s=0)


def test_what_another_run_has_left_is_not_touched(tmp_path, pids):
    first, second = tmp_path / "first", tmp_path / "second"

    async def both() -> tuple[list[int], list[int]]:
        hang = "while :; do sleep 300; done"
        script = f"{scripts.daemon('other', pids.file)} {hang}"
        async with await start(shell(tmp_path, script), "run_2"):
            (other,) = await file_says(pids, "other")
            await outcome(
                shell(tmp_path, f"{scripts.daemon('left', pids.file)} while ! grep -q left {pids.file}; do :; done")
            )
            (left,) = await file_says(pids, "left")
            return pids.alive(other), pids.alive(left)

    others, lefts = asyncio.run(both())

    assert len(others) == 1
    assert lefts == []
    assert pids.gone(*pids.expect("other"), limit_s=0)
    assert not first.exists()
    assert not second.exists()


async def ended(
    what: Launch, pids: Pids, *names: str, grace_s: float = 3.0, fast: bool = False
) -> tuple[Exit, bytes, float]:
    """Starts it, waits until all have told their pids, ends it while it is being read."""
    out = bytearray()
    async with await start(what) as process:

        async def pump() -> Exit:
            async for chunk in process.chunks():
                out.extend(chunk)
            return await process.wait()

        pumping = asyncio.create_task(pump())
        found = await file_says(pids, *names)
        begun = time.monotonic()
        await process.end(grace_s=grace_s, fast=fast)
        took_s = time.monotonic() - begun
        assert pids.alive(*found) == []
        return await pumping, bytes(out), took_s


def test_an_interrupt_lets_the_cli_write_its_result(tmp_path, pids):
    script = f"trap 'echo result; exit 0' INT; {scripts.say('cli', pids.file)}; while :; do sleep 0.01; done"

    exit, out, _ = asyncio.run(ended(shell(tmp_path, script), pids, "cli"))

    assert (exit.code, out) == (0, b"result\n")


def test_sigterm_follows_an_interrupt_that_is_ignored(tmp_path, pids):
    script = f"trap '' INT; trap 'exit 143' TERM; {scripts.say('cli', pids.file)}; while :; do sleep 0.01; done"

    exit, _, took_s = asyncio.run(ended(shell(tmp_path, script), pids, "cli", grace_s=0.2))

    assert exit.code == 143
    assert took_s < 1


def test_sigkill_follows_where_all_else_is_ignored_and_takes_the_whole_tree(tmp_path, pids):
    script = f"{scripts.tool('tool', pids.file)} {scripts.daemon('daemon', pids.file)} {scripts.stay('cli', pids.file)}"

    exit, _, took_s = asyncio.run(ended(shell(tmp_path, script), pids, "cli", "tool", "daemon", grace_s=0.2))

    assert exit.code == -signal.SIGKILL
    assert took_s < 1


def test_the_fast_way_asks_nobody(tmp_path, pids):
    script = f"{scripts.tool('tool', pids.file)} {scripts.daemon('daemon', pids.file)}"
    script += f" trap 'echo result; exit 0' INT; {scripts.say('cli', pids.file)}; while :; do sleep 300; done"

    exit, out, took_s = asyncio.run(ended(shell(tmp_path, script), pids, "cli", "tool", "daemon", fast=True))

    assert (exit.code, out) == (-signal.SIGKILL, b"")
    assert took_s < 0.5


def test_a_stopped_cli_is_ended_as_any_other(tmp_path, pids):
    script = f"{scripts.say('cli', pids.file)}; kill -STOP $$"

    exit, _, _ = asyncio.run(ended(shell(tmp_path, script), pids, "cli", grace_s=0.1))

    assert exit.code == -signal.SIGKILL


def test_a_chain_of_processes_that_outrun_each_look_is_caught(tmp_path, pids):
    async def chase() -> None:
        async with await start(launch(tmp_path, *scripts.python(scripts.CHAIN, pids.file, 20_000))):
            await file_says(pids, "link100")

    asyncio.run(chase())

    assert "end" not in pids.lines()


def test_a_bounded_fork_bomb_is_cleared(tmp_path, pids):
    async def clear() -> None:
        async with await start(launch(tmp_path, *scripts.python(scripts.BOMB, pids.file, 5))):
            await asyncio.to_thread(until, lambda: len(pids.lines()) >= 20)

    asyncio.run(clear())

    assert pids.alive(*pids.lines().values()) == []


def test_a_cancellation_leaves_nothing(tmp_path, pids):
    script = f"{scripts.daemon('daemon', pids.file)} {scripts.stay('cli', pids.file)}"

    async def cancelled() -> None:
        task = asyncio.create_task(outcome(shell(tmp_path, script)))
        await file_says(pids, "cli", "daemon")
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # in the middle of the end
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pids.alive(*pids.lines().values()) == []

    asyncio.run(cancelled())


def test_an_exit_code_that_somebody_else_took_is_no_success(tmp_path):
    async def robbed() -> Exit:
        async with await start(launch(tmp_path, "/bin/true")) as process:
            os.waitpid(process.pid, 0)
            return await process.wait()

    assert asyncio.run(robbed()).code == 255


def test_it_works_in_a_loop_of_another_thread(tmp_path, pids):
    found: list[tuple[Exit, bytes]] = []
    script = f"{scripts.daemon('daemon', pids.file)} while ! [ -s {pids.file} ]; do :; done; echo answer"
    thread = threading.Thread(target=lambda: found.append(carry_out(shell(tmp_path, script))))

    thread.start()
    thread.join(20)

    assert found == [(Exit(code=0), b"answer\n")]
    assert pids.gone(*pids.expect("daemon"), limit_s=0)


def test_many_at_once_leave_neither_descriptors_nor_children(tmp_path):
    async def many() -> list[tuple[Exit, bytes]]:
        return list(await asyncio.gather(*(outcome(shell(tmp_path, f"echo {i}")) for i in range(40))))

    carry_out(launch(tmp_path, "/bin/true"))
    before = sorted(os.listdir("/proc/self/fd"))

    found = asyncio.run(many())

    assert [out for _, out in found] == [f"{i}\n".encode() for i in range(40)]
    assert sorted(os.listdir("/proc/self/fd")) == before


# -- what cannot be started


def not_executable(tmp_path: Path) -> Launch:
    (tmp_path / "cli").write_text("#!/bin/sh\n")
    return launch(tmp_path, str(tmp_path / "cli"))


def no_program(tmp_path: Path) -> Launch:
    (tmp_path / "cli").write_bytes(b"\x01\x02")
    (tmp_path / "cli").chmod(0o755)
    return launch(tmp_path, str(tmp_path / "cli"))


def no_interpreter(tmp_path: Path) -> Launch:
    (tmp_path / "cli").write_text("#!/nowhere/node\n")
    (tmp_path / "cli").chmod(0o755)
    return launch(tmp_path, str(tmp_path / "cli"))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda tmp_path: launch(tmp_path, "/nowhere/claude"), StartFailed, "no such file"),
        (not_executable, StartFailed, "may not execute"),
        (no_program, StartFailed, "no program"),
        (no_interpreter, StartFailed, "interpreter"),
        (lambda tmp_path: launch(tmp_path / "gone", "/bin/true"), StartFailed, "working directory"),
        (lambda tmp_path: launch(tmp_path, "/bin/echo", "x" * 3_000_000), InvalidRequest, "too long"),
        (lambda tmp_path: launch(tmp_path, "/bin/echo", "a\0b"), InvalidRequest, "null byte"),
    ],
    ids=["not found", "not executable", "no program", "no interpreter", "no directory", "too long", "nul"],
)
def test_what_cannot_be_started_is_said_in_clear_words(tmp_path, make: Callable[[Path], Launch], error, words):
    before = sorted(os.listdir("/proc/self/fd"))

    with pytest.raises(error, match=words):
        carry_out(make(tmp_path))

    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_link_that_came_in_the_place_of_the_directory_is_not_followed(tmp_path):
    judged = tmp_path / "judged"
    judged.symlink_to("/etc")

    with pytest.raises((InvalidRequest, StartFailed)):
        carry_out(launch(judged, "/bin/pwd"))


def test_nor_is_a_link_on_the_way_to_it(tmp_path):
    (tmp_path / "way").symlink_to("/usr")

    with pytest.raises(InvalidRequest, match="replaced by a link"):
        carry_out(launch(tmp_path / "way" / "bin", "/bin/pwd"))


# -- one that is kept


def test_one_that_is_kept_reads_what_is_written_later_and_ends_when_it_is_hung_up_on(tmp_path):
    async def test() -> tuple[Exit, list[bytes]]:
        what = launch(tmp_path, "/bin/cat", stdin=b"one\n")
        heard = []
        async with await Process.start(what, run_id="run_1", instance="i", scratch=str(tmp_path), kept=True) as process:
            more = iter([b"two\n", os.urandom(300_000).replace(b"\n", b"-") + b"\n"])
            async for chunk in process.chunks():
                heard.append(chunk)
                if chunk.endswith(b"\n"):
                    if (data := next(more, None)) is None:
                        process.stdin.end()
                    else:
                        process.stdin.write(data)
            process.stdin.write(b"nobody reads this")
            return await process.wait(), heard

    exit, heard = asyncio.run(test())

    assert exit.code == 0
    assert heard[:2] == [b"one\n", b"two\n"]
    assert len(b"".join(heard)) == 300_009
