"""The classifier as a fairseq model, registered once per preset (``preset_models.py`` says why)."""

from dataclasses import dataclass, field, fields
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.inputs import ClassifierInputs
from megalodon_tasks.models.preset_models import register_presets
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS
from megalodon_tasks.models.sequence_classifier import SequenceClassifier


@dataclass
class MegalodonClassifierConfig(FairseqDataclass, MegalodonConfig):
    """Everything that defines a Megalodon classifier; what the data set holds comes from the task."""

    vocabulary: Optional[str] = field(
        default=None,
        metadata={"help": "count and digest of the symbols; the task fills it in and checks it"},
    )
    classes: Optional[str] = field(
        default=None,
        metadata={"help": "count and digest of the classes; the task fills it in and checks it"},
    )


class MegalodonClassifier(SequenceClassifier, BaseFairseqModel):
    """:class:`SequenceClassifier` with fairseq's model interface.

    ``state_dict`` names are those of :class:`SequenceClassifier`.
    """

    @classmethod
    def build_model(cls, cfg: DictConfig, task: FairseqTask) -> "MegalodonClassifier":
        """Build for the data set of ``task``, which must have ``inputs`` (ClassifierInputs)."""
        inputs = getattr(task, "inputs", None)
        if not isinstance(inputs, ClassifierInputs):
            raise ValueError(
                f"task {type(task).__name__} does not say what its data set holds; "
                "use a classification task of this project (for example task._name=lra_text)"
            )
        config = MegalodonConfig(**{f.name: getattr(cfg, f.name) for f in fields(MegalodonConfig)})
        config.validate()
        return cls(config, inputs)


register_model("megalodon_classifier", dataclass=MegalodonClassifierConfig)(MegalodonClassifier)
register_presets(CLASSIFIER_PRESETS, MegalodonClassifierConfig, MegalodonClassifier, register_model)
