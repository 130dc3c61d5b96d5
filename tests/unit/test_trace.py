"""W3C trace context: what is taken over, and what is none."""

import pytest

from shared import trace

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        (f"00-{ID}-{SPAN}-01", 1),
        (f"00-{ID}-{SPAN}-00", 0),
        (f" 00-{ID}-{SPAN}-03\t", 3),
        (f"00-{ID}-{SPAN}-fd", 1),  # of the flags only those that are known
        (f"cc-{ID}-{SPAN}-01-what-a-later-version-adds", 1),
    ],
)
def test_a_trace_context_is_taken_over(given, flags):
    found = trace.parse(given)

    assert found == trace.Trace(ID, SPAN, flags)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        f"00-{ID}-{SPAN}",
        f"00-{ID.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{ID}-{'0' * 16}-01",
        f"ff-{ID}-{SPAN}-01",
        f"00-{ID}-{SPAN}-01-more",
        f"00-{ID}-{SPAN}-01\n",
        f"00-{ID[1:]}-{SPAN}-01",
    ],
)
def test_what_is_none_is_not(given):
    assert trace.parse(given) is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
        ("fw529a3039@dt=FfAAA", "fw529a3039@dt=FfAAA"),
        ("a=1,a=2", ""),
        ("a=1,B=2", ""),
        ("a=1\r\nx-evil: 1", ""),
        (",".join(f"k{n}=1" for n in range(33)), ""),
        ("", ""),
    ],
)
def test_a_state_is_passed_on_as_it_came_or_dropped(given, kept):
    found = trace.parse(f"00-{ID}-{SPAN}-01", given)

    assert found is not None
    assert found.state == kept


def test_a_new_span_stays_in_its_trace():
    above = trace.Trace(ID, SPAN, 1, "a=1")

    below = above.below()

    assert (below.trace_id, below.flags, below.state) == (ID, 1, "a=1")
    assert below.span_id != SPAN
    assert trace.parse(below.parent, below.state) == below
    assert trace.parse(trace.new().parent) is not None
    assert not trace.new().sampled
