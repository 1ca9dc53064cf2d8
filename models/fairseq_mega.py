"""Mega registered with fairseq, one name for each preset of a classifier of Megalodon."""

from dataclasses import dataclass

from megalodon_tasks.models.config import MegaConfig
from megalodon_tasks.models.fairseq_models import ClassifierData, MegalodonClassifier, register
from megalodon_tasks.models.mega import MegaSequenceClassifier
from megalodon_tasks.models.presets import MEGA_PRESETS
from megalodon_tasks.models.settings import setting


@dataclass
class MegaClassifierConfig(ClassifierData, MegaConfig):
    """Everything that defines a Mega classifier except the data set, which the task describes."""

    norm_num_groups: int = setting(
        0, "not used: Mega has no norm over time; a setting of Megalodon's recipes"
    )


class MegaClassifier(MegaSequenceClassifier, MegalodonClassifier):
    """:class:`MegaSequenceClassifier` with fairseq's model interface."""

    config_type = MegaConfig


register("mega_classifier", MegaClassifierConfig, MegaClassifier, MEGA_PRESETS)
