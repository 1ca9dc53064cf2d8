"""What happens to an image between the file and the model, with timm's own parts.

timm and torchvision draw from the global generators of ``random``, numpy and torch.  :func:`seeded`
seeds them by a key for a block of code, so that an image's augmentation depends only on (seed, epoch,
image, repeat), not on the number of workers or on interruptions.

timm is imported where it is used: it takes two seconds, and all tasks are loaded in every run.
"""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch
from PIL import Image

from megalodon_tasks.models.settings import setting

Transform = Callable[[Image.Image], torch.Tensor]
_INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "random")


@dataclass
class AugmentationConfig:
    """Settings of the images, in timm's units.  Defaults are DeiT's as Mega used them."""

    image_size: int = setting(224, "side of the images, in pixels")
    crop_pct: float = setting(
        0.875, "evaluation: resize the shorter side to image_size / crop_pct, then crop"
    )
    interpolation: str = setting("bicubic", "of resizing")
    smallest_crop: float = setting(0.08, "least share of the area that a random crop has")
    hflip: float = setting(0.5, "probability of a mirror image")
    auto_augment: Optional[str] = setting(
        "rand-m9-mstd0.5-inc1", "timm's name of a policy; null for none"
    )
    color_jitter: float = setting(0.3, "used only without auto_augment, as timm has it")
    random_erasing: float = setting(0.25, "probability of noise in place of one rectangle")
    random_erasing_clip: Optional[float] = setting(
        2.0, "largest absolute value of that noise; null for none, as in DeiT"
    )
    mixup: float = setting(0.8, "alpha of mixup; 0 = no mixup")
    cutmix: float = setting(1.0, "alpha of cutmix; 0 = no cutmix")
    mix_prob: float = setting(1.0, "probability of mixing a batch")
    mix_switch_prob: float = setting(0.5, "probability of cutmix where mixup is on too")

    def validate(self) -> None:
        """Raise ``ValueError`` naming the field for a value out of range."""
        for name in ("hflip", "random_erasing", "mix_prob", "mix_switch_prob"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"task.{name}={getattr(self, name)} must be from 0 to 1")
        if not 0.01 <= self.crop_pct <= 1.0:
            raise ValueError(f"task.crop_pct={self.crop_pct} must be from 0.01 to 1")
        if not 0.0 < self.smallest_crop <= 1.0:
            raise ValueError(
                f"task.smallest_crop={self.smallest_crop} must be above 0 and at most 1"
            )
        for name in ("mixup", "cutmix", "color_jitter"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"task.{name}={getattr(self, name)} must not be negative")
        if self.random_erasing_clip is not None and self.random_erasing_clip <= 0.0:
            raise ValueError(
                f"task.random_erasing_clip={self.random_erasing_clip} must be above 0; "
                "null leaves the noise as it is"
            )
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(
                f"task.interpolation={self.interpolation!r} is none of {', '.join(_INTERPOLATIONS)}"
            )


def training_transform(config: AugmentationConfig) -> Transform:
    """Crop, flip, RandAugment, normalise, erase: RGB image -> (3, size, size) float32.

    Mean and deviation of the colours are ImageNet's, timm's default.  Raises ``ValueError`` for an
    ``auto_augment`` that timm does not know.
    """
    from timm.data import create_transform

    try:
        transform = create_transform(
            input_size=config.image_size,
            is_training=True,
            scale=(config.smallest_crop, 1.0),
            hflip=config.hflip,
            color_jitter=config.color_jitter or None,
            auto_augment=config.auto_augment or None,
            interpolation=config.interpolation,
            re_prob=config.random_erasing,
            re_mode="pixel",
            re_count=1,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"task.auto_augment={config.auto_augment!r} is no policy of timm's ({error!r}); "
            "write one such as rand-m9-mstd0.5-inc1, or null"
        ) from None
    for step in transform.transforms:
        _let_posterize_keep_no_bit(step)
    if config.random_erasing and config.random_erasing_clip is not None:
        erase = transform.transforms[-1]
        transform.transforms[-1] = ClippedErasing(erase, config.random_erasing_clip)
    return transform


class ClippedErasing:
    """Random erasing whose noise is limited to ``[-clip, clip]``, as Mega's fork of timm has it."""

    def __init__(self, erase: Callable[[torch.Tensor], torch.Tensor], clip: float) -> None:
        self.erase, self.clip = erase, clip

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Erase, or return, an image (3, H, W)."""
        erased = self.erase(image.clone())
        return torch.where(erased == image, image, erased.clamp(-self.clip, self.clip))


def _let_posterize_keep_no_bit(step: Any) -> None:
    """Make an image black at full strength, where timm keeps 0 bits, which Pillow 13 refuses."""
    nested = getattr(step, "policy", None) or [getattr(step, "ops", None) or []]
    for operation in (operation for operations in nested for operation in operations):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = functools.partial(_posterize, operation.aug_fn)


def _posterize(
    stock: Callable, image: Image.Image, bits_to_keep: int, **options: Any
) -> Image.Image:
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return stock(image, bits_to_keep, **options)


def evaluation_transform(config: AugmentationConfig) -> Transform:
    """Resize, centre crop, normalise: RGB image -> (3, size, size) float32."""
    from timm.data import create_transform

    return create_transform(
        input_size=config.image_size,
        is_training=False,
        crop_pct=config.crop_pct,
        interpolation="bicubic" if config.interpolation == "random" else config.interpolation,
    )


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the CPU's global generators by ``key`` (integers from 0); restore them afterwards."""
    words = [int(word) for word in np.random.SeedSequence(key).generate_state(3)]
    python, numpy, generator = random.getstate(), np.random.get_state(), torch.default_generator
    saved = generator.get_state()
    random.seed(words[0])
    np.random.seed(words[1])
    # Not torch.manual_seed, which seeds the accelerators too, and they are the model's.
    generator.manual_seed(words[2])
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        generator.set_state(saved)


class Mixer:
    """Mixup and cutmix of whole batches (timm's ``Mixup`` in batch mode), with soft targets.

    Label smoothing is left to the criterion, which gives the same: smoothing the mixture of two targets
    is mixing the two smoothed ones.
    """

    def __init__(self, config: AugmentationConfig, num_classes: int, seed: int) -> None:
        from timm.data.mixup import Mixup

        self.seed = seed
        self.enabled = config.mix_prob > 0 and (config.mixup > 0 or config.cutmix > 0)
        self._mixup = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            prob=config.mix_prob,
            switch_prob=config.mix_switch_prob,
            mode="batch",
            label_smoothing=0.0,
            num_classes=num_classes,
        )

    def __call__(self, sample: dict[str, Any], key: int) -> dict[str, Any]:
        """Mix the images of a batch with those in reverse order, on their device.

        ``key`` distinguishes the batch from all others of the run.  ``sample`` itself is not changed.
        """
        if not self.enabled:
            return sample
        with seeded(_MIX, self.seed, key):
            images, target = self._mixup(sample["net_input"]["inputs"].clone(), sample["target"])
        return {**sample, "net_input": {**sample["net_input"], "inputs": images}, "target": target}


# Distinguishes this use of a seed from others; any constant will do.
_MIX = 0x313
