"""The task ``imagenet``: classify the images of an ImageFolder tree as sequences of patches."""

import logging
from dataclasses import dataclass
from typing import Any, Optional

import torch
from fairseq.data import iterators
from fairseq.tasks import register_task
from omegaconf import II

from megalodon_tasks.errors import user_errors
from megalodon_tasks.models.classifier import ClassifierInputs
from megalodon_tasks.models.settings import setting
from megalodon_tasks.recipes.imagenet.augmentation import (
    AugmentationConfig,
    Mixer,
    evaluation_transform,
    training_transform,
)
from megalodon_tasks.recipes.imagenet.image_dataset import (
    EvaluationImages,
    ReplacedImages,
    TrainingImages,
)
from megalodon_tasks.recipes.imagenet.image_tree import ImageTree
from megalodon_tasks.training.classification_task import ClassificationConfig, ClassificationTask

logger = logging.getLogger(__name__)

PREPARE = "megalodon prepare imagenet/imagenet IMAGES {data}"


@dataclass
class ImagenetConfig(AugmentationConfig, ClassificationConfig):
    """Settings of the task ``imagenet``."""

    patch_size: int = setting(16, "side of a patch, in pixels")
    repeats: int = setting(3, "views of an image in an epoch (repeated augmentation)")
    store_ema: bool = II("ema.store_ema")


@register_task("imagenet", dataclass=ImagenetConfig)
class ImagenetTask(ClassificationTask):
    """Images with DeiT's augmentation in training and its protocol in evaluation.

    Batches are mixed (mixup, cutmix) on the device, just before the step.  With ``ema.store_ema``
    validation, and with it the choice of the best checkpoint, is of the averaged weights.
    """

    prepare_commands = {"imagenet": PREPARE}
    prepared_form = ImageTree

    @user_errors()
    def __init__(self, cfg: ImagenetConfig, **kwargs: Any) -> None:
        AugmentationConfig.validate(cfg)
        if cfg.patch_size < 1 or cfg.image_size < 1 or cfg.image_size % cfg.patch_size:
            raise ValueError(
                f"task.patch_size={cfg.patch_size} does not divide task.image_size={cfg.image_size}"
            )
        cfg.max_positions = (cfg.image_size // cfg.patch_size) ** 2
        super().__init__(cfg, **kwargs)
        self.mixer = Mixer(cfg, len(self.prepared.classes), cfg.seed)
        self.replaced = ReplacedImages()

    @property
    def inputs(self) -> ClassifierInputs:
        """Description of the data, for building a model."""
        return ClassifierInputs(
            kind="patches",
            num_classes=len(self.prepared.classes),
            max_length=self._max_positions,
            image_size=(self.cfg.image_size, self.cfg.image_size),
            patch_size=self.cfg.patch_size,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in the order of its number."""
        return self.prepared.classes

    @property
    def uses_ema(self) -> bool:
        """Whether fairseq passes the averaged weights to ``valid_step``."""
        return self.cfg.store_ema

    @user_errors()
    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> None:
        """Load a split: for training augmented and in random order, others as they are."""
        cfg, images = self.cfg, self.prepared.split(split)
        if split == cfg.train_subset:
            transform = training_transform(cfg)
            self.datasets[split] = TrainingImages(
                images, transform, self._max_positions, cfg.repeats, cfg.seed
            )
        else:
            transform = evaluation_transform(cfg)
            self.datasets[split] = EvaluationImages(images, transform, self._max_positions)
        logger.info(f"{split}: {len(images)} images of {images.root / images.info.folder}")

    @user_errors()
    def get_batch_iterator(
        self, dataset: EvaluationImages, *args: Any, num_shards: int = 1, **kwargs: Any
    ) -> iterators.EpochBatchIterator:
        """Return batches of a split; the views of an image stay spread over the processes.

        Raises :class:`UserError` if no full batch can be made, or if batches are mixed and their size is
        odd: an image is mixed with that at the same place from the end.
        """
        if isinstance(dataset, TrainingImages):
            dataset.world = num_shards
            kwargs["grouped_shuffling"] = True
            if not kwargs.get("num_workers"):
                # fairseq's reading ahead is a thread, which would draw from the generators of the step
                kwargs["data_buffer_size"] = 0
            size = kwargs.get("max_sentences")
            if self.mixer.enabled and size is not None and size % 2:
                raise ValueError(
                    f"dataset.batch_size={size} is odd, and mixup and cutmix pair the images of a "
                    "batch; choose an even size, or task.mix_prob=0"
                )
        return super().get_batch_iterator(dataset, *args, num_shards=num_shards, **kwargs)

    def train_step(
        self,
        sample: dict[str, Any],
        model: torch.nn.Module,
        criterion: torch.nn.Module,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        ema_model: Optional[torch.nn.Module] = None,
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Mix a batch and run a step on it."""
        if not ignore_grad:
            self.replaced.add(sample["replaced"])
        sample = self.mixer(sample, sample["key"])
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def valid_step(
        self,
        sample: dict[str, Any],
        model: torch.nn.Module,
        criterion: torch.nn.Module,
        ema_model: Optional[torch.nn.Module] = None,
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Evaluate a batch, by the averaged weights if there are any."""
        # fairseq's copy of the model was made in training mode
        model = model if ema_model is None else ema_model.eval()
        return super().valid_step(sample, model, criterion)

    def begin_valid_epoch(self, epoch: int, model: torch.nn.Module) -> None:
        """Log how many images had to be replaced; called after each epoch of training."""
        super().begin_valid_epoch(epoch, model)
        self.replaced.report()
