"""Draw text from a language model token by token, at a memory that does not grow with what was read."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from megalodon_tasks.data.tokenizers import Tokenizer
from megalodon_tasks.models.decoding import Decoder, OrdinaryDecoder, decoder_for
from megalodon_tasks.models.documents import RowStates
from megalodon_tasks.models.language_model import LanguageModel
from megalodon_tasks.models.state import StackState


@dataclass(frozen=True)
class Choice:
    """How the next token is drawn.

    ``temperature`` divides the scores (0: the likeliest token).  Then only the ``top_k`` likeliest stay
    (0: all), and of these the fewest that have a probability of ``top_p`` together (1: all).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be at least 0 and finite")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be at least 0 (0: no limit)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1 (1: no limit)")

    def draw(self, scores_V: torch.Tensor, generator: torch.Generator) -> int:
        """Draw a token.  scores: (V,) on the CPU, unnormalised log-probabilities; -inf never wins."""
        if self.temperature == 0:
            return int(scores_V.argmax())
        probabilities_V = (scores_V.double() / self.temperature).softmax(-1)
        sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
        if self.top_k:
            sorted_V, order_V = sorted_V[: self.top_k], order_V[: self.top_k]
        sorted_V = sorted_V / sorted_V.sum()
        before_V = sorted_V.cumsum(-1) - sorted_V
        sorted_V = sorted_V.where(before_V < self.top_p, 0.0)
        return int(order_V[torch.multinomial(sorted_V, 1, generator=generator)])


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt: torch.Tensor,
    choose: Callable[[torch.Tensor], int | torch.Tensor],
    *,
    piece: int,
    allowed: torch.Tensor,
) -> Iterator[int]:
    """Yield tokens that follow ``prompt``, without end.

    prompt, piece: as in :func:`read`.  choose, allowed: as in :func:`draw`.
    Raises ``ValueError`` for a token that is not in the model's vocabulary, a model in training mode,
    and scores that are not finite.
    """
    scores_11V, state = read(model, prompt, None, piece)
    yield from draw(decoder_for(model, state), scores_11V, choose, allowed)


@torch.inference_mode()
def read(
    model: LanguageModel, tokens_L: torch.Tensor, state: StackState | None, piece: int
) -> tuple[torch.Tensor, StackState]:
    """Read ``tokens``, (L,) int64 with L at least 1, in pieces of ``piece`` tokens after ``state``.

    Returns the scores of the next token, (1, 1, V), and the state.
    """
    tokens_1L = tokens_L.to(next(model.parameters()).device)[None]
    before: StackState | RowStates | None = state
    for part in tokens_1L[:, :-1].split(piece, dim=1):
        if part.shape[1]:
            _, before = model.features(part, before)
    return model(tokens_1L[:, -1:], before)


@torch.inference_mode()
def draw(
    decoder: Decoder | OrdinaryDecoder,
    scores_11V: torch.Tensor,
    choose: Callable[[torch.Tensor], int | torch.Tensor],
    allowed: torch.Tensor,
) -> Iterator[int]:
    """Yield tokens without end, the first from ``scores``; a token is read when the next is asked for.

    ``choose`` draws from scores (V,).  allowed: (V,) bool, tokens that may be drawn.
    Raises ``ValueError`` for scores that are not finite.
    """
    device = scores_11V.device
    while True:
        scores_V = scores_11V[0, 0].float().cpu()
        if not scores_V.isfinite().all():
            raise ValueError("the scores of the model are not finite, so no token can be drawn")
        scores_V = scores_V.masked_fill(~allowed, float("-inf"))
        token = int(choose(scores_V))
        yield token
        scores_11V = decoder(torch.tensor([[token]], dtype=torch.int64, device=device))


def text_tokens(tokenizer: Tokenizer, vocab_size: int) -> torch.Tensor:
    """Return (V,) bool: the tokens that stand for text or end a document."""
    allowed = torch.zeros(vocab_size, dtype=torch.bool)
    allowed[[*tokenizer.text_tokens(), tokenizer.eos]] = True
    return allowed


def until_end(tokens: Iterator[int], tokenizer: Tokenizer, past_end: bool = False) -> Iterator[int]:
    """Yield ``tokens`` up to the end of the document, if the end token of the tokenizer marks it.

    past_end: leave out the end tokens and continue with the next document.
    """
    for token in tokens:
        if token == tokenizer.eos and tokenizer.ends_document:
            if not past_end:
                return
            continue
        yield token
