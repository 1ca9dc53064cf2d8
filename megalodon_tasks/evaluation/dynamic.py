"""Adapt a language model to the text that it reads: dynamic evaluation.

After each piece of the text the weights take one step against the gradient of the mean loss on it, and
decay back to their trained values.  Each token is predicted before any weight has seen it.

Source: Krause et al., arXiv 1904.08378, with the update rules of arXiv 1709.07432.  With g the gradient
on a piece, and r the root mean square of the gradients on pieces of the training split::

    SGD:  w <- w - rate * g + decay * (trained - w)
    RMS:  w <- w - rate * g / (r + epsilon) + min(1, decay * r / mean(r)) * (trained - w)

The mean of r is over all weights of the model.  The authors' code for Transformers has the root of the
*sum* of the squares in place of r, so its rates are larger by the root of the number of pieces.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megalodon_tasks.data.corpus import CorpusSplit
from megalodon_tasks.data.preparing import progress_bar
from megalodon_tasks.evaluation.long_context import Position, counted_from, read_document
from megalodon_tasks.files import atomic_file
from megalodon_tasks.models.language_model import LanguageModel
from megalodon_tasks.models.state import StackState, detach_state

PIECE = 128  # tokens per step, as in the paper
STATISTICS_TOKENS = 1 << 17


@dataclass(frozen=True)
class Rule:
    """How weights move after a piece; see the equations of this file."""

    rate: float
    decay: float = 0.0
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ValueError(f"--dynamic {self.rate}: the learning rate must be above 0 and finite")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"--decay {self.decay} must be between 0 and 1")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"--epsilon {self.epsilon} must be above 0 and finite")


def trainable(model: LanguageModel) -> list[torch.nn.Parameter]:
    """Return the weights that dynamic evaluation moves."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def nll_and_gradients(
    model: LanguageModel,
    tokens_BL: torch.Tensor,
    targets_BL: torch.Tensor,
    state: StackState | None,
) -> tuple[torch.Tensor, StackState, Sequence[torch.Tensor]]:
    """Return what ``model.nll`` returns, without its graph, and the gradients of the mean.

    The gradients are those of the weights that :func:`trainable` lists, on this piece only: ``state``
    carries none.
    """
    with torch.enable_grad():
        nll_BL, state = model.nll(tokens_BL, targets_BL, state)
        gradients = torch.autograd.grad(nll_BL.mean(), trainable(model), materialize_grads=True)
    return nll_BL.detach(), detach_state(state), gradients


class Adaptation:
    """Move the weights of ``model`` by ``rule`` after each piece that :meth:`nll` reads.

    rms: for each weight that is trained, the root mean square of its gradients, for the RMS rule; None
    for SGD.
    """

    def __init__(
        self, model: LanguageModel, rule: Rule, rms: list[torch.Tensor] | None = None
    ) -> None:
        self._model, self._weights, self._rate = model, trainable(model), rule.rate
        self._trained = [weight.detach().clone() for weight in self._weights]
        if rms is None:
            self._rates = [rule.rate] * len(self._weights)
            self._decays = [rule.decay] * len(self._weights)
        else:
            mean = sum(r.sum() for r in rms) / sum(r.numel() for r in rms)
            self._rates = [rule.rate / (r + rule.epsilon) for r in rms]
            self._decays = [(rule.decay * r / mean).clamp(max=1) for r in rms]

    def nll(
        self, tokens_BL: torch.Tensor, targets_BL: torch.Tensor, state: StackState | None
    ) -> tuple[torch.Tensor, StackState]:
        """Return the negative log-likelihoods (B, L) in nats before the step, and the state.

        Raises ``ValueError`` once they are not finite.
        """
        nll_BL, state, gradients = nll_and_gradients(self._model, tokens_BL, targets_BL, state)
        if not nll_BL.isfinite().all():
            raise ValueError(
                f"--dynamic {self._rate}: the weights have diverged, the loss is no longer finite; "
                "choose a lower learning rate"
            )
        moves = zip(self._weights, gradients, self._trained, self._rates, self._decays, strict=True)
        with torch.no_grad():
            for weight, gradient, trained, rate, decay in moves:
                weight += decay * (trained - weight) - rate * gradient
        return nll_BL, state

    @property
    def weights(self) -> list[torch.Tensor]:
        """The adapted weights, to be saved."""
        return [weight.detach() for weight in self._weights]

    @torch.no_grad()
    def restore(self, weights: list[torch.Tensor]) -> None:
        """Continue from weights that were saved."""
        for weight, saved in zip(self._weights, weights, strict=True):
            weight.copy_(saved)


def gradient_rms(
    model: LanguageModel, split: CorpusSplit, piece: int, end_token: int, tokens: int
) -> list[torch.Tensor]:
    """Return the root mean square of the gradients on pieces of ``split``, one tensor per weight.

    Reads the first ``tokens`` tokens, each document from the empty state.  No weight is changed.
    """
    sums, pieces = [torch.zeros_like(weight) for weight in trainable(model)], 0

    def score(
        tokens_BL: torch.Tensor, targets_BL: torch.Tensor, state: StackState | None
    ) -> tuple[torch.Tensor, StackState]:
        nonlocal pieces
        nll_BL, state, gradients = nll_and_gradients(model, tokens_BL, targets_BL, state)
        pieces += 1
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient.square()
        return nll_BL, state

    limit = min(tokens, split.info.tokens)
    bar = progress_bar(total=limit, label="gradient statistics", unit="token", scale=True)
    with bar:
        for start, stop in itertools.pairwise(split.offsets.tolist()):
            read, length = counted_from(start, split.tokens), min(stop, limit) - start
            steps = read_document(model, read, length, piece, end_token, Position(), score)
            for _, nll_L, _ in steps:
                bar.update(len(nll_L))
    return [(total / pieces).sqrt() for total in sums]


def saved_statistics(
    path: Path, identity: str, device: torch.device, measure: Callable[[], list[torch.Tensor]]
) -> list[torch.Tensor]:
    """Read gradient statistics from ``path``; if there is no such file, measure and write them.

    Raises ``ValueError`` for a file that is damaged or was written for another ``identity``.
    """
    if not path.exists():
        rms = measure()
        with atomic_file(path) as stream:
            torch.save({"identity": identity, "rms": rms}, stream)
        return rms
    try:
        saved = torch.load(path, weights_only=True, map_location=device)
        same, rms = saved["identity"] == identity, saved["rms"]
    except Exception as error:  # whatever a file of another kind raises
        raise ValueError(
            f"--gradient-statistics {path} is damaged or no file of gradient statistics "
            f"({type(error).__name__}); name a file that is not there yet"
        ) from None
    if not same:
        raise ValueError(
            f"--gradient-statistics {path} holds those of another checkpoint, data, --piece, "
            "--chunk-size or --statistics-tokens; name a file that is not there yet"
        )
    return rms
