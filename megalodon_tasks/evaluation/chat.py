"""Hold a conversation with a language model: what was read is never read again."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from megalodon_tasks.data.tokenizers import Tokenizer
from megalodon_tasks.evaluation.sampling import draw, read, text_tokens
from megalodon_tasks.models.decoding import decoder_for
from megalodon_tasks.models.language_model import LanguageModel
from megalodon_tasks.models.state import StackState


class Chat:
    """A model with the state after all turns so far.

    choose: draws a token from scores (V,).  most: tokens of an answer, its end token
    included.  piece: tokens of a prompt that are read at a time.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        choose: Callable[[torch.Tensor], int | torch.Tensor],
        most: int,
        piece: int,
    ) -> None:
        self._model, self._choose, self._most, self._piece = model, choose, most, piece
        self._allowed_V = text_tokens(tokenizer, model.vocab_size)
        self._eos = tokenizer.eos
        self._state: StackState | None = None
        self._unread = [self._eos]  # a document starts after the end token, as in training
        #: Whether the last answer ended by itself.
        self.ended = False

    def answer(self, prompt: np.ndarray) -> Iterator[int]:
        """Yield the tokens of the answer to ``prompt``, (tokens,) int64, without its end token.

        A turn counts when its answer is complete; one that is not read to its end has not been.
        Raises ``ValueError`` for scores that are not finite.
        """
        tokens_L = torch.tensor([*self._unread, *prompt.tolist()], dtype=torch.int64)
        scores_11V, state = read(self._model, tokens_L, self._state, self._piece)
        decoder = decoder_for(self._model, state)
        drawn = draw(decoder, scores_11V, self._choose, self._allowed_V)
        unread: list[int] = []
        for token in itertools.islice(drawn, self._most):
            self.ended = token == self._eos
            unread = [] if self.ended else [token]
            if self.ended:
                break
            yield token
        self._state, self._unread = decoder.state(), [*unread, self._eos]
