"""Images as a fairseq dataset, with repeated augmentation.  Legend: B batch.

An item of training is one view of an image.  Its number, ``(epoch * repeats + repeat) * images +
image``, says which image, and seeds its augmentation: data workers need not know the epoch, and a
resumed run sees the same views.
"""

import logging
import sys
from typing import Any

import numpy as np
import torch

from megalodon_tasks.data.epoch_dataset import EpochDataset
from megalodon_tasks.data.sources import Rejects, describe
from megalodon_tasks.errors import user_errors
from megalodon_tasks.recipes.imagenet.augmentation import Transform, seeded
from megalodon_tasks.recipes.imagenet.image_tree import ImageSplit
from megalodon_tasks.recipes.imagenet.reading import DamagedImage, read_image

logger = logging.getLogger(__name__)

# Distinguish these uses of a seed from others; any constants will do.
_SHUFFLE, _VIEW = 0x5EED, 0x1A6E
# This many unreadable files in a row are no accident.
ATTEMPTS = 16
# DeiT rounds an epoch down to a multiple of this.
EPOCH_MULTIPLE = 256


class EvaluationImages(EpochDataset):
    """The images of a split in the order of their paths, each once.

    A damaged image is refused: accuracies on different images do not compare.
    """

    def __init__(self, split: ImageSplit, transform: Transform, tokens: int) -> None:
        self.split, self.transform, self.tokens = split, transform, tokens

    def __len__(self) -> int:
        return len(self.split)

    @property
    def sizes(self) -> np.ndarray:
        """Patches of each image: the same for all, since images are brought to one size."""
        return np.broadcast_to(self.tokens, len(self))

    @user_errors()
    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``{"id", "image" (3, height, width) float32, "label", "replaced"}``."""
        try:
            image = read_image(self.split.path(index))
        except DamagedImage as error:
            raise ValueError(
                f"{error}; an accuracy without this image would not compare with others: replace the "
                "file by a good copy, or remove it and prepare the images again"
            ) from None
        return self._item(index, index, self.transform(image))

    def _item(self, view: int, index: int, image: torch.Tensor) -> dict[str, Any]:
        label = int(self.split.labels[index])
        return {"id": int(view), "image": image, "label": label, "replaced": ()}

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch; ``{}`` of no samples, which fairseq asks for when processes have uneven shares.

        ``net_input`` has ``inputs`` (B, 3, height, width) float32; ``target`` is (B,) int64, ``key`` the
        first view, and ``replaced`` has path and reason of each damaged image that was replaced.
        """
        if not samples:
            return {}
        return {
            "id": torch.tensor([sample["id"] for sample in samples], dtype=torch.int64),
            "net_input": {"inputs": torch.stack([sample["image"] for sample in samples])},
            "target": torch.tensor([sample["label"] for sample in samples], dtype=torch.int64),
            "nsentences": len(samples),
            "ntokens": len(samples) * self.tokens,
            "key": samples[0]["id"],
            "replaced": [pair for sample in samples for pair in sample["replaced"]],
        }

    def ordered_indices(self) -> np.ndarray:
        """Return the order of the paths, (images,) int64."""
        return np.arange(len(self))

    @user_errors()
    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """Cut the order into batches, the last of which may be smaller."""
        size = self._batch_size(max_tokens, max_sentences)
        return [indices[start : start + size] for start in range(0, len(indices), size)]

    def _batch_size(self, max_tokens: int | None, max_sentences: int | None) -> int:
        sizes = [max_sentences] if max_sentences else []
        sizes += [max_tokens // self.tokens] if max_tokens else []
        if not sizes or min(sizes) < 1:
            raise ValueError(
                f"dataset.batch_size={max_sentences} with dataset.max_tokens={max_tokens} leaves no "
                f"image (of {self.tokens} tokens) in a batch; set dataset.batch_size"
            )
        return min(sizes)


class TrainingImages(EvaluationImages):
    """Augmented views of the images, each ``repeats`` times; an epoch is as long as without repeats.

    This is repeated augmentation (arXiv 1901.09335) as in DeiT and timm's ``RepeatAugSampler``.  From a
    permutation with every image repeated, process r takes the views r, r + world, ..., in all
    ``floor(images // 256 * 256 / world)``, so that the views of one image go to different processes.
    Incomplete batches are dropped.  The task sets ``world``.

    A damaged image is replaced by the next one of the split (mostly of the same class), and reported in
    the batch.
    """

    def __init__(
        self, split: ImageSplit, transform: Transform, tokens: int, repeats: int, seed: int
    ) -> None:
        super().__init__(split, transform, tokens)
        if repeats < 1:
            raise ValueError(f"task.repeats={repeats} must be at least 1")
        self.repeats, self.seed = repeats, seed
        self.world = 1

    @user_errors()
    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return view ``index`` (see the top of this file) in the form of :class:`EvaluationImages`.

        Raises ``ValueError`` when many files in a row cannot be read.
        """
        image_number = int(index) % len(self.split)
        errors: list[DamagedImage] = []
        while True:
            number = (image_number + len(errors)) % len(self.split)
            try:
                image = read_image(self.split.path(number))
                break
            except DamagedImage as error:
                errors.append(error)
                if len(errors) == ATTEMPTS:
                    raise ValueError(
                        f"{ATTEMPTS} images in a row cannot be read, the last being {error}; "
                        "is the disk still there?"
                    ) from None
        with seeded(_VIEW, self.seed, int(index)):
            item = self._item(index, number, self.transform(image))
        item["replaced"] = tuple((str(error.path), error.reason) for error in errors)
        return item

    def ordered_indices(self) -> np.ndarray:
        """Return the views of the epoch; those at r, r + world, ... belong to process r."""
        generator = np.random.default_rng([_SHUFFLE, self.seed, self.epoch])
        order = repeated_order(generator.permutation(len(self)), self.repeats, self.world)
        return order + self.epoch * self.repeats * len(self)

    @user_errors()
    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """Cut the order into full batches; number ``step * world + r`` belongs to process r.

        Raises ``ValueError`` if there is not one.
        """
        size = self._batch_size(max_tokens, max_sentences)
        shares = [indices[rank :: self.world] for rank in range(self.world)]
        starts = range(0, len(shares[0]) - size + 1, size)
        if not starts:
            raise ValueError(
                f"an epoch has {len(shares[0])} images for each of {self.world} processes, which makes "
                f"no batch of {size}; set dataset.batch_size to less"
            )
        return [share[start : start + size] for start in starts for share in shares]


def repeated_order(permutation: np.ndarray, repeats: int, world: int) -> np.ndarray:
    """Return views ``repeat * images + image`` of an epoch; those at r, r + world, ... are of process r.

    Without repeats (1) each process has an equal share and what is left over is dropped.
    """
    images = len(permutation)
    if repeats == 1:
        return permutation[: images // world * world]
    share = -(-images // world)
    if images >= EPOCH_MULTIPLE:
        share = images // EPOCH_MULTIPLE * EPOCH_MULTIPLE // world
    share = min(share, -(-images * repeats // world))
    place = np.arange(share * world) % (images * repeats)
    return place % repeats * images + permutation[place // repeats]


class ReplacedImages:
    """Counts the damaged images that training replaced, and names each once in the log."""

    def __init__(self) -> None:
        self.views = 0
        self.rejects = Rejects(limit=sys.maxsize)

    def add(self, replaced: list[tuple[str, str]]) -> None:
        """Add the ``replaced`` of a batch."""
        self.views += len(replaced)
        for path, reason in replaced:
            if path not in self.rejects.reasons:
                logger.warning(f"replaced by the next image: {path} {reason}")
            self.rejects.add(path, reason)

    def report(self) -> None:
        """Log what was replaced in this process so far."""
        if self.views:
            logger.warning(f"{self.views} views were replaced so far by those of the next image")
            for line in describe(self.rejects.reasons):
                logger.warning(line)
