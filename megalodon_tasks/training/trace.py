"""Record a few updates for a browser: ``common.profile=true`` under ``megalodon train``.

fairseq marks ranges for a profiler of CUDA (fairseq_cli/hydra_train.py:50), which needs a GPU and that
program.  Here torch's profiler writes ``trace.json.gz`` into the folder of the run, which
https://ui.perfetto.dev and chrome://tracing open: three updates of the first process, after three that
warm up.  A run of fewer updates leaves none.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fairseq.trainer import Trainer

from megalodon_tasks.fairseq_compat.patching import wrap

logger = logging.getLogger(__name__)

VARIABLE = "MEGALODON_TRACE"  # in the environment, which processes inherit
FILE = "trace.json.gz"
SKIPPED, WARM_UP, RECORDED = 2, 1, 3  # updates


def install() -> None:
    """Patch the training step."""
    wrap(Trainer, "train_step", _traced)


def request(cfg: Any) -> None:
    """Take over ``common.profile`` of a configuration that fairseq has not acted on yet."""
    os.environ.pop(VARIABLE, None)
    if cfg.common.profile:
        cfg.common.profile = False
        os.environ[VARIABLE] = "1"


def _traced(stock: Callable, self: Trainer, *args: Any, **kwargs: Any) -> Any:
    if VARIABLE not in os.environ or self.data_parallel_rank != 0:
        return stock(self, *args, **kwargs)
    tracer = vars(self).setdefault("_tracer", _Tracer(Path(self.cfg.checkpoint.save_dir, FILE)))
    result = stock(self, *args, **kwargs)
    tracer.step()
    return result


class _Tracer:
    """The profiler of one training, which ends itself."""

    def __init__(self, path: Path) -> None:
        self.path, self.steps = path, 0
        plan = torch.profiler.schedule(wait=SKIPPED, warmup=WARM_UP, active=RECORDED, repeat=1)
        self.profiler = torch.profiler.profile(schedule=plan, on_trace_ready=self._write)
        self.profiler.start()

    def _write(self, profiler: torch.profiler.profile) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.path))
        logger.info(f"{self.path}: {RECORDED} updates; open it in https://ui.perfetto.dev")

    def step(self) -> None:
        """Count an update; end after those to record."""
        self.steps += 1
        if self.steps < SKIPPED + WARM_UP + RECORDED:
            self.profiler.step()
        elif self.steps == SKIPPED + WARM_UP + RECORDED:
            self.profiler.stop()  # writes
