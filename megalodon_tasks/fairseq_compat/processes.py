"""Start training on several processes, on CPUs as on GPUs, and end all of them if one is gone.

fairseq starts one process for each GPU.  Without GPUs ``distributed_world_size=2`` is an AssertionError
(distributed/utils.py:160) or trains nothing at all (:383), and torchrun ends in a ZeroDivisionError
(:91) or in one independent run per process.  The patch

* takes rank and number of processes from torchrun, whatever the device;
* starts ``distributed_world_size`` processes with gloo where there is no GPU;
* ends the run with one message that names the process that failed, was killed or hangs.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils
from torch import multiprocessing

from megalodon_tasks import errors
from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat import heartbeat
from megalodon_tasks.fairseq_compat.patching import TRAINING_FILE, wrap
from megalodon_tasks.signals import STOPPING, handled

_LAUNCHED = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK")
GRACE_SECONDS = 10.0  # for processes that are asked to end


def install() -> None:
    """Patch how fairseq starts processes."""
    wrap(distributed_utils, "call_main", _for_any_device)


def _for_any_device(stock: Callable, cfg: Any, main: Callable, **kwargs: Any) -> None:
    on_cpu = cfg.common.cpu or not torch.cuda.is_available()
    parallel = cfg.distributed_training
    trains = main.__code__.co_filename.endswith(TRAINING_FILE) and not cfg.common.tpu
    if trains:
        join_launched_processes(parallel, os.environ, on_cpu)
    if trains and parallel.distributed_world_size > 1:
        _call_main(cfg, kwargs, on_cpu)
    else:
        stock(cfg, main, **kwargs)


def _call_main(cfg: Any, kwargs: dict[str, Any], on_cpu: bool) -> None:
    # Under python -m the given function is one of __main__, whose copy in another process has globals
    # that cannot be patched.
    from fairseq_cli.train import main

    parallel = cfg.distributed_training
    if on_cpu:
        _use_cpus(parallel)
    else:
        distributed_utils.infer_init_method(parallel)
    if parallel.distributed_no_spawn:
        _run(parallel.device_id, main, cfg, kwargs)
    else:
        _spawn(main, cfg, kwargs, on_cpu)


def join_launched_processes(parallel: Any, environment: Mapping[str, str], on_cpu: bool) -> None:
    """Take this process's place from the variables that torchrun sets, if it started this process.

    Raises :class:`UserError` where ``distributed_world_size`` is given too and says otherwise.
    """
    if parallel.distributed_init_method is not None or not all(
        name in environment for name in _LAUNCHED
    ):
        return
    size, given = int(environment["WORLD_SIZE"]), parallel.distributed_world_size
    if given not in (1, size, torch.cuda.device_count()):
        raise UserError(
            f"distributed_training.distributed_world_size={given}, but torchrun started {size} "
            "processes; leave that setting out"
        )
    parallel.distributed_world_size = size
    if size > 1:
        parallel.distributed_init_method = "env://"
        parallel.distributed_rank = int(environment["RANK"])
        parallel.device_id = 0 if on_cpu else int(environment["LOCAL_RANK"])
        parallel.distributed_no_spawn = True


def _use_cpus(parallel: Any) -> None:
    parallel.distributed_backend = "gloo"
    if parallel.ddp_backend in ("c10d", "pytorch_ddp"):  # fairseq passes it the number of a GPU
        parallel.ddp_backend = "legacy_ddp"
    if parallel.distributed_init_method is None:
        if parallel.distributed_no_spawn:
            raise UserError(
                "distributed_training.distributed_no_spawn=true without distributed_init_method: the "
                "processes would not find each other; start them with torchrun, or leave it out"
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        parallel.distributed_init_method = f"tcp://127.0.0.1:{port}"


def _spawn(main: Callable, cfg: Any, kwargs: dict[str, Any], on_cpu: bool) -> None:
    """Start the processes of this machine and wait for them."""
    parallel = cfg.distributed_training
    size = parallel.distributed_world_size
    kwargs["start_rank"] = parallel.distributed_rank
    parallel.distributed_rank = None  # fairseq derives it in each process
    count = size if on_cpu else min(torch.cuda.device_count(), size)
    started: Any = multiprocessing.spawn(_run, (main, cfg, kwargs), nprocs=count, join=False)

    def pass_on(number: int, frame: FrameType | None) -> None:
        for pid in started.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    try:
        with handled(pass_on, *STOPPING):
            while not started.join(grace_period=GRACE_SECONDS):
                pass
    except multiprocessing.ProcessExitedException as error:
        if error.exit_code > 0:  # the process has said why
            raise SystemExit(error.exit_code) from None
        raise UserError(
            f"process {error.error_index} of {size} ended with {error.signal_name or error.exit_code}, "
            "so the others were stopped; if nobody did that on purpose, look for a lack of memory. The "
            "same command continues from the last checkpoint"
        ) from None


def _run(index: int, main: Callable, cfg: Any, kwargs: dict[str, Any]) -> None:
    """Train in one of several processes; ``index`` counts those that this machine started."""
    kwargs["after_distributed_init_fn"] = heartbeat.start
    try:
        distributed_utils.distributed_main(index, main, cfg, kwargs)
    except Exception as error:
        if errors.debugging():
            raise
        message = errors.user_message(error)
        if message is None and not heartbeat.is_lost_connection(error):
            raise
        message = message or heartbeat.explain(error)
        if cfg.distributed_training.distributed_rank:
            time.sleep(2.0)  # all have the same error: the first to end has the others stopped
        print(f"error: {message}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    finally:
        heartbeat.stop()
