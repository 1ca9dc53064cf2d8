"""Train the toy model in this process, as ``fairseq-train`` does, and keep what it logs."""

import json
import logging
import sys
from pathlib import Path

import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import train as fairseq_train

from megalodon_tasks.fairseq_compat.sharded_checkpoints import with_shards

# 6 updates per epoch; the log interval divides neither the epoch nor the save interval
_SETTINGS = """
. --task toy --arch toy --criterion toy --batch-size 6 --required-batch-size-multiple 1
--num-workers 0 --cpu --seed 3 --optimizer adamw_groups --weight-decay 0.1 --lr 0.05 --clip-norm 1.0
--max-update 20 --log-format json --log-interval 5
--best-checkpoint-metric accuracy --maximize-best-checkpoint-metric --keep-last-epochs 2
"""
SCHEDULE = ["--lr-scheduler", "linear_decay", "--warmup-updates", "3"]
SETTINGS = [*_SETTINGS.split(), *SCHEDULE]
# the same settings for hydra
YAML = """
task: {_name: toy}
model: {_name: toy, chunk_size: 4}
criterion: {_name: toy}
dataset: {batch_size: 6, required_batch_size_multiple: 1, num_workers: 0}
optimizer: {_name: adamw_groups, weight_decay: 0.1, adam_betas: "(0.9, 0.98)"}
lr_scheduler: {_name: linear_decay, warmup_updates: 3}
optimization: {lr: [0.05], clip_norm: 1.0, max_update: 20}
checkpoint:
  save_dir: run
  best_checkpoint_metric: accuracy
  maximize_best_checkpoint_metric: true
  keep_last_epochs: 2
common: {seed: 3, log_interval: 5, log_format: json, cpu: true}
"""
COMPARED = ("loss", "accuracy", "lr", "gnorm", "num_updates")

Events = dict[tuple[str, int], dict[str, str]]  # by tag and update


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.events: Events = {}

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if not message.startswith('{"epoch"'):
            return
        fields = {k.removeprefix(f"{record.name}_"): v for k, v in json.loads(message).items()}
        compared = {name: fields[name] for name in COMPARED if name in fields}
        self.events[record.name, int(fields["num_updates"])] = compared


def train(save_dir: Path, *arguments: str, events: Events | None = None) -> Events:
    """Train into ``save_dir``; lines of losses are added to ``events``, also if the run dies."""
    collector, root = _Collector(), logging.getLogger()
    collector.events = {} if events is None else events
    level = root.level
    root.addHandler(collector)
    root.setLevel(logging.INFO)
    argv, sys.argv = sys.argv, ["fairseq-train"]  # fairseq looks at it for plasma
    try:
        parser = options.get_training_parser()
        settings = SETTINGS[: -len(SCHEDULE)] if "--lr-scheduler" in arguments else SETTINGS
        line = [*settings, "--save-dir", str(save_dir), *arguments]
        parsed = options.parse_args_and_arch(parser, input_args=line)
        fairseq_train.main(convert_namespace_to_omegaconf(parsed))
    finally:
        sys.argv = argv
        root.removeHandler(collector)
        root.setLevel(level)
    return collector.events


def state_of(save_dir: Path, name: str = "checkpoint_last.pt") -> dict:
    """Everything in a checkpoint that decides how training continues."""
    state = with_shards(save_dir / name, torch.load(save_dir / name))
    extra = state["extra_state"]
    return {
        "model": state["model"],
        "optimizer": state["last_optimizer_state"],
        "iterator": extra["train_iterator"],
        "best": extra["best"],
        "updates": state["optimizer_history"][-1]["num_updates"],
    }


def assert_equal(found: object, expected: object, where: str = "state") -> None:
    """Compare nested containers bit for bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}[{i}]")
    else:
        assert found == expected, where
