"""Refuse settings that no training can start with, in one message each.

fairseq ends on them in an AssertionError (fairseq_cli/train.py:58) or in what torch raises about a
device that there is not.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from fairseq import utils
from fairseq.trainer import Trainer

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat import precision, setting_values, sharded_tensors
from megalodon_tasks.fairseq_compat.patching import training_modules, wrap


def install() -> None:
    """Patch what fairseq's training calls first, also where this plugin is imported only then."""
    wrap(utils, "import_user_module", _then_install)
    wrap(Trainer, "_build_optimizer", _with_refusals)
    _install_in_training()


def _install_in_training() -> None:
    for train in training_modules():
        wrap(train, "add_defaults", _then_check)
        sharded_tensors.install_in(train)
    if (hydra_train := sys.modules.get("fairseq_cli.hydra_train")) is not None:
        wrap(hydra_train, "add_defaults", _then_check)


def _then_install(stock: Callable, args: Any) -> None:
    stock(args)
    _install_in_training()


def _then_check(stock: Callable, cfg: Any) -> None:
    setting_values.with_defaults(stock, cfg)
    check_settings(cfg)


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
    precision.check_settings(common, on_gpu)
    if parallel.distributed_world_size > 1 and not on_gpu and parallel.ddp_backend == "slowmo":
        raise UserError(
            "distributed_training.ddp_backend=slowmo needs a GPU for each process; on CPUs set "
            "distributed_training.ddp_backend=legacy_ddp (--ddp-backend legacy_ddp)"
        )
    if parallel.ddp_backend == sharded_tensors.FULLY_SHARDED:
        _check_sharding(cfg)
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if getattr(cfg.model, "compile_blocks", False) and not on_gpu and not shutil.which(compiler):
        raise UserError(
            f"model.compile_blocks=true needs a C++ compiler on a CPU, and there is no {compiler}; "
            "install one, name it in the environment variable CXX, or leave the setting out"
        )


def _check_sharding(cfg: Any) -> None:
    parallel = cfg.distributed_training
    refused = {
        "ema.store_ema": cfg.ema.store_ema,
        "distributed_training.cpu_offload": parallel.cpu_offload,
        "distributed_training.zero_sharding": parallel.zero_sharding != "none",
        "optimization.use_bmuf": cfg.optimization.use_bmuf,
        # it reads CEMA's parameters before the layer that gathers them is called
        "task.chunk_parallel": getattr(cfg.task, "chunk_parallel", 1) > 1,
    }
    for name in (name for name, given in refused.items() if given):
        raise UserError(
            f"{name} does not go with distributed_training.ddp_backend=fully_sharded; leave it out"
        )
    cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True  # each reads its shards


def _with_refusals(stock: Callable, self: Trainer) -> None:
    try:
        stock(self)
    except AssertionError as error:  # such as "max_lr must be more than min_lr"
        raise UserError(
            f"optimizer {self.cfg.optimizer._name} with lr_scheduler {self.cfg.lr_scheduler._name} "
            f"cannot be built with their settings: {error}"
        ) from error
    except (ValueError, RuntimeError) as error:
        # optim/fp16_optimizer.py:288 and 461
        if not str(error).startswith(("Unsupported optimizer", "chosen optimizer")):
            raise
        raise UserError(
            f"optimizer {self.cfg.optimizer._name} cannot train in this precision ({error}); use "
            "common.bf16=true (--bf16) or common.fp16=true (--fp16)"
        ) from error
