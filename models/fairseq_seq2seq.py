"""The encoder-decoder as a model of fairseq.

The plain models of ``seq2seq.py`` do the work.  This file adds fairseq's interface: its dictionaries,
its ``encoder_out`` and its incremental state.
Legend: B batch, L target length, S source length, D model dim, V vocabulary.
"""

import sys
from dataclasses import dataclass, fields
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.models import FairseqEncoderDecoderModel, FairseqIncrementalDecoder
from fairseq.tasks import FairseqTask
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.sentence_prediction import SentencePredictionTask
from fairseq.tasks.translation import TranslationTask
from omegaconf import DictConfig

from megalodon_tasks.errors import user_errors
from megalodon_tasks.models.fairseq_encoder import (
    EncoderOut,
    MegalodonEncoder,
    check_dictionary,
    dictionary_digest,
    encoded_of,
)
from megalodon_tasks.models.fairseq_models import register
from megalodon_tasks.models.presets import SEQ2SEQ_PRESETS
from megalodon_tasks.models.seq2seq import Decoder, Seq2Seq, Seq2SeqConfig
from megalodon_tasks.models.state import map_state, reorder_state


class MegalodonCrossDecoder(FairseqIncrementalDecoder):
    """:class:`Decoder` as fairseq's decoder.

    ``first``: the symbol that every target starts with, or None for any.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        decoder: Decoder,
        limit: int = sys.maxsize,
        first: int | None = None,
    ) -> None:
        super().__init__(dictionary)
        self.plain = decoder
        self.limit = limit
        self.first = first
        self.padding_idx = dictionary.pad()
        self.register_buffer("vocabulary", dictionary_digest(dictionary))

    @user_errors()
    def forward(
        self,
        prev_output_tokens: torch.Tensor | None,
        encoder_out: EncoderOut | None = None,
        incremental_state: dict[str, Any] | None = None,
        features_only: bool = False,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return scores (B, L, V), or features (B, L, D) with ``features_only``, and fairseq's extra.

        prev_output_tokens: (B, L) int64, padded left or right.  ``extra["attn"]`` has the weights of the
        last block's cross attention, (B, L, S), in evaluation of whole targets, for alignments; else it
        is None.  With ``incremental_state`` only the tokens that it has not read are computed.
        Raises ``ValueError`` for a missing target or source, a target that does not start with the end
        symbol, an encoder of another width, and padding or no new token with an incremental state.
        """
        if prev_output_tokens is None:
            raise ValueError(
                "the batch has no prev_output_tokens, so the task has no target sequence; train "
                "megalodon with a task of pairs, such as translation"
            )
        if encoder_out is None:
            raise ValueError("the decoder got encoder_out=None; pass what the encoder returned")
        if incremental_state is not None:
            x_BLD = self._extract_unread(prev_output_tokens, encoder_out, incremental_state)
            attention = None
        else:
            self._check_start(prev_output_tokens)
            x_BLD, attention = self._extract(prev_output_tokens, encoder_out)
        output = x_BLD if features_only else self.output_layer(x_BLD)
        return output, {"attn": [attention], "inner_states": None}

    def _extract(
        self, tokens_BL: torch.Tensor, encoder_out: EncoderOut
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        sources = self.plain.read_source(encoded_of(encoder_out))
        if self.training or torch.is_grad_enabled():
            return self.plain.features(tokens_BL, sources)[0], None
        return self.plain.alignment(tokens_BL, sources)

    def _extract_unread(
        self, tokens_BL: torch.Tensor, encoder_out: EncoderOut, incremental_state: dict[str, Any]
    ) -> torch.Tensor:
        entry = self.get_incremental_state(incremental_state, "stack")
        if entry is None:
            sources = self.plain.read_source(encoded_of(encoder_out))
            rows = next(iter(encoder_out.get("rows", [])), None)
            entry = {"state": None, "read": 0, "sources": sources, "rows": rows}
        unread_BU = tokens_BL[:, entry["read"] :]
        if unread_BU.shape[1] == 0 or bool((unread_BU == self.padding_idx).any()):
            raise ValueError(
                f"got {tokens_BL.shape[1]} tokens with an incremental state that has read "
                f"{entry['read']}; pass all tokens from the start, as fairseq's generator does, and at "
                "least a new one, without padding"
            )
        x_BLD, state = self.plain.features(unread_BU, entry["sources"], entry["state"])
        entry = entry | {"state": state, "read": tokens_BL.shape[1]}
        self.set_incremental_state(incremental_state, "stack", entry)
        return x_BLD

    def _check_start(self, tokens_BL: torch.Tensor) -> None:
        if self.first is None or tokens_BL.numel() == 0:
            return
        at_B = (tokens_BL != self.padding_idx).to(torch.uint8).argmax(1)
        first_B = tokens_BL.gather(1, at_B[:, None])[:, 0]
        wrong = (first_B != self.first).nonzero()[:, 0]
        if len(wrong):
            row, symbol = int(wrong[0]), self.dictionary[int(first_B[wrong[0]])]
            raise ValueError(
                f"row {row} of the target starts with {symbol!r}, not with the end symbol "
                f"{self.dictionary[self.first]!r} that fairseq moves to the front; the target does not "
                "end with it: prepare the data with fairseq-preprocess, which appends it"
            )

    def output_layer(self, features: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Map (B, L, D) to scores (B, L, V)."""
        return self.plain.output.scores(features)

    def reorder_incremental_state(
        self, incremental_state: dict[str, Any], new_order: torch.Tensor
    ) -> None:
        """Select rows, as beam search does.  new_order: (new batch,) int64, repeats allowed.

        Keys and values of the source are not copied where each row still has the same source.
        """
        entry = self.get_incremental_state(incremental_state, "stack")
        if entry is None:
            return
        changed = {"state": reorder_state(entry["state"], new_order)}
        rows = entry["rows"]
        changed["rows"] = None if rows is None else rows.index_select(0, new_order)
        if rows is None or not torch.equal(rows, changed["rows"]):
            changed["sources"] = map_state(
                entry["sources"], lambda tensor: tensor.index_select(0, new_order)
            )
        self.set_incremental_state(incremental_state, "stack", entry | changed)

    def max_positions(self) -> int:
        """Return the limit on the length of a target."""
        return self.limit

    def upgrade_state_dict_named(self, state_dict: dict[str, torch.Tensor], name: str) -> None:
        """Check the dictionary of a checkpoint that is about to be loaded."""
        with user_errors():
            check_dictionary(self.vocabulary, state_dict, name, "target")


@dataclass
class MegalodonSeq2SeqConfig(FairseqDataclass, Seq2SeqConfig):
    """Everything that defines an encoder-decoder except the dictionaries, which the task has."""


class MegalodonSeq2Seq(FairseqEncoderDecoderModel):
    """A Megalodon encoder and decoder with fairseq's interface, for translation and the like.

    ``encoder.plain`` and ``decoder.plain`` are the models in plain PyTorch.
    """

    # fairseq's generator then computes alignments from whole targets, and generation itself, which
    # needs no weights, does not pay for them.
    full_context_alignment = True

    @classmethod
    @user_errors()
    def build_model(cls, cfg: DictConfig, task: FairseqTask) -> "MegalodonSeq2Seq":
        """Build for the dictionaries of ``task``.

        Raises ``ValueError`` for an impossible configuration, a task without a target sequence, and
        matrices shared between different dictionaries.
        """
        source, target = (
            getattr(task, f"{side}_dictionary", None) for side in ("source", "target")
        )
        no_pairs = isinstance(task, (LanguageModelingTask, SentencePredictionTask))
        if source is None or target is None or no_pairs:
            raise ValueError(
                f"--arch megalodon translates one sequence to another, and {type(task).__name__} has no "
                "target sequence; use a task of pairs (--task translation), --arch megalodon_lm for a "
                "language model or --arch megalodon_encoder for sentence_prediction"
            )
        names = [f.name for f in fields(Seq2SeqConfig)]
        config = Seq2SeqConfig(**{name: getattr(cfg, name) for name in names})
        if config.share_all_embeddings and source.symbols != target.symbols:
            raise ValueError(
                "model.share_all_embeddings=true needs one dictionary; the source's, of "
                f"{len(source)} symbols, and the target's, of {len(target)}, differ: prepare the data "
                "with fairseq-preprocess --joined-dictionary"
            )
        plain = Seq2Seq(config, len(source), len(target), source.pad())
        limits = (_limit(task, f"max_{side}_positions") for side in ("source", "target"))
        encoder = MegalodonEncoder(source, plain.encoder, next(limits))
        # Subclasses of the task may let targets start with a language or another symbol.
        first = target.eos() if type(task) is TranslationTask else None
        return cls(encoder, MegalodonCrossDecoder(target, plain.decoder, next(limits), first))

    def forward(
        self,
        src_tokens: torch.Tensor,
        src_lengths: torch.Tensor | None = None,
        prev_output_tokens: torch.Tensor | None = None,
        features_only: bool = False,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Encode the source and call the decoder; see :meth:`MegalodonCrossDecoder.forward`."""
        encoder_out = self.encoder(src_tokens, src_lengths)
        return self.decoder(prev_output_tokens, encoder_out, features_only=features_only)


def _limit(task: FairseqTask, name: str) -> int:
    """Return a limit on lengths that the task sets, or none."""
    limit = getattr(getattr(task, "cfg", None), name, None)
    return sys.maxsize if limit is None else int(limit)


register("megalodon", MegalodonSeq2SeqConfig, MegalodonSeq2Seq, SEQ2SEQ_PRESETS)
