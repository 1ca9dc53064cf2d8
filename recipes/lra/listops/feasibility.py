"""Compute how often a random ListOps expression has an accepted length, and how many there are.

Both follow from the generating function of lengths.  With c(x) that of a node one level deeper, a node's
is ``digit * x + operator * x^2 * (c(x)^2 + ... + c(x)^max_args)``, where (digit, operator) are the
probabilities 0.75 and 0.25 / (max_args - 1), or the numbers of choices 10 and 4.
"""

from collections.abc import Callable

import numpy as np

from megalodon_tasks.recipes.lra.listops.grammar import DIGITS, OPERATORS
from megalodon_tasks.recipes.lra.listops.sampling import MIN_ARGS, OPERATOR_PROBABILITY, Grammar

# An expression of this length has more than 20 digits, so more than 10^20 distinct siblings.
_COUNTED_LENGTH = 64
_MANY = 1e18
_NOISE = 1e-12
RAREST = 1e-6


def check_feasible(grammar: Grammar, count: int) -> float:
    """Return the probability that a random expression is accepted.

    Raises ``ValueError`` if no expression can be, if they are too rare to be found by drawing, or if
    fewer than ``count`` distinct ones exist.
    """
    grammar.validate()
    lengths = length_probabilities(grammar)
    accepted = float(lengths[grammar.min_length + 1 :].sum())
    where = (
        f"min_length={grammar.min_length}, max_length={grammar.max_length}, "
        f"max_depth={grammar.max_depth}, max_args={grammar.max_args}"
    )
    if accepted < RAREST:
        rarity = "none" if accepted < _NOISE else f"about one in {1 / accepted:.1e}"
        raise ValueError(
            f"{rarity} of the random expressions has a length in the range of {where}; "
            "widen the range of lengths, or raise max_depth and max_args"
        )
    available = count_distinct(grammar, lengths)
    if available < count:
        raise ValueError(
            f"only {available:.0f} distinct expressions exist for {where}, but {count} are "
            "needed; ask for fewer or allow longer ones"
        )
    return accepted


def length_probabilities(grammar: Grammar) -> np.ndarray:
    """Compute the probability of each length 0 ... max_length - 1 of one random expression, float64."""
    size = grammar.max_length
    per_count = OPERATOR_PROBABILITY / (grammar.max_args - MIN_ARGS + 1)
    digit = np.zeros(size)
    digit[1] = 1.0
    node = digit
    for _ in range(grammar.max_depth - 1):
        deeper = (1 - OPERATOR_PROBABILITY) * digit
        deeper[2:] += per_count * _arguments(node, grammar.max_args, _fast_product)[: size - 2]
        if np.array_equal(deeper, node):
            break
        node = deeper
    return np.where(node > _NOISE * 1e-3, node, 0.0)


def count_distinct(grammar: Grammar, probabilities: np.ndarray) -> float:
    """Count the distinct expressions of an accepted length; ``_MANY`` stands for that or more."""
    if probabilities[max(grammar.min_length, _COUNTED_LENGTH) + 1 :].sum() > _NOISE:
        return _MANY
    size = min(grammar.max_length, _COUNTED_LENGTH + 1)
    digit = np.zeros(size)
    digit[1] = len(DIGITS)
    node = digit
    for _ in range(grammar.max_depth - 1):
        deeper = digit.copy()
        deeper[2:] += (
            len(OPERATORS) * _arguments(node, grammar.max_args, _capped_product)[: size - 2]
        )
        node = np.minimum(deeper, _MANY)
    return float(min(node[grammar.min_length + 1 :].sum(), _MANY))


def _arguments(
    node: np.ndarray, max_args: int, product: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """``node^2 + ... + node^max_args``, cut to the length of ``node``, by Horner's rule."""
    one = np.zeros_like(node)
    one[0] = 1.0
    total = one
    # An argument is at least 1 long, so more than len(node) of them do not fit.
    for _ in range(min(max_args, len(node)) - MIN_ARGS):
        total = one + product(node, total)
    return product(node, product(node, total))


def _fast_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    size = 2 * len(a)
    product = np.fft.irfft(np.fft.rfft(a, size) * np.fft.rfft(b, size), size)
    return np.maximum(product[: len(a)], 0.0)


def _capped_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.minimum(np.convolve(a, b)[: len(a)], _MANY)
