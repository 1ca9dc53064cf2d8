"""Make ``--bpe bytes`` work in fairseq's commands.

They end in ``MissingConfigException: Could not find 'bpe/bytes'``: data/encoders/bytes.py:22 registers
the encoder without a ``dataclass``, and dataclass/utils.py composes one anyway.  The encoder has no
settings, so the patch stores an empty class under its name.
"""

from dataclasses import dataclass

from fairseq.dataclass import FairseqDataclass
from hydra.core.config_store import ConfigStore


@dataclass
class BytesConfig(FairseqDataclass):
    """No settings."""

    _name: str = "bytes"


def install() -> None:
    """Give the encoder its settings class."""
    ConfigStore.instance().store(name="bytes", group="bpe", node=BytesConfig, provider="fairseq")
