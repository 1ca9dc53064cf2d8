"""``--bpe bytes`` in fairseq's commands: that encoder has no settings class, so hydra cannot name it.

The commands end in ``MissingConfigException: Could not find 'bpe/bytes'`` (data/encoders/bytes.py:22
registers it without ``dataclass``; dataclass/utils.py composes all the same).  It needs no settings, so
an empty class is stored under its name.
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
