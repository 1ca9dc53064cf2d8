"""A fairseq plugin of the smallest size, for tests of what surrounds a model.

Task ``toy``: tell which of four symbols opens a sequence of random length.  Model ``toy``: embedding,
mean over real positions, dropout, linear; ``toy_wide`` is a second architecture of it.  Samples have the
form that all classification tasks of this project share.
"""

from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.data import FairseqDataset
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel, register_model
from fairseq.tasks import FairseqTask, register_task

from megalodon_tasks import fairseq_compat
from megalodon_tasks.fairseq_compat import trusted_components
from megalodon_tasks.training import optimizer as optim  # noqa: F401

fairseq_compat.install()
trusted_components.trust(__name__)

CLASSES = 4
SIZES = {"train": 36, "valid": 20, "test": 10}


class ToyDataset(FairseqDataset):
    """``count`` sequences; each is drawn from a generator keyed by (seed, epoch, index)."""

    can_reuse_epoch_itr_across_epochs = False

    def __init__(self, count, seed, augment):
        self.count, self.seed, self.augment, self.epoch = count, seed, augment, 1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        fixed = np.random.default_rng((self.seed, int(index)))
        tokens = fixed.integers(1, CLASSES + 1, size=fixed.integers(3, 9))
        if self.augment:
            per_epoch = np.random.default_rng((self.seed, self.epoch, int(index)))
            tokens[1:] = per_epoch.permutation(tokens[1:])
        return {"id": int(index), "tokens": torch.from_numpy(tokens), "label": int(tokens[0]) - 1}

    def ordered_indices(self):
        return np.random.permutation(self.count) if self.augment else np.arange(self.count)

    def num_tokens(self, index):
        return 8

    size = num_tokens

    def collater(self, items):
        if not items:
            return {}
        lengths = torch.tensor([len(item["tokens"]) for item in items])
        inputs = torch.nn.utils.rnn.pad_sequence([item["tokens"] for item in items], True)
        return {
            "id": torch.tensor([item["id"] for item in items]),
            "net_input": {"inputs": inputs, "lengths": lengths},
            "target": torch.tensor([item["label"] for item in items]),
            "nsentences": len(items),
            "ntokens": int(lengths.sum()),
        }


@dataclass
class ToyTaskConfig(FairseqDataclass):
    data: str = field(default=".", metadata={"help": "not read"})
    effective_batch: Optional[int] = field(default=None, metadata={"help": "items of an update"})
    skip_nonfinite: int = field(default=0, metadata={"help": "updates that may be skipped"})


@register_task("toy", dataclass=ToyTaskConfig)
class ToyTask(FairseqTask):
    def load_dataset(self, split, **kwargs):
        seed = sorted(SIZES).index(split)
        self.datasets[split] = ToyDataset(SIZES[split], seed, augment=split == "train")

    def max_positions(self):
        return 8

    source_dictionary = target_dictionary = None


@dataclass
class ToyModelConfig(FairseqDataclass):
    dim: int = field(default=6, metadata={"help": "width"})
    dropout: float = field(default=0.3, metadata={"help": "dropout"})
    chunk_size: int = field(default=4, metadata={"help": "not used, reported by evaluate"})


@register_model("toy", dataclass=ToyModelConfig)
class ToyModel(BaseFairseqModel):
    def __init__(self, dim, dropout):
        super().__init__()
        self.embed = torch.nn.Embedding(CLASSES + 1, dim, padding_idx=0)
        self.scale = torch.nn.Parameter(torch.ones(dim))
        self.scale.param_group = optim.NO_WEIGHT_DECAY
        self.dropout = torch.nn.Dropout(dropout)
        self.out = torch.nn.Linear(dim, CLASSES)

    @classmethod
    def build_model(cls, cfg, task):
        return cls(cfg.dim, cfg.dropout)

    def max_positions(self):
        return 8

    def forward(self, inputs, lengths):
        mean = self.embed(inputs).sum(1) / lengths[:, None]
        return self.out(self.dropout(mean * self.scale))


@dataclass
class ToyWideConfig(ToyModelConfig):
    dim: int = field(default=9, metadata={"help": "width"})


@register_model("toy_wide", dataclass=ToyWideConfig)
class ToyWide(ToyModel):
    def __init__(self, dim, dropout):
        super().__init__(dim, dropout)
        self.extra = torch.nn.Parameter(torch.zeros(dim))


@register_criterion("toy", dataclass=FairseqDataclass)
class ToyCriterion(FairseqCriterion):
    def forward(self, model, sample):
        logits = model(**sample["net_input"])
        loss = torch.nn.functional.cross_entropy(logits, sample["target"], reduction="sum")
        return (
            loss,
            sample["nsentences"],
            {
                "loss": loss.detach(),
                "correct": (logits.argmax(-1) == sample["target"]).sum(),
                "nsentences": sample["nsentences"],
                "ntokens": sample["ntokens"],
                "sample_size": sample["nsentences"],
            },
        )

    @classmethod
    def reduce_metrics(cls, logging_outputs):
        count = sum(log["nsentences"] for log in logging_outputs)
        loss = sum(log["loss"] for log in logging_outputs) / count / np.log(2)
        correct = sum(log["correct"] for log in logging_outputs)
        metrics.log_scalar("loss", loss, count, round=6)
        metrics.log_scalar("accuracy", 100.0 * correct / count, count, round=4)

    @staticmethod
    def logging_outputs_can_be_summed():
        return True
