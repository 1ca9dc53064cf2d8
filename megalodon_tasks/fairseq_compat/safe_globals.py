"""What a checkpoint may hold besides tensors and plain values.

``torch.load`` refuses every class that it was not told of, and this project never asks it not to: a
checkpoint that could run code is not loaded.  Two things that fairseq itself writes need naming:

* the settings as ``argparse.Namespace``, in checkpoints of models without a config dataclass
  (checkpoint_utils.py:340 loads them);
* the settings as an omegaconf ``DictConfig`` when a run on several processes resumes: the first
  process turns them into one and sends all to the others, whose ``torch.load`` refuses it
  (distributed/utils.py:805).  The tensors are sent apart, as ``_TensorPlaceholder``.

All of these hold values and do nothing when they are built.
"""

import argparse
import collections
import typing

import torch
from fairseq.distributed.utils import _TensorPlaceholder
from omegaconf import DictConfig, ListConfig
from omegaconf.base import ContainerMetadata, Metadata
from omegaconf.nodes import AnyNode

SAFE_GLOBALS = [
    argparse.Namespace,
    DictConfig,
    ListConfig,
    ContainerMetadata,
    Metadata,
    AnyNode,
    typing.Any,
    collections.defaultdict,
    dict,
    list,
    int,
    _TensorPlaceholder,
]


def install() -> None:
    """Allow these classes in ``torch.load(weights_only=True)``, the default."""
    torch.serialization.add_safe_globals(SAFE_GLOBALS)
