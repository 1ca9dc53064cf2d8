"""Whole language models in plain PyTorch: token embedding, causal stack, output, with explicit state.

Legend: B batch, L length, D model dim, V vocabulary.
"""

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.documents import RowStates, isolated
from megalodon_tasks.models.embeddings import TokenEmbedding
from megalodon_tasks.models.heads import TokenOutput
from megalodon_tasks.models.stack import MegalodonStack
from megalodon_tasks.models.state import StackState


class LanguageModel(nn.Module):
    """Next-token scores from any pair of embedding and output, which know the vocabulary.

    ``embedding`` maps tokens (B, L) to (B, L, D).  ``output`` has ``scores`` and ``nll``, as
    :class:`TokenOutput` does.  A sequence may be fed in pieces of any length with the state carried.
    """

    def __init__(
        self, config: MegalodonConfig, vocab_size: int, embedding: nn.Module, output: nn.Module
    ) -> None:
        super().__init__()
        if not config.causal:
            raise ValueError("a language model needs model.causal=True, got False")
        self.config = config
        self.vocab_size = vocab_size
        self.dropout = config.dropout
        self.embedding = embedding
        self.stack = MegalodonStack(config)
        self.output = output

    def features(
        self,
        tokens_BL: torch.Tensor,
        state: StackState | RowStates | None = None,
        padding_mask_BL: torch.Tensor | None = None,
        document_starts_BL: torch.Tensor | None = None,
        keep_states: bool = True,
    ) -> tuple[torch.Tensor, StackState | RowStates]:
        """tokens: (B, L) int64.  Returns what the output layer reads, (B, L, D), and the state after L.

        padding_mask: (B, L) bool, True at padding, whose features are zero.  document_starts: (B, L)
        bool, True where a document starts that must know nothing of what stands before it; the state is
        then one per row, and leaving it out (``keep_states`` False) is faster, see
        :func:`megalodon_tasks.models.documents.isolated`.
        Raises ``ValueError`` for a token that is not in the vocabulary, or a state of another model.
        """
        self._check_tokens(tokens_BL)
        x_BLD = F.dropout(self.embedding(tokens_BL), self.dropout, self.training)
        if document_starts_BL is None:
            return self.stack(x_BLD, padding_mask_BL, state)
        return isolated(self.stack, x_BLD, document_starts_BL, padding_mask_BL, state, keep_states)

    def forward(
        self, tokens_BL: torch.Tensor, state: StackState | None = None
    ) -> tuple[torch.Tensor, StackState]:
        """tokens: (B, L) int64.  Returns scores (B, L, V) and the state after the last token.

        ``log_softmax`` of the scores are log-probabilities of the next token.

        Raises ``ValueError`` for a token that is not in the vocabulary, or a state of another model.
        """
        x_BLD, state = self.features(tokens_BL, state)
        return self.output.scores(x_BLD), state

    def nll(
        self, tokens_BL: torch.Tensor, targets_BL: torch.Tensor, state: StackState | None = None
    ) -> tuple[torch.Tensor, StackState]:
        """Negative log-likelihood of ``targets`` in nats, (B, L) float32, and the state after L.

        Raises ``ValueError`` for a token or target that is not in the vocabulary.
        """
        self._check_tokens(targets_BL)
        x_BLD, state = self.features(tokens_BL, state)
        return self.output.nll(x_BLD, targets_BL), state

    def _check_tokens(self, tokens_BL: torch.Tensor) -> None:
        # On a GPU the comparison would make each call wait for the device; the lookup checks there.
        if tokens_BL.device.type != "cpu":
            return
        low, high = tokens_BL.aminmax()
        if low < 0 or high >= self.vocab_size:
            wrong = int(low) if low < 0 else int(high)
            raise ValueError(
                f"token id {wrong} is out of range: the vocabulary of this model has "
                f"{self.vocab_size} symbols, 0 to {self.vocab_size - 1}; "
                "encode the text with the vocabulary that the model was trained with"
            )


class CausalLM(LanguageModel):
    """The released form: one matrix in, one matrix out.

    ``scale_emb`` multiplies the embedding by sqrt(d); ``share_emb`` uses its matrix for the output too.
    Released models have no padding symbol and treat none apart; ``padding_idx`` gives one a zero row.
    """

    def __init__(
        self,
        config: MegalodonConfig,
        vocab_size: int,
        *,
        scale_emb: bool = False,
        share_emb: bool = False,
        padding_idx: int | None = None,
    ) -> None:
        embedding = TokenEmbedding(vocab_size, config.model_dim, padding_idx, scaled=scale_emb)
        output = TokenOutput(config.model_dim, vocab_size)
        super().__init__(config, vocab_size, embedding, output)
        self.scale_emb = scale_emb
        self.share_emb = share_emb
        if share_emb:
            self.output.weight = self.embedding.weight
