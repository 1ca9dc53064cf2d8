"""Work on several cores with the results in a fixed order, whatever the number of processes."""

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")
Strided = Callable[[int, int], Iterator[T]]


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_turns(make: Strided[T], workers: int) -> Iterator[T]:
    """Yield item 0, 1, 2, ... of a sequence that ``workers`` processes compute together.

    ``make(first, step)`` is a picklable function that returns an iterator over the items ``first``,
    ``first + step``, ... .  Process w computes those of ``make(w, workers)``, so the result does not
    depend on ``workers``.  A process runs ahead only as far as its pipe holds, and ends by itself when
    the reader stops or is killed.  An exception in a process is raised here, at the place of its item.
    """
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    if workers == 1:
        yield from make(0, 1)
        return
    processes, readers = [], []
    try:
        for worker in range(workers):
            reader, writer = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.Process(
                target=_serve, args=(make, worker, workers, reader, writer), daemon=True
            )
            process.start()
            writer.close()
            processes.append(process)
            readers.append(reader)
        yield from _collect(readers)
    finally:
        for reader in readers:
            reader.close()
        for process in processes:
            process.terminate()
            process.join()


def map_in_order(
    function: Callable[[S], T], items: Sequence[S], workers: int, portion: int = 1
) -> Iterator[T]:
    """Yield ``function(item)`` of each of ``items``, in their order, computed by ``workers`` processes.

    A process computes ``portion`` results before it sends them; see :func:`in_turns` for the rest.
    """
    portions = max(1, -(-len(items) // portion))
    make = functools.partial(_portions, function, items, portion)
    with closing(in_turns(make, min(workers, portions))) as results:
        for part in results:
            yield from part


def _portions(
    function: Callable[[S], T], items: Sequence[S], portion: int, first: int, step: int
) -> Iterator[list[T]]:
    for start in range(first * portion, len(items), step * portion):
        yield [function(item) for item in items[start : start + portion]]


def _collect(readers: list[Connection]) -> Iterator[T]:
    """Read an item from each process in turn until one of them has no more."""
    while True:
        for worker, reader in enumerate(readers):
            try:
                kind, payload = reader.recv()
            except EOFError:
                raise RuntimeError(
                    f"worker process {worker} died without a message; the system may have "
                    "killed it for memory: use fewer workers"
                ) from None
            if kind == "error":
                raise payload
            if kind == "end":
                return
            yield payload


def _serve(
    make: Strided[T], worker: int, workers: int, reader: Connection, writer: Connection
) -> None:
    """Compute the items of one process and send them until all are sent or nobody reads them."""
    # Sending fails once nobody holds the reading end, which ends this process when the parent is killed.
    # (A forked process also holds the reading ends of those started before it; they end in turn.)
    reader.close()
    try:
        for item in make(worker, workers):
            writer.send(("item", item))
        writer.send(("end", None))
    except (BrokenPipeError, KeyboardInterrupt):
        return
    except Exception as error:  # the parent raises it
        writer.send(("error", error))
