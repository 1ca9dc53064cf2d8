"""Notice within a minute that one of several processes is gone or hangs, and name it.

A process that is killed leaves the others with an error of gloo or NCCL that names no process; one that
is stopped or hangs leaves them waiting for half an hour or for ever.  Here each process counts up in a
store of torch.distributed, in a thread of its own, and reads the counts of the others.  Where a count
stands still for ``LIMIT_SECONDS``, the reader ends its own process with a message.
"""

import os
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any
from urllib.parse import urlparse

from torch import distributed as dist

BEAT_SECONDS = 3.0
LIMIT_SECONDS = 40.0
END_SECONDS = 10.0  # that the last call of the store may take; only if process 0 hangs it does
FAILED = 1  # exit status
_LOST = ("connection", "gloo", "nccl", "broken pipe", "socket", "timed out")

_watch: "Heartbeat | None" = None


def start(cfg: Any) -> Any:
    """Start to watch the other processes; called on each once they are connected.  Returns ``cfg``."""
    global _watch
    if _watch is None and dist.get_world_size() > 1:
        method = cfg.distributed_training.distributed_init_method
        _watch = Heartbeat(urlparse(method).hostname or os.environ["MASTER_ADDR"])
        _watch.start()
    return cfg


def stop() -> None:
    """Stop watching, after all processes have done their work.

    Waits for the thread: Python ends a thread that is inside the store's C++ code at its own end by
    unwinding it, which aborts the process ("terminate called without an active exception").
    """
    global _watch
    if _watch is not None:
        _watch.done.set()
        _watch.join(END_SECONDS)
        _watch = None


def is_lost_connection(error: BaseException) -> bool:
    """Return whether ``error`` looks like that of a collective call whose partner is gone."""
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST)


def explain(error: BaseException) -> str:
    """Let the heartbeat end this process with the name of the missing one; else describe ``error``."""
    if _watch is not None:
        _watch.limit = 3 * BEAT_SECONDS
        _watch.join(5 * BEAT_SECONDS)
    return f"the connection to another process was lost ({str(error).splitlines()[0]})"


class Heartbeat(threading.Thread):
    """The thread of one process that counts up and watches the counts of the others."""

    def __init__(self, host: str) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.limit = LIMIT_SECONDS
        self.done = threading.Event()
        # A store of its own: calls of the main thread would make those of this one wait.
        port = [0]
        if self.rank == 0:
            self.store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
            port = [self.store.port]
        dist.broadcast_object_list(port, src=0)
        if self.rank > 0:
            patience = timedelta(seconds=LIMIT_SECONDS)
            self.store = dist.TCPStore(host, port[0], is_master=False, timeout=patience)
        self.names = [""] * self.size
        dist.all_gather_object(self.names, f"{socket.gethostname()}, process id {os.getpid()}")

    def run(self) -> None:
        """Beat and watch until ``done``."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        counts, seen = dict.fromkeys(others, -1), dict.fromkeys(others, time.monotonic())
        last = time.monotonic()
        while not self.done.wait(BEAT_SECONDS):
            now = time.monotonic()
            if now - last > LIMIT_SECONDS / 2:  # the whole job was suspended, this process with it
                seen = dict.fromkeys(others, now)
            last = now
            try:
                self.store.add(f"beat{self.rank}", 1)
                for rank in others:
                    count = self.store.add(f"beat{rank}", 0)
                    if count != counts[rank]:
                        counts[rank], seen[rank] = count, now
            except RuntimeError:  # the store is in process 0
                self._give_up(0)
                return
            silent = [rank for rank in others if now - seen[rank] > self.limit]
            if silent:
                self._give_up(silent[0])
                return

    def _give_up(self, rank: int) -> None:
        time.sleep(1.0)  # at the end of a training process 0 may be gone a moment earlier
        if self.done.is_set():
            return
        print(
            f"error: process {rank} of {self.size} ({self.names[rank]}) is gone or has not answered for "
            f"{self.limit:.0f} s, so process {self.rank} ends too; the same command continues from the "
            "last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        # The main thread may wait in a collective call for ever, so it cannot end the process.
        os._exit(FAILED)
