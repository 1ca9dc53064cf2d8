"""What a classification data set holds, as far as a model must know it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassifierInputs:
    """kind: ``tokens`` (int64), ``pixels`` or ``waveform`` (float samples), or ``patches`` (images).

    vocab_size and padding_idx count for tokens alone.  max_length: longest sequence, 0 = no limit.
    pair: each item is two sequences.  image_size (height, width), patch_size (both in pixels) and
    channels count for patches alone.
    """

    kind: str
    num_classes: int
    vocab_size: int = 0
    padding_idx: int = 0
    max_length: int = 0
    pair: bool = False
    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    channels: int = 3
