"""A whole language model in plain PyTorch: token embedding, causal stack, output projection."""

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.embeddings import TokenEmbedding
from megalodon_tasks.models.stack import MegalodonStack
from megalodon_tasks.models.state import StackState


class CausalLM(nn.Module):
    """Next-token scores, with explicit state.

    ``scale_emb`` multiplies the embedding by sqrt(d); ``share_emb`` uses its matrix for the output too.
    Released models have no padding symbol, so none is treated apart.
    """

    def __init__(
        self,
        config: MegalodonConfig,
        vocab_size: int,
        *,
        scale_emb: bool = False,
        share_emb: bool = False,
    ) -> None:
        super().__init__()
        if not config.causal:
            raise ValueError("a language model needs model.causal=True, got False")
        self.config = config
        self.vocab_size = vocab_size
        self.scale_emb = scale_emb
        self.share_emb = share_emb
        self.dropout = config.dropout
        self.embedding = TokenEmbedding(vocab_size, config.model_dim, scaled=scale_emb)
        self.stack = MegalodonStack(config)
        self.output = nn.Linear(config.model_dim, vocab_size, bias=False)
        nn.init.trunc_normal_(self.output.weight, std=config.model_dim**-0.5)
        if share_emb:
            self.output.weight = self.embedding.weight

    def forward(
        self, tokens: torch.Tensor, state: StackState | None = None
    ) -> tuple[torch.Tensor, StackState]:
        """tokens: (B, L) int64.  Returns scores (B, L, vocab) and the state after the last token.

        Raises ``ValueError`` for a state of another model.
        """
        x_BLD = F.dropout(self.embedding(tokens), self.dropout, self.training)
        x_BLD, state = self.stack(x_BLD, state=state)
        return self.output(x_BLD), state
