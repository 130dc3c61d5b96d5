"""What `clinvk top` draws."""

import re

import pytest

from api.top.view import HostRow, RunRow, Snapshot, fit, render, size, span, totals

HOSTS = (
    HostRow(
        host="gpu-1",
        version="0.1.0",
        slots=8,
        running=3,
        draining=False,
        backends=(("claude", "ready", 3), ("codex", "not_installed", 0), ("gemini", "limited", 0)),
        memory_bytes=57 << 20,
        load=1.25,
        lag_s=0.003,
    ),
    HostRow(host="h" * 60, version="0.1.0", slots=8, running=0, draining=True, backends=(("echo", "ready", 0),)),
)
RUNS = tuple(
    RunRow(
        id=f"run_{n:024}", status="running", backend="claude", tenant="t\x1b[2J\n", host="gpu-1", for_s=n * 50, events=n
    )
    for n in range(40)
)
SEEN = Snapshot(
    source="redis localhost",
    clock="12:00:00",
    status="degraded",
    reasons=("no worker can run codex " + "x" * 100,),
    waiting=7,
    queued=2,
    running=40,
    queues=(("claude", 7, 95.0), ("codex", 0, 0.0)),
    hosts=HOSTS,
    runs=RUNS,
)


@pytest.mark.parametrize("width", [20, 80, 132])
def test_no_line_is_wider_than_the_terminal_and_nothing_moves_the_cursor(width):
    for line in render(SEEN, width=width, height=24):
        assert len(line) <= width
        assert line.isprintable() or line == ""


def test_at_80_columns_all_that_matters_is_there():
    text = "\n".join(render(SEEN, width=80))

    assert "clinvk degraded  12:00:00  redis localhost" in text
    assert "running 40  queued 2  waiting 7  slots 3/16  [######" in text
    assert "waiting: claude 7 (95s)" in text
    assert "claude:3  -codex  gemini!limited" in text
    assert "draining  echo" in text
    assert re.search(r"run_0+39 running +32m +39 claude  gpu-1 +t\?\[2J", text)
    assert "and 9 more" in text


def test_what_does_not_fit_is_counted():
    lines = render(SEEN, width=80, height=20)

    assert len(lines) == 20
    assert lines[-1] == f"and {49 - sum(line.startswith('run_') for line in lines)} more"


def test_an_empty_service_says_so():
    text = "\n".join(render(Snapshot(source="s", clock="c", status="unhealthy", reasons=("away",))))

    assert "away" in text
    assert "no worker is connected" in text
    assert "no run is under way" in text


def test_workers_that_are_not_shown_are_not_said_to_be_none():
    lines = render(Snapshot(source="s", clock="c", status="ok", shows_hosts=False, waiting=2), color=True)
    text = "\n".join(lines)

    assert "the workers are not shown" in text
    assert "waiting 2" in text
    assert "no worker is connected" not in text
    assert "slots" not in text
    assert "\x1b[31m" not in text, "nothing is amiss"


def test_colours_only_where_they_are_wanted():
    plain, painted = render(SEEN), render(SEEN, color=True)

    assert "\x1b" not in "".join(plain)
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in painted] == plain


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.95, "950ms"),
        (3.21, "3.2s"),
        (59, "59s"),
        (119.4, "119s"),
        (720, "12m"),
        (7200, "2h"),
        (259200, "3d"),
        (-1, "-"),
    ],
)
def test_times_are_short(seconds, shown):
    assert span(seconds) == shown


def test_small_things():
    assert [size(n) for n in (0, 2048, 5 << 20, 3 << 30)] == ["0B", "2K", "5M", "3G"]
    assert (fit("abcdef", 4), fit("abc", 4), fit("abc", 0)) == ("abc~", "abc", "")
    assert totals([("claude", 1, 2.0), ("claude@h", 2, 9.0)]) == (("claude", 3, 9.0),)


def test_a_look_that_failed_shows_why_and_no_figures_that_would_be_read_as_an_empty_service():
    text = "\n".join(
        render(Snapshot(source="x", clock="1", status="unknown", failed="the key is not known"), height=24)
    )

    assert "clinvk unknown" in text
    assert "the key is not known" in text
    assert "no run is under way" not in text
    assert "slots" not in text
