"""The configuration of a Megalodon language model as transformers stores it."""

from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

from megalodon_tasks.models.config import MegalodonConfig


class MegalodonHFConfig(PreTrainedConfig):
    """Hold the fields of :class:`MegalodonConfig`, the vocabulary and its special tokens.

    ``tie_word_embeddings`` is ``share_emb`` of fairseq's model.  A text starts with ``bos_token_id``,
    which is the token that ends documents.
    """

    model_type = "megalodon"
    attribute_map = {
        "hidden_size": "model_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "ffn_hidden_dim",
    }

    vocab_size: int = 260
    scale_emb: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 2
    pad_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        for field in fields(MegalodonConfig):
            setattr(self, field.name, kwargs.pop(field.name, field.default))
        self.causal = True
        super().__post_init__(**kwargs)

    @property
    def plain(self) -> MegalodonConfig:
        """Return the part that defines the stack."""
        names = [field.name for field in fields(MegalodonConfig)]
        return MegalodonConfig(**{name: getattr(self, name) for name in names})
