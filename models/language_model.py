"""Language models in plain PyTorch: token embedding, causal stack, output, with explicit state.

Legend: B batch, L length, D model dim, V vocabulary.
"""

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.cuda_ops.transforms import data_is_at_hand
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.documents import RowStates, run_documents
from megalodon_tasks.models.embeddings import TokenEmbedding
from megalodon_tasks.models.heads import TokenOutput
from megalodon_tasks.models.stack import MegalodonStack
from megalodon_tasks.models.state import StackState


class LanguageModel(nn.Module):
    """Score next tokens with any embedding and output layer of the same vocabulary.

    ``embedding`` maps tokens (B, L) to (B, L, D).  ``output`` has ``scores`` and ``nll``, as
    :class:`TokenOutput` does.  ``scale_emb`` multiplies the embedding by sqrt(D).  ``stack_type`` is
    built from ``config``, and can be that of another architecture.  A sequence may be fed in pieces of
    any length with the state carried.
    """

    def __init__(
        self,
        config: MegalodonConfig,
        vocab_size: int,
        embedding: nn.Module,
        output: nn.Module,
        scale_emb: bool = False,
        stack_type: type[MegalodonStack] = MegalodonStack,
    ) -> None:
        super().__init__()
        if not config.causal:
            raise ValueError("a language model needs model.causal=True, got False")
        self.config = config
        self.vocab_size = vocab_size
        self.dropout = config.dropout
        self.scale_emb = scale_emb
        self.embedding = embedding
        self.stack = stack_type(config)
        self.output = output

    def embed(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Return the input of the stack, (B, L, D), before dropout.

        Raises ``ValueError`` for a token outside the vocabulary.
        """
        self._check_tokens(tokens_BL)
        x_BLD = self.embedding(tokens_BL)
        return x_BLD * self.config.model_dim**0.5 if self.scale_emb else x_BLD

    def features(
        self,
        tokens_BL: torch.Tensor,
        state: StackState | RowStates | None = None,
        padding_mask_BL: torch.Tensor | None = None,
        document_starts_BL: torch.Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[torch.Tensor, StackState | RowStates | None]:
        """Return the input of the output layer, (B, L, D), and the state after step L.

        tokens: (B, L) int64.  padding_mask: (B, L) bool, True at padding, whose features are zero.
        document_starts: (B, L) bool, True where a document starts, which sees nothing before it.  With
        document starts there is one state per row, and leaving it out (``return_state`` False) is
        faster; see :func:`megalodon_tasks.models.documents.run_documents`.
        Raises ``ValueError`` for a token outside the vocabulary, or a state of another model.
        """
        x_BLD = F.dropout(self.embed(tokens_BL), self.dropout, self.training)
        if document_starts_BL is None:
            return self.stack(x_BLD, padding_mask_BL, state)
        return run_documents(
            self.stack, x_BLD, document_starts_BL, padding_mask_BL, state, return_state
        )

    def forward(
        self, tokens_BL: torch.Tensor, state: StackState | None = None
    ) -> tuple[torch.Tensor, StackState]:
        """Return scores (B, L, V), unnormalised log-probabilities, and the state after step L.

        tokens: (B, L) int64.  Raises what :meth:`features` raises.
        """
        x_BLD, state = self.features(tokens_BL, state)
        return self.output.scores(x_BLD), state

    def nll(
        self, tokens_BL: torch.Tensor, targets_BL: torch.Tensor, state: StackState | None = None
    ) -> tuple[torch.Tensor, StackState]:
        """Return the negative log-likelihood of ``targets`` in nats, (B, L), and the state.

        Raises ``ValueError`` for a token or target outside the vocabulary.
        """
        self._check_tokens(targets_BL)
        x_BLD, state = self.features(tokens_BL, state)
        return self.output.nll(x_BLD, targets_BL), state

    def _check_tokens(self, tokens_BL: torch.Tensor) -> None:
        # On a GPU the comparison would make each call wait for the device: the lookup checks there, and
        # in traced code.
        if tokens_BL.device.type != "cpu" or not data_is_at_hand(tokens_BL):
            return
        low, high = tokens_BL.aminmax()
        if type(low) is not torch.Tensor:  # under FakeTensorMode, and without a value
            return
        if low < 0 or high >= self.vocab_size:
            wrong = int(low) if low < 0 else int(high)
            raise ValueError(
                f"token id {wrong} is out of range: the vocabulary of this model has "
                f"{self.vocab_size} symbols, 0 to {self.vocab_size - 1}; "
                "encode the text with the vocabulary that the model was trained with"
            )


class CausalLM(LanguageModel):
    """The released form: one embedding matrix and one output matrix.

    ``share_emb`` uses one matrix for both.  ``padding_idx`` gives a symbol an embedding of zeros;
    released models have no padding symbol.
    """

    def __init__(
        self,
        config: MegalodonConfig,
        vocab_size: int,
        *,
        scale_emb: bool = False,
        share_emb: bool = False,
        padding_idx: int | None = None,
        stack_type: type[MegalodonStack] = MegalodonStack,
    ) -> None:
        embedding = TokenEmbedding(vocab_size, config.model_dim, padding_idx, scaled=False)
        output = TokenOutput(config.model_dim, vocab_size)
        super().__init__(config, vocab_size, embedding, output, scale_emb, stack_type)
        self.share_emb = share_emb
        if share_emb:
            self.output.weight = self.embedding.weight
