"""From which queues an instance takes messages."""

from worker.gate import Gate


def test_a_queue_is_asked_only_while_its_backend_is_here():
    gate = Gate({}, 8)
    changes = []
    gate.on_change = lambda: changes.append(1)

    assert not gate.wants("claude")
    gate.open(["claude"])
    assert gate.wants("claude")
    assert gate.wants("claude@host")
    assert not gate.wants("codex")
    assert gate.serves("claude@host")
    assert not gate.serves("codex")
    gate.open(["claude"])
    gate.open([])
    assert not gate.wants("claude@host")
    assert len(changes) == 2


def test_a_backend_at_its_limit_is_left_out_and_leaves_the_others_their_slots():
    gate = Gate({"claude": 1}, 3)
    gate.open(["claude", "codex"])

    gate.take("claude@host")

    assert not gate.wants("claude")
    assert gate.narrow
    assert gate.wants("codex")
    gate.give("claude@host")
    assert gate.wants("claude")
    assert not gate.narrow


def test_all_together_take_no_more_than_the_workers_slots():
    gate = Gate({}, 2)
    gate.open(["claude", "codex"])

    gate.take("claude")
    gate.take("codex")

    assert not gate.wants("claude")
    gate.give("codex")
    assert gate.wants("claude")
