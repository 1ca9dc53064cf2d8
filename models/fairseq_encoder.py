"""The encoder as a part of fairseq's models, and as a model by itself.

Legend: B batch, S source length, D model dim.
"""

import hashlib
import sys
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.models import FairseqEncoder, FairseqEncoderModel
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig
from torch import nn

from megalodon_tasks.errors import user_errors
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.embeddings import TokenEmbedding
from megalodon_tasks.models.fairseq_models import plain_config, register
from megalodon_tasks.models.heads import ClassHead, MeanPool
from megalodon_tasks.models.seq2seq import Encoded, Encoder
from megalodon_tasks.models.settings import setting

EncoderOut = dict[str, list[torch.Tensor]]


def dictionary_digest(dictionary: Dictionary) -> torch.Tensor:
    """Return the number of symbols and a digest of them in order, (2,) int64."""
    digest = hashlib.sha256("\n".join(dictionary.symbols).encode()).digest()
    numbers = [len(dictionary), int.from_bytes(digest[:8], signed=True)]
    return torch.tensor(numbers, dtype=torch.int64)


def check_dictionary(
    ours: torch.Tensor, state_dict: dict[str, torch.Tensor], name: str, side: str
) -> None:
    """Raise ``ValueError`` if a checkpoint was trained with another dictionary than that of ``ours``.

    ours: its digest.  name: the module whose ``vocabulary`` is that of the checkpoint.
    """
    theirs = state_dict.get(f"{name}.vocabulary")
    if theirs is None or torch.equal(theirs.cpu(), ours.cpu()):
        return
    sizes = int(theirs[0]), int(ours[0])
    what = f"has {sizes[0]} symbols, the data's {sizes[1]}" if sizes[0] != sizes[1] else "differs"
    raise ValueError(
        f"the {side} dictionary of the checkpoint {what}; encode the data with the dict.txt that the "
        "model was trained with (fairseq-preprocess --srcdict, --tgtdict)"
    )


class MegalodonEncoder(FairseqEncoder):
    """:class:`Encoder` as fairseq's encoder, usable outside of this project's tasks.

    ``limit``: the longest source that is accepted, in symbols.
    """

    def __init__(self, dictionary: Dictionary, encoder: Encoder, limit: int = sys.maxsize) -> None:
        super().__init__(dictionary)
        self.plain = encoder
        self.limit = limit
        self.register_buffer("vocabulary", dictionary_digest(dictionary))

    @user_errors()
    def forward(
        self, src_tokens: torch.Tensor, src_lengths: torch.Tensor | None = None
    ) -> EncoderOut:
        """Encode tokens (B, S) int64, padded left or right; ``src_lengths`` is not needed.

        Returns fairseq's dict of lists: ``encoder_out`` (S, B, D), zero at padding;
        ``encoder_padding_mask`` (B, S) bool, empty if nothing is padding; ``rows`` (B,), which row of
        this batch each row is, for :meth:`reorder_encoder_out`.
        Raises ``ValueError`` for a source without symbols, of padding only, or beyond the limit.
        """
        if src_tokens.shape[1] > self.limit:
            raise ValueError(
                f"the source has {src_tokens.shape[1]} symbols, the limit is {self.limit} "
                "(--max-source-positions or --max-positions of the task); raise it, or skip long "
                "sentences with --skip-invalid-size-inputs-valid-test"
            )
        encoded = self.plain(src_tokens)
        mask = encoded.padding_mask
        return {
            "encoder_out": [encoded.vectors.transpose(0, 1)],
            "encoder_padding_mask": [] if mask is None else [mask],
            "encoder_embedding": [],
            "encoder_states": [],
            "src_tokens": [],
            "src_lengths": [],
            "rows": [torch.arange(len(src_tokens), device=src_tokens.device)],
        }

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: torch.Tensor) -> EncoderOut:
        """Select rows, as beam search does; nothing is copied where each row stays what it was."""
        rows = [part.index_select(0, new_order) for part in encoder_out["rows"]]
        if rows and torch.equal(rows[0], encoder_out["rows"][0]):
            return encoder_out
        axes = {"encoder_out": 1}
        return {
            name: [part.index_select(axes.get(name, 0), new_order) for part in parts]
            for name, parts in encoder_out.items()
        }

    def max_positions(self) -> int:
        """Return the limit on the length of a source."""
        return self.limit

    def upgrade_state_dict_named(self, state_dict: dict[str, torch.Tensor], name: str) -> None:
        """Check the dictionary of a checkpoint that is about to be loaded."""
        with user_errors():
            check_dictionary(self.vocabulary, state_dict, name, "source")


def encoded_of(encoder_out: EncoderOut) -> Encoded:
    """Read fairseq's form of an encoder's output."""
    mask = next(iter(encoder_out.get("encoder_padding_mask", [])), None)
    return Encoded(encoder_out["encoder_out"][0].transpose(0, 1), mask)


@dataclass
class MegalodonEncoderConfig(FairseqDataclass, MegalodonConfig):
    """Everything that defines an encoder except the dictionary.  ``causal`` is ignored."""

    max_positions: int = setting(sys.maxsize, "longest source; sentence_prediction sets it")


class SentenceHead(nn.Module):
    """Average ``SiLU(W x + x)`` over the real steps, then one linear layer."""

    def __init__(self, config: MegalodonConfig, classes: int) -> None:
        super().__init__()
        self.pool = MeanPool(config.model_dim, config.init_mode)
        self.head = ClassHead(config.model_dim, classes, config.dropout, bias=True)

    def forward(self, encoded: Encoded) -> torch.Tensor:
        """Map an encoder's output to (B, classes)."""
        return self.head(self.pool(*encoded))


class MegalodonEncoderModel(FairseqEncoderModel):
    """The bidirectional encoder by itself, with heads for fairseq's ``sentence_prediction`` task."""

    def __init__(self, config: MegalodonConfig, encoder: MegalodonEncoder) -> None:
        super().__init__(encoder)
        self.config = config
        self.classification_heads = nn.ModuleDict()

    @classmethod
    @user_errors()
    def build_model(cls, cfg: DictConfig, task: FairseqTask) -> "MegalodonEncoderModel":
        """Build for the source dictionary of ``task``; ``ValueError`` for an impossible setting."""
        dictionary = getattr(task, "source_dictionary", None)
        if dictionary is None:
            raise ValueError(
                f"--arch megalodon_encoder reads text, and {type(task).__name__} has no source "
                "dictionary; use a task of text, such as sentence_prediction"
            )
        config = plain_config(cfg, causal=False)
        embedding = TokenEmbedding(len(dictionary), config.model_dim, dictionary.pad())
        encoder = MegalodonEncoder(dictionary, Encoder(config, embedding), cfg.max_positions)
        return cls(config, encoder)

    def register_classification_head(
        self, name: str, num_classes: int, inner_dim: int | None = None
    ) -> None:
        """Add a head of that name, as ``sentence_prediction`` asks for; ``inner_dim`` is not used."""
        self.classification_heads[name] = SentenceHead(self.config, num_classes)

    @user_errors()
    def forward(
        self,
        src_tokens: torch.Tensor,
        src_lengths: torch.Tensor | None = None,
        features_only: bool = True,
        classification_head_name: str | None = None,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return scores of a head (B, classes), or vectors (B, S, D), and what the encoder returned.

        src_tokens: (B, S) int64, padded left or right.  Raises ``ValueError`` for an unknown head.
        """
        encoder_out = self.encoder(src_tokens, src_lengths)
        encoded = encoded_of(encoder_out)
        if classification_head_name is None:
            return encoded.vectors, {"encoder_out": encoder_out}
        if classification_head_name not in self.classification_heads:
            raise ValueError(
                f"there is no classification head {classification_head_name!r}; registered are "
                f"{sorted(self.classification_heads)}"
            )
        head = self.classification_heads[classification_head_name]
        return head(encoded), {"encoder_out": encoder_out}

    def get_normalized_probs(
        self, net_output: tuple[torch.Tensor, Any], log_probs: bool, sample: Any = None
    ) -> torch.Tensor:
        """Return probabilities of the classes, or their logarithms, in float32."""
        logits = net_output[0].float()
        return logits.log_softmax(-1) if log_probs else logits.softmax(-1)

    def upgrade_state_dict_named(self, state_dict: dict[str, torch.Tensor], name: str) -> None:
        """Check the dictionary, and start heads that a checkpoint does not have as they are here."""
        super().upgrade_state_dict_named(state_dict, name)
        prefix = f"{name}.classification_heads." if name else "classification_heads."
        for key, value in self.classification_heads.state_dict().items():
            state_dict.setdefault(prefix + key, value)


register("megalodon_encoder", MegalodonEncoderConfig, MegalodonEncoderModel, {})
