"""Continue several texts at once, each up to a stop of its own.  Legend: B batch, V vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from megalodon_tasks.data.tokenizers import Tokenizer
from megalodon_tasks.evaluation.sampling import Choice, text_tokens
from megalodon_tasks.models.decoding import decoder_for
from megalodon_tasks.models.language_model import LanguageModel
from megalodon_tasks.models.state import StackState


@dataclass
class Continuation:
    """A text that grows: up to one of ``stops``, which it does not include, or ``most`` tokens.

    generator: what random choices are drawn from.
    """

    choice: Choice
    stops: Sequence[str]
    most: int
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finished: bool = False

    def add(self, scores_V: torch.Tensor, tokenizer: Tokenizer) -> None:
        """Draw a token, and note whether the text ends with it."""
        token = self.choice.draw(scores_V, self.generator)
        ended = token == tokenizer.eos and tokenizer.ends_document
        if not ended:
            self.tokens.append(token)
        # A stop of so many characters lies within so many tokens, since one has at least a byte.
        near = self.tokens[-4 * max(map(len, self.stops), default=0) - 8 :]
        tail = "".join(tokenizer.stream(near))
        full = ended or len(self.tokens) >= self.most
        if full or any(stop in tail for stop in self.stops):
            self.text = "".join(tokenizer.stream(self.tokens))
            found = [self.text.find(stop) for stop in self.stops if stop in self.text]
            self.finished = full or bool(found)
            self.text = self.text[: min(found, default=len(self.text))]


@torch.no_grad()
def continue_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    last_tokens: Sequence[int],
    state: StackState | None,
    texts: Sequence[Continuation],
) -> None:
    """Continue each of ``texts``, until all are finished.

    last_tokens: the last token of what stands before each text.  state: that before these tokens.
    Tokens are drawn as :func:`megalodon_tasks.evaluation.sampling.generate` draws them.
    Raises ``ValueError`` for scores that are not finite.
    """
    device = next(model.parameters()).device
    allowed_V = text_tokens(tokenizer, model.vocab_size)
    tokens_B1 = torch.tensor(last_tokens, dtype=torch.int64)[:, None]
    scores_B1V, state = model(tokens_B1.to(device), state)
    decoder, growing = decoder_for(model, state), list(texts)
    while True:
        scores_BV = scores_B1V[:, 0].float().cpu()
        if not scores_BV.isfinite().all():
            raise ValueError("the scores of the model are not finite, so no token can be drawn")
        for text, scores_V in zip(
            growing, scores_BV.masked_fill(~allowed_V, -torch.inf), strict=True
        ):
            text.add(scores_V, tokenizer)
        stay = [row for row, text in enumerate(growing) if not text.finished]
        if not stay:
            return
        if len(stay) < len(growing):
            decoder.reorder(torch.tensor(stay, dtype=torch.int64, device=device))
            growing = [growing[row] for row in stay]
        tokens_B1 = torch.tensor([[text.tokens[-1]] for text in growing], dtype=torch.int64)
        scores_B1V = decoder(tokens_B1.to(device))
