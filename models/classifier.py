"""The classifier as a fairseq model, registered once per preset.

fairseq applies the sizes behind an ``--arch`` name only on the command line; for ``model._name`` in a
YAML it silently builds the base model.  So each preset is a model of its own name, whose configuration
class has the preset's sizes as defaults; both ways then read the same defaults.
"""

from dataclasses import dataclass, field, fields, make_dataclass

from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.inputs import ClassifierInputs
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS
from megalodon_tasks.models.sequence_classifier import SequenceClassifier


@dataclass
class MegalodonClassifierConfig(FairseqDataclass, MegalodonConfig):
    """Everything that defines a Megalodon classifier; what the data set holds comes from the task."""


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


def _register(name: str, sizes: dict[str, object]) -> None:
    """Register one preset: a subclass of the configuration and one of the model."""
    annotations = {f.name: f for f in fields(MegalodonConfig)}
    changed = [
        (key, annotations[key].type, field(default=value, metadata=annotations[key].metadata))
        for key, value in sizes.items()
    ]
    config = make_dataclass(f"Config_{name}", changed, bases=(MegalodonClassifierConfig,))
    model = type(f"Model_{name}", (MegalodonClassifier,), {"__module__": __name__})
    register_model(name, dataclass=config)(model)


register_model("megalodon_classifier", dataclass=MegalodonClassifierConfig)(MegalodonClassifier)
for _name, _sizes in CLASSIFIER_PRESETS.items():
    _register(_name, _sizes)
