"""Stands in for `codex exec --json`: says what it was asked, for the examples that route to codex by a model's name."""

import json
import sys

asked = sys.stdin.buffer.read().decode().strip().split("\n")[-1]
usage = {"input_tokens": 167, "cached_input_tokens": 7, "output_tokens": 8, "reasoning_output_tokens": 0}
for item in (
    {"type": "thread.started", "thread_id": "00000000-0000-7000-8000-000000000000"},
    {"type": "turn.started"},
    {"type": "item.completed", "item": {"id": "item_0", "type": "agent_message", "text": f"codex heard: {asked}"}},
    {"type": "turn.completed", "usage": usage},
):
    sys.stdout.write(json.dumps(item) + "\n")
