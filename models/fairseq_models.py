"""All models that are registered with fairseq: the classifier, the language model, and their presets.

The plain models of ``classifier.py`` and ``language_model.py`` do the work.  This file adds what fairseq
asks for: configuration classes, its dictionary, its adaptive embedding and softmax, its incremental
state, and the padding of its batches.
Legend: B batch, L length, D model dim.
"""

import itertools
import sys
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, ClassVar, Optional, TypeVar

import torch
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.models import (
    BaseFairseqModel,
    FairseqIncrementalDecoder,
    FairseqLanguageModel,
    register_model,
)
from fairseq.modules import AdaptiveInput, AdaptiveSoftmax
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig
from torch.nn import functional as F

from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import EncoderConfig, MegalodonConfig
from megalodon_tasks.models.decoding import Decoder, can_prepare
from megalodon_tasks.models.documents import RowStates
from megalodon_tasks.models.language_model import CausalLM, LanguageModel
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS, LM_PRESETS
from megalodon_tasks.models.settings import setting
from megalodon_tasks.models.stack import MegalodonStack
from megalodon_tasks.models.state import Carried, StackState, reorder_state

Config = TypeVar("Config", bound=EncoderConfig)


def plain_config(
    cfg: Any, config_type: type[Config] = MegalodonConfig, **changes: object
) -> Config:
    """Return the fields of ``cfg`` that belong to ``config_type``, with ``changes``, validated."""
    values = {f.name: getattr(cfg, f.name) for f in fields(config_type)}
    config = config_type(**values | changes)
    config.validate()
    return config


@dataclass
class ClassifierData(FairseqDataclass):
    """What the configuration of a classifier says about its data set."""

    vocabulary: Optional[str] = setting(
        None, "number and digest of the symbols; set and checked by the task"
    )
    classes: Optional[str] = setting(
        None, "number and digest of the classes; set and checked by the task"
    )


@dataclass
class MegalodonClassifierConfig(ClassifierData, MegalodonConfig):
    """Everything that defines a Megalodon classifier except the data set, which the task describes."""


class MegalodonClassifier(SequenceClassifier, BaseFairseqModel):
    """:class:`SequenceClassifier` with fairseq's model interface and the same ``state_dict`` names.

    Another architecture is a subclass with its own ``stack_type`` and ``config_type``.
    """

    config_type: ClassVar[type[EncoderConfig]] = MegalodonConfig

    @classmethod
    def build_model(cls, cfg: DictConfig, task: FairseqTask) -> "MegalodonClassifier":
        """Build for the data set of ``task``, whose ``inputs`` must be ``ClassifierInputs``."""
        inputs = getattr(task, "inputs", None)
        if not isinstance(inputs, ClassifierInputs):
            raise ValueError(
                f"task {type(task).__name__} does not describe its data set; use a classification "
                "task of this project (for example task._name=lra_text)"
            )
        return cls(plain_config(cfg, cls.config_type), inputs)


@dataclass
class MegalodonLanguageModelConfig(FairseqDataclass, MegalodonConfig):
    """Everything that defines a Megalodon language model except the vocabulary, which the task has.

    ``causal`` is ignored: a language model always is.
    """

    scale_emb: bool = setting(False, "embedding times sqrt(d)")
    share_emb: bool = setting(False, "one matrix for input and output (adaptive: projections too)")
    adaptive_cutoffs: Optional[str] = setting(
        None, "adaptive input and softmax: ranks that divide the vocabulary, 20000,60000"
    )
    adaptive_factor: float = setting(4.0, "how much narrower the embedding of each rarer band is")
    adaptive_dropout: float = setting(0.0, "dropout before the adaptive softmax")
    vocabulary: Optional[str] = setting(
        None, "size and digest of the vocabulary; set and checked by the task"
    )

    def validate(self) -> None:
        """Raise ``ValueError`` for a value that no language model can have."""
        super().validate()
        if not 0.0 <= self.adaptive_dropout < 1.0:
            raise ValueError(f"model.adaptive_dropout={self.adaptive_dropout} must be in [0, 1)")
        if self.adaptive_factor < 1.0:
            raise ValueError(f"model.adaptive_factor={self.adaptive_factor} must be at least 1")

    def cutoffs(self, vocab_size: int) -> list[int]:
        """Parse ``adaptive_cutoffs``; ``ValueError`` unless they rise within the vocabulary."""
        words = self.adaptive_cutoffs.split(",")
        cutoffs = [int(word) for word in words if word.strip().isdigit()]
        edges = [0, *cutoffs, vocab_size]
        rising = all(low < high for low, high in itertools.pairwise(edges))
        if len(cutoffs) != len(words) or not rising:
            raise ValueError(
                f"model.adaptive_cutoffs={self.adaptive_cutoffs!r} must be rising numbers between 0 and "
                f"the size of the vocabulary, {vocab_size}, such as 20000,60000"
            )
        narrowest = self.model_dim // self.adaptive_factor ** len(cutoffs)
        if narrowest < 1:
            raise ValueError(
                f"model.adaptive_factor={self.adaptive_factor} leaves no width for the rarest of "
                f"{len(cutoffs) + 1} bands of model.model_dim={self.model_dim}; use fewer cutoffs"
            )
        return cutoffs


class AdaptiveOutput(AdaptiveSoftmax):
    """fairseq's adaptive softmax with the methods of :class:`TokenOutput`."""

    def scores(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities (B, L, V) of features (B, L, D)."""
        return self.get_log_prob(x_BLD, target=None)

    def nll(self, x_BLD: torch.Tensor, targets_BL: torch.Tensor) -> torch.Tensor:
        """Return the negative log-likelihood in nats, (B, L) float32.

        It is that of the head, plus that inside the band for a target in a band.
        """
        targets_BL = targets_BL.contiguous()
        bands, targets = self(x_BLD, targets_BL)
        nll_N = F.cross_entropy(bands[0].float(), targets[0], reduction="none")
        positions = self.adapt_target(targets_BL)[1]
        for band, target, index in zip(bands[1:], targets[1:], positions, strict=True):
            if index is not None:
                nll_in_band = F.cross_entropy(band.float(), target, reduction="none")
                nll_N = nll_N.index_add(0, index, nll_in_band)
        return nll_N.view_as(targets_BL)


def build_language_model(
    config: MegalodonLanguageModelConfig,
    vocab_size: int,
    padding_idx: int,
    stack_type: type[MegalodonStack] = MegalodonStack,
    stack_config_type: type[MegalodonConfig] = MegalodonConfig,
) -> LanguageModel:
    """Build the model without fairseq's interface; ``ValueError`` for an impossible configuration."""
    config.validate()
    stack_config = plain_config(config, stack_config_type, causal=True)
    if config.adaptive_cutoffs is None:
        return CausalLM(
            stack_config,
            vocab_size,
            scale_emb=config.scale_emb,
            share_emb=config.share_emb,
            padding_idx=padding_idx,
            stack_type=stack_type,
        )
    d, cutoffs, factor = config.model_dim, config.cutoffs(vocab_size), config.adaptive_factor
    embedding = AdaptiveInput(vocab_size, padding_idx, d, factor, d, cutoffs)
    output = AdaptiveOutput(
        vocab_size,
        d,
        cutoffs,
        config.adaptive_dropout,
        factor=factor,
        adaptive_inputs=embedding if config.share_emb else None,
        tie_proj=config.share_emb,
    )
    return LanguageModel(stack_config, vocab_size, embedding, output, config.scale_emb, stack_type)


class MegalodonDecoder(FairseqIncrementalDecoder):
    """:class:`LanguageModel` as fairseq's decoder."""

    def __init__(self, dictionary: Dictionary, lm: LanguageModel) -> None:
        super().__init__(dictionary)
        self.lm = lm
        self.padding_idx = dictionary.pad()

    @property
    def adaptive_softmax(self) -> AdaptiveOutput | None:
        """The output layer if it is adaptive; fairseq looks for it under this name."""
        output = self.lm.output
        return output if isinstance(output, AdaptiveOutput) else None

    @adaptive_softmax.setter
    def adaptive_softmax(self, value: None) -> None:
        """Accept the None that fairseq's constructor sets before there is an output."""

    def forward(
        self,
        prev_output_tokens: torch.Tensor,
        encoder_out: None = None,
        incremental_state: dict[str, Any] | None = None,
        features_only: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return scores (B, L, V), or features (B, L, D) with ``features_only`` and where the softmax
        is adaptive, as fairseq's ``adaptive_loss`` expects; and what :meth:`extract_features` adds.

        With fairseq's ``incremental_state``, ``prev_output_tokens`` holds all tokens so far, of which
        only those not yet read are computed: one when generating, a whole prompt, or anything between.
        In evaluation and without gradients, single tokens are read by a :class:`Decoder`; the returned
        ``state`` is then None.  Raises ``ValueError`` if all tokens were read before.
        """
        if incremental_state is None:
            x_BLD, extra = self.extract_features(prev_output_tokens, **kwargs)
        else:
            x_BLD, extra = self._extract_unread(prev_output_tokens, incremental_state, **kwargs)
        return x_BLD if features_only else self.output_layer(x_BLD), extra

    def _extract_unread(
        self, tokens_BL: torch.Tensor, incremental_state: dict[str, Any], **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        entry = self.get_incremental_state(incremental_state, "stack")
        state, read = (entry["state"], entry["read"]) if entry else (None, 0)
        length = tokens_BL.shape[1]
        if length <= read:
            raise ValueError(
                f"got {length} tokens with an incremental state that has read {read}; "
                "pass all tokens from the start, as fairseq's generator does, or a new state"
            )
        unread_BL = tokens_BL[:, read:]
        if self._is_plain_step(unread_BL, state, **kwargs):
            state = state if isinstance(state, Decoder) else Decoder(self.lm, state)
            x_BLD, extra = state.features(unread_BL), {"attn": None, "state": None}
        else:
            state = state.state() if isinstance(state, Decoder) else state
            x_BLD, extra = self.extract_features(unread_BL, state=state, **kwargs)
            state = extra["state"]
        self.set_incremental_state(incremental_state, "stack", {"state": state, "read": length})
        return x_BLD, extra

    def _is_plain_step(
        self,
        unread_BL: torch.Tensor,
        state: StackState | RowStates | Decoder | None,
        document_starts: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> bool:
        """Return whether a :class:`Decoder` can read these tokens: one of each row, in evaluation."""
        return (
            can_prepare(self.lm)
            and isinstance(state, (StackState, Decoder))
            and unread_BL.shape[1] == 1
            and document_starts is None
            and not (self.training or torch.is_grad_enabled())
            and not (unread_BL == self.padding_idx).any()
        )

    def extract_features(
        self,
        prev_output_tokens: torch.Tensor,
        encoder_out: None = None,
        state: StackState | RowStates | None = None,
        document_starts: torch.Tensor | None = None,
        return_state: bool = False,
        src_lengths: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return features (B, L, D), zero at padding, and ``{"attn": None, "state": after step L}``.

        prev_output_tokens: (B, L) int64, padded on the right.  state: that of the steps before.
        document_starts: (B, L) bool; with it the state is None unless ``return_state``, see
        :meth:`LanguageModel.features`.  ``src_lengths`` is not used: padding shows where a row ends.
        Raises ``ValueError`` for padding on the left.
        """
        padding_mask_BL = self._padding(prev_output_tokens)
        x_BLD, state = self.lm.features(
            prev_output_tokens, state, padding_mask_BL, document_starts, return_state
        )
        return x_BLD, {"attn": None, "state": state}

    def output_layer(self, features: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Map (B, L, D) to scores (B, L, V); with the adaptive softmax return the features."""
        return features if self.adaptive_softmax is not None else self.lm.output.scores(features)

    def _padding(self, tokens_BL: torch.Tensor) -> torch.Tensor | None:
        padding_mask_BL = tokens_BL == self.padding_idx
        if not padding_mask_BL.any():
            return None
        after_padding = padding_mask_BL[:, :-1] & ~padding_mask_BL[:, 1:]
        if after_padding.any():
            row = int(after_padding.any(1).nonzero()[0, 0])
            raise ValueError(
                f"row {row} has padding before a real token; chunks are counted from the start of a "
                "row, so pad on the right (left_pad=False)"
            )
        return padding_mask_BL

    def reorder_incremental_state(
        self, incremental_state: dict[str, Any], new_order: torch.Tensor
    ) -> None:
        """Select rows, as beam search does.  new_order: (new batch,) int64, repeats allowed."""
        entry = self.get_incremental_state(incremental_state, "stack")
        if entry is None:
            return
        if isinstance(entry["state"], Decoder):
            entry["state"].reorder(new_order)
        else:
            entry["state"] = reorder_state(entry["state"], new_order)

    def max_positions(self) -> int:
        """Return fairseq's limit on the length of a sequence: there is none."""
        return sys.maxsize


class MegalodonLanguageModel(FairseqLanguageModel):
    """A Megalodon decoder with fairseq's interface.

    ``model.decoder.lm`` is the model in plain PyTorch; ``state_dict`` names are its names after
    ``decoder.lm.``.  Another architecture is a subclass with its own ``stack_type``, that stack's
    ``stack_config_type``, and the ``config_type`` that adds what fairseq asks for.
    """

    config_type: ClassVar[type[MegalodonLanguageModelConfig]] = MegalodonLanguageModelConfig
    stack_config_type: ClassVar[type[MegalodonConfig]] = MegalodonConfig
    stack_type: ClassVar[type[MegalodonStack]] = MegalodonStack

    @classmethod
    def build_model(cls, cfg: DictConfig, task: FairseqTask) -> "MegalodonLanguageModel":
        """Build for the dictionary of ``task``; ``ValueError`` for an impossible configuration."""
        dictionary = getattr(task, "source_dictionary", None)
        if dictionary is None:
            raise ValueError(
                f"task {type(task).__name__} has no dictionary; use a language modelling task "
                "(task._name=megalodon_language_modeling)"
            )
        names = [f.name for f in fields(cls.config_type) if f.name != "_name"]
        config = cls.config_type(**{name: getattr(cfg, name) for name in names})
        stack = (cls.stack_type, cls.stack_config_type)
        lm = build_language_model(config, len(dictionary), dictionary.pad(), *stack)
        return cls(MegalodonDecoder(dictionary, lm))

    takes_targets = True  # see fairseq_compat/loss_in_pieces.py

    def forward(
        self,
        src_tokens: torch.Tensor,
        carried: Carried | None = None,
        targets: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Call the decoder; with ``carried``, continue from its state and leave the next one there.

        With ``targets`` (B, L) return their negative log-likelihoods (B, L) in nats in place of scores.
        """
        if carried is not None:
            kwargs |= {"state": carried.get(self), "return_state": True}
        if targets is not None:
            kwargs |= {"features_only": True}
        output, extra = self.decoder(src_tokens, **kwargs)
        if carried is not None:
            carried.put(self, extra["state"])
        if targets is not None:
            output = self.decoder.lm.output.nll(output, targets)
        return output, extra


def register(name: str, config: type, model: type, presets: dict[str, dict[str, object]]) -> None:
    """Register ``model`` under ``name``, and a subclass of it for each preset under the preset's name.

    fairseq applies the sizes of an ``--arch`` preset only on the command line; for ``model._name`` in a
    YAML file it silently builds the base model.  Configuration subclasses whose defaults are the
    preset's sizes give the same model either way.
    """
    register_model(name, dataclass=config)(model)
    known = {f.name: f for f in fields(config)}
    for preset, sizes in presets.items():
        changed = [
            (key, known[key].type, field(default=value, metadata=known[key].metadata))
            for key, value in sizes.items()
        ]
        sized_config = make_dataclass(f"Config_{preset}", changed, bases=(config,))
        sized_model = type(f"Model_{preset}", (model,), {"__module__": __name__})
        register_model(preset, dataclass=sized_config)(sized_model)


register("megalodon_classifier", MegalodonClassifierConfig, MegalodonClassifier, CLASSIFIER_PRESETS)
register("megalodon_lm", MegalodonLanguageModelConfig, MegalodonLanguageModel, LM_PRESETS)
