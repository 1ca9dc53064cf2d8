"""What a classification data set holds, as far as a model must know it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassifierInputs:
    """kind: ``tokens`` (int64 symbols), ``pixels`` or ``waveform`` (float samples).

    vocab_size and padding_idx count for tokens alone.  max_length: longest sequence, 0 = no limit.
    pair: each item is two sequences.
    """

    kind: str
    num_classes: int
    vocab_size: int = 0
    padding_idx: int = 0
    max_length: int = 0
    pair: bool = False
