"""Tasks of the Long Range Arena (arXiv 2011.04006)."""

from dataclasses import dataclass

from fairseq.tasks import register_task

from megalodon_tasks.models.settings import setting
from megalodon_tasks.training.classification_task import ClassificationConfig, ClassificationTask


@dataclass
class LraTextConfig(ClassificationConfig):
    """Settings of the task ``lra_text``."""

    length_pool: int = setting(
        0,
        "in training, so many shuffled items are sorted by length before they are cut into "
        "batches: less padding; 0: plain shuffled batches, as the benchmark draws them",
    )


@register_task("lra_text", dataclass=LraTextConfig)
class LraTextTask(ClassificationTask):
    """Classify sequences of symbols or bytes, or pairs of them.

    ListOps (17 tokens, 10 classes), Text (256 tokens, 2 classes), Retrieval (pairs, 256 tokens, 2
    classes).
    """

    prepare_commands = {
        "listops": "megalodon prepare lra/listops SOURCE {data}",
        "text": "megalodon prepare lra/text SOURCE {data}",
        "retrieval": "megalodon prepare lra/retrieval SOURCE {data}",
    }

    @property
    def length_pool(self) -> int:
        """The field of this name; an argument of SequenceDataset for the training split."""
        return self.cfg.length_pool


@register_task("lra_image", dataclass=ClassificationConfig)
class LraImageTask(ClassificationTask):
    """Classify images as sequences of pixels.

    Image (CIFAR-10, 1,024 pixels, 10 classes), Pathfinder (1,024 pixels, 2 classes), Path-X (16,384
    pixels, 2 classes).
    """

    prepare_commands = {
        "image": "megalodon prepare lra/image SOURCE {data}",
        "pathfinder": "megalodon prepare lra/pathfinder SOURCE {data}",
        "pathx": "megalodon prepare lra/pathx SOURCE {data}",
    }
