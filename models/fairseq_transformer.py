"""The Transformer registered with fairseq, for every preset of Megalodon: ``transformer_*``.

A preset has the sizes of Megalodon's, see :class:`TransformerConfig`, so ``model._name`` is the only
difference between two runs of a recipe.
"""

from dataclasses import dataclass

from megalodon_tasks.models.fairseq_models import (
    ClassifierData,
    MegalodonClassifier,
    MegalodonLanguageModel,
    MegalodonLanguageModelConfig,
    register,
)
from megalodon_tasks.models.presets import TRANSFORMER_CLASSIFIER_PRESETS, TRANSFORMER_LM_PRESETS
from megalodon_tasks.models.transformer import TransformerConfig, TransformerStack


@dataclass
class TransformerClassifierConfig(ClassifierData, TransformerConfig):
    """Everything that defines a Transformer classifier except the data set."""


class TransformerClassifier(MegalodonClassifier):
    """A classifier with a Transformer as its encoder."""

    stack_type = TransformerStack
    config_type = TransformerConfig


@dataclass
class TransformerLanguageModelConfig(MegalodonLanguageModelConfig, TransformerConfig):
    """Everything that defines a Transformer language model except the vocabulary."""


class TransformerLanguageModel(MegalodonLanguageModel):
    """A language model with a Transformer as its decoder."""

    stack_type = TransformerStack
    stack_config_type = TransformerConfig
    config_type = TransformerLanguageModelConfig


register(
    "transformer_classifier",
    TransformerClassifierConfig,
    TransformerClassifier,
    TRANSFORMER_CLASSIFIER_PRESETS,
)
# fairseq has a transformer_lm of its own.
register(
    "transformer_decoder_lm",
    TransformerLanguageModelConfig,
    TransformerLanguageModel,
    TRANSFORMER_LM_PRESETS,
)
