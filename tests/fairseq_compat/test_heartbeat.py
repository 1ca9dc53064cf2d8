"""The thread that watches the other processes, in a process of its own."""

import subprocess
import sys

import pytest

# A thread that is nearly always inside a call of its store when the process ends.
PROGRAM = """
import socket
from types import SimpleNamespace

from torch import distributed as dist

from megalodon_tasks.fairseq_compat import heartbeat

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
dist.init_process_group("gloo", init_method=address, rank=0, world_size=1)
dist.get_world_size = lambda: 2
heartbeat.BEAT_SECONDS = 0.0
parallel = SimpleNamespace(distributed_init_method=address)
heartbeat.start(SimpleNamespace(distributed_training=parallel))
heartbeat.stop()
"""


@pytest.mark.parametrize("attempt", range(2))
def test_a_process_that_stops_watching_ends_by_itself(attempt):
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "terminate" not in done.stderr
