"""The language model with transformers' interface.

Legend: B batch, L length, D model dim, V vocabulary.
"""

from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from megalodon_tasks.hf.cache import MegalodonCache
from megalodon_tasks.hf.configuration import MegalodonHFConfig
from megalodon_tasks.models.language_model import CausalLM


class MegalodonForCausalLM(PreTrainedModel, GenerationMixin):
    """:class:`CausalLM` for ``AutoModelForCausalLM`` and ``generate``.

    Positions whose ``attention_mask`` is 0 count as absent, wherever they stand: each row gives what its
    real tokens give by themselves, so left-padded batches equal single rows.
    """

    config_class = MegalodonHFConfig
    base_model_prefix = "lm"
    _tied_weights_keys = {"lm.output.weight": "lm.embedding.weight"}
    # A state cannot be taken back by some steps, which assisted generation would need.
    _is_stateful = True

    def __init__(self, config: MegalodonHFConfig) -> None:
        super().__init__(config)
        self.lm = CausalLM(
            config.plain,
            config.vocab_size,
            scale_emb=config.scale_emb,
            share_emb=config.tie_word_embeddings,
            padding_idx=config.pad_token_id,
        )
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave the weights as :class:`CausalLM` has initialised them."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the embedding of tokens."""
        return self.lm.embedding

    def get_output_embeddings(self) -> torch.nn.Module:
        """Return the output layer."""
        return self.lm.output

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: MegalodonCache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Return the scores of next tokens, (B, L, V), with ``labels`` the loss, and the cache.

        input_ids: (B, L) int64, those that ``cache`` has not read.  attention_mask: (B, L) or
        (B, read + L), 0 at padding.  labels: (B, L), -100 where there is no loss; they are shifted here.
        logits_to_keep: the number of last positions to score, 0 for all.
        """
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and cache is None:
            cache = MegalodonCache()
        x_BLD = self._features(input_ids, attention_mask, cache)
        logits_BLV = self.lm.output.scores(x_BLD[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            scores_NV = logits_BLV[:, :-1].flatten(0, 1).float()
            loss = F.cross_entropy(scores_NV, labels[:, 1:].flatten(), ignore_index=-100)
        output = CausalLMOutputWithPast(loss=loss, logits=logits_BLV, cache=cache)
        return output if return_dict in (None, True) else output.to_tuple()

    def _features(
        self, tokens_BL: torch.Tensor, mask: torch.Tensor | None, cache: MegalodonCache | None
    ) -> torch.Tensor:
        batch, length = tokens_BL.shape
        real_BL = None if mask is None else mask[:, -length:].bool()
        if real_BL is not None and bool(real_BL.all()):
            real_BL = None
        single = length == 1 and real_BL is None and not torch.is_grad_enabled()
        if cache is not None and single and not self.training and cache.is_ready_for_steps():
            return cache.step(self.lm, tokens_BL)
        if real_BL is None:
            return self._read(tokens_BL, None, cache)
        # The real tokens of each row move to its start, and their features back.
        order_BL = (~real_BL).long().argsort(dim=1, stable=True)
        padding_BL = ~real_BL.gather(1, order_BL)
        x_BLD = self._read(tokens_BL.gather(1, order_BL), padding_BL, cache)
        back_BL = order_BL.argsort(1)
        return x_BLD.gather(1, back_BL[:, :, None].expand_as(x_BLD))

    def _read(
        self,
        tokens_BL: torch.Tensor,
        padding_BL: torch.Tensor | None,
        cache: MegalodonCache | None,
    ) -> torch.Tensor:
        """Return features (B, L, D) of rows that are padded on the right."""
        if cache is None:
            return self.lm.features(tokens_BL, None, padding_BL)[0]
        states = cache.states(len(tokens_BL))
        starts_BL = torch.zeros_like(tokens_BL, dtype=torch.bool)
        starts_BL[:, 0] = torch.tensor([state is None for state in states], dtype=torch.bool)
        x_BLD, states = self.lm.features(tokens_BL, states, padding_BL, starts_BL)
        cache.put(states, tokens_BL.shape[1])
        return x_BLD
