"""Two minutes of the soak: nothing lost, every run ended once, no process, file, connection or name left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.processes
@pytest.mark.timeout(400)
def test_two_minutes_of_everything_with_faults_lose_and_leave_nothing():
    command = [sys.executable, "-m", "bench.soak", "2", "--counts", "--rate", "8", "--every", "10"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=380, check=False)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    summary = json.loads(done.stdout)
    assert summary["wrong"] == {}
    assert summary["runs"] > 500
    assert {name for _, name in summary["faults"]} >= {"worker_killed", "redis_killed", "api_killed", "host_dies"}
