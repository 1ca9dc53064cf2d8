"""Refuse settings that no training can start with, in one message each.

fairseq ends on them in an AssertionError (fairseq_cli/train.py:58, distributed/utils.py:168) or in what
torch raises about a device that there is not.  With ``distributed_init_method`` and no GPU it trains
nothing and reports success (distributed/utils.py:383).
"""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from fairseq import utils
from fairseq.distributed import utils as distributed_utils
from fairseq.trainer import Trainer

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat.patching import replace

_TRAINING = "fairseq_cli.train"
_NEED_GPUS = ("c10d", "pytorch_ddp", "slowmo", "fully_sharded")


def install() -> None:
    """Patch what fairseq's training calls first, also where this plugin is imported only then."""
    replace(utils, "import_user_module", _then_install)
    replace(distributed_utils, "call_main", _after_check_of_processes)
    replace(Trainer, "_build_optimizer", _with_refusals)
    _install_in_training()


def _install_in_training() -> None:
    if _TRAINING in sys.modules:  # not imported: it would configure logging
        replace(sys.modules[_TRAINING], "add_defaults", _then_check)


def _then_install(stock: Callable) -> Callable:
    def import_user_module(args: Any) -> None:
        stock(args)
        _install_in_training()

    return import_user_module


def _then_check(stock: Callable) -> Callable:
    def add_defaults(cfg: Any) -> None:
        stock(cfg)
        check_settings(cfg)

    return add_defaults


def check_settings(cfg: Any) -> None:
    """Raise :class:`UserError` where a training with the configuration ``cfg`` cannot start."""
    common, parallel = cfg.common, cfg.distributed_training
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        raise UserError(
            "neither dataset.batch_size (--batch-size) nor dataset.max_tokens (--max-tokens) is set; "
            "set one of them: what a process reads at a time"
        )
    if common.tpu and importlib.util.find_spec("torch_xla") is None:
        raise UserError("common.tpu=true (--tpu) needs torch_xla, which is missing; leave it out")
    on_gpu = torch.cuda.is_available() and not common.cpu
    if common.fp16 and not on_gpu and not common.fp16_no_flatten_grads:
        raise UserError(
            "common.fp16=true (--fp16, --memory-efficient-fp16) needs a GPU; on a CPU leave it out, or "
            "use common.bf16=true (--bf16)"
        )
    if parallel.distributed_world_size > 1 and not on_gpu and parallel.ddp_backend in _NEED_GPUS:
        raise UserError(
            f"distributed_training.ddp_backend={parallel.ddp_backend} needs a GPU for each process; on "
            "CPUs set distributed_training.ddp_backend=legacy_ddp (--ddp-backend legacy_ddp)"
        )


def _after_check_of_processes(stock: Callable) -> Callable:
    def call_main(cfg: Any, main: Callable, **kwargs: Any) -> None:
        parallel, gpus = cfg.distributed_training, torch.cuda.device_count()
        processes, method = parallel.distributed_world_size, parallel.distributed_init_method
        inferred = not parallel.distributed_no_spawn or method is None
        if main.__module__ == _TRAINING and processes > 1 and not gpus and inferred:
            raise UserError(
                f"distributed_training.distributed_world_size={processes} (--distributed-world-size): "
                "fairseq starts a process for each GPU, and there is none; leave it out, or start the "
                "processes with torchrun, each with --distributed-no-spawn --distributed-rank $RANK "
                "--distributed-init-method env:// --distributed-backend gloo --ddp-backend legacy_ddp"
            )
        stock(cfg, main, **kwargs)

    return call_main


def _with_refusals(stock: Callable) -> Callable:
    def build_optimizer(self: Trainer) -> None:
        try:
            stock(self)
        except (ValueError, RuntimeError) as error:
            # optim/fp16_optimizer.py:288 and 461
            if not str(error).startswith(("Unsupported optimizer", "chosen optimizer")):
                raise
            raise UserError(
                f"optimizer {self.cfg.optimizer._name} cannot train in this precision ({error}); use "
                "common.bf16=true (--bf16), or common.fp16_no_flatten_grads=true with plain fp16"
            ) from error

    return build_optimizer
