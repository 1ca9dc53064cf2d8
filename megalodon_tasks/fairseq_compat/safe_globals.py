"""Allow the classes that fairseq's checkpoints hold besides tensors and plain values.

``torch.load`` refuses every class that is not listed, and this project never turns that off: a
checkpoint that could run code is not loaded.  fairseq itself writes two things that must be listed:

* the settings as ``argparse.Namespace``, in checkpoints of models without a config dataclass
  (checkpoint_utils.py:340 loads them);
* the settings as an omegaconf ``DictConfig`` when a run on several processes resumes: the first process
  converts them and sends all to the others, whose ``torch.load`` refuses it (distributed/utils.py:805).
  The tensors are sent separately, as ``_TensorPlaceholder``.

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
