import functools
import itertools
import multiprocessing
import os
import time

import pytest

from megalodon_tasks.data.parallel import in_turns, usable_cores


def squares(stop, first, step):
    for number in range(first, stop, step):
        yield number * number


def for_ever(first, step):
    for number in itertools.count(first, step):
        yield number, os.getpid(), b"x" * 100_000


def failing_at(place, first, step):
    for number in itertools.count(first, step):
        if number == place:
            raise ValueError(f"item {number} is bad")
        yield number


def dying(first, step):
    yield first
    os._exit(3)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_items_come_in_order(workers, stop):
    items = in_turns(functools.partial(squares, stop), workers)
    assert list(items) == [number * number for number in range(stop)]


def test_work_is_shared_and_ends_with_the_reader():
    items = list(itertools.islice(in_turns(for_ever, 2), 6))
    assert [number for number, _, _ in items] == list(range(6))
    processes = [process for _, process, _ in items]
    assert processes[0::2] == [processes[0]] * 3 != processes[1::2]
    assert os.getpid() not in processes
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [1, 2])
def test_error_comes_at_its_place(workers):
    found = []
    with pytest.raises(ValueError, match="item 3 is bad"):
        found.extend(in_turns(functools.partial(failing_at, 3), workers))
    # extend keeps what it got before the error
    assert found == [0, 1, 2]
    assert not multiprocessing.active_children()


def test_dead_worker_is_reported():
    with pytest.raises(RuntimeError, match="worker process 0 died without a message"):
        list(in_turns(dying, 2))


def _read_two_and_stay(sender):
    items = in_turns(for_ever, 2)
    next(items), next(items)
    sender.send("the workers are running")
    time.sleep(60)


def test_workers_end_when_the_reader_is_killed():
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # Every process below holds the writing end too, so reading ends when the last of them has.
    context = multiprocessing.get_context("fork")
    reader = context.Process(target=_read_two_and_stay, args=(sender,))
    reader.start()
    sender.close()
    receiver.recv()
    reader.kill()
    reader.join()
    assert receiver.poll(30), "a worker outlived the process that it worked for"
    with pytest.raises(EOFError):
        receiver.recv()


def test_number_of_workers_is_checked():
    with pytest.raises(ValueError, match="workers=0 must be at least 1"):
        next(in_turns(for_ever, 0))
    assert usable_cores() >= 1
