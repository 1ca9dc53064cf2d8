"""Sample random ListOps expressions, many at a time, level by level.

The definition (Long Range Arena, variant of arXiv 2011.04006): a node at depth k, the root at depth 1,
is an operator with probability 0.25 if k < max_depth and else a digit; an operator has 2 to max_args
arguments, uniformly; digits and operators are uniform; an expression is accepted if its length, counted
without parentheses (a digit 1, an operator 2 and its arguments), lies strictly between two bounds.

Nodes are drawn independently of each other, so they may be drawn in any order.  Here all nodes of one
depth in a batch of candidates are drawn at once, candidates that have grown too long are dropped as soon
as they have (lengths only grow); what remains is exactly what rejection of whole trees would leave.

Arrays of one depth hold its nodes in the order of the trees and, inside a tree, of the siblings, so the
children of one operator are neighbours in the next depth's arrays.
"""

from dataclasses import dataclass

import numpy as np

from megalodon_tasks.recipes.lra.listops.grammar import DIGITS, OPERATORS

OPERATOR_PROBABILITY = 0.25
MIN_ARGS = 2
CLOSE_CODE = len(DIGITS)


@dataclass(frozen=True)
class Grammar:
    """Which expressions are generated; both length bounds are exclusive, as in the original."""

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_args: int = 10

    def validate(self) -> None:
        """Raise ``ValueError`` for bounds that no expression can meet."""
        if self.max_depth < 1:
            raise ValueError(f"max_depth={self.max_depth} must be at least 1")
        if self.max_args < MIN_ARGS:
            raise ValueError(f"max_args={self.max_args} must be at least {MIN_ARGS}")
        if self.min_length < 0 or self.max_length - self.min_length < 2:
            raise ValueError(
                f"no length lies between min_length={self.min_length} and "
                f"max_length={self.max_length}; both are exclusive, so choose 0 <= min_length "
                "and max_length >= min_length + 2"
            )


@dataclass
class Level:
    """The nodes of one depth: tree that each belongs to, and its number of arguments (digit: 0)."""

    tree: np.ndarray
    args: np.ndarray

    def select(self, keep_tree: np.ndarray) -> "Level":
        """Keep the nodes of the trees marked in ``keep_tree``."""
        keep = keep_tree[self.tree]
        return Level(self.tree[keep], self.args[keep])


@dataclass(frozen=True)
class Expressions:
    """Sampled expressions: codes of all of them in a row, where each begins, and their values.

    A code is a digit 0-9, ``CLOSE_CODE``, or ``operator_code(operator, args)``.
    """

    codes: np.ndarray
    starts: np.ndarray
    values: np.ndarray


def operator_code(operator: int | np.ndarray, args: int | np.ndarray) -> int | np.ndarray:
    """Return the code of the operator with this index in ``OPERATORS`` and this number of arguments."""
    return CLOSE_CODE + 1 + operator + len(OPERATORS) * args


def sample_expressions(rng: np.random.Generator, candidates: int, grammar: Grammar) -> Expressions:
    """Draw ``candidates`` random trees and return those whose length the grammar accepts."""
    levels, accepted = _grow(rng, candidates, grammar)
    number = np.cumsum(accepted) - 1
    levels = [level.select(accepted) for level in levels]
    for level in levels:
        level.tree = number[level.tree]
    levels = [level for level in levels if len(level.tree)]
    return _write_out(rng, levels)


def _grow(
    rng: np.random.Generator, candidates: int, grammar: Grammar
) -> tuple[list[Level], np.ndarray]:
    """Draw the shapes, depth by depth; return the levels and which trees have a right length."""
    levels: list[Level] = []
    length = np.zeros(candidates, dtype=np.int64)
    alive = np.ones(candidates, dtype=bool)
    tree = np.arange(candidates)
    for depth in range(1, grammar.max_depth + 1):
        args = np.zeros(len(tree), dtype=np.int64)
        if depth < grammar.max_depth:
            operators = np.flatnonzero(rng.random(len(tree)) < OPERATOR_PROBABILITY)
            args[operators] = rng.integers(MIN_ARGS, grammar.max_args + 1, len(operators))
        # A node adds itself and, for an operator, its bracket; its children are sure to come.
        length += np.bincount(tree, weights=1 + (args > 0), minlength=candidates).astype(np.int64)
        coming = np.bincount(tree, weights=args, minlength=candidates)
        alive &= length + coming < grammar.max_length
        level = Level(tree, args).select(alive)
        levels.append(level)
        tree = np.repeat(level.tree, level.args)
        if not len(tree):
            break
    return levels, alive & (length > grammar.min_length)


def _write_out(rng: np.random.Generator, levels: list[Level]) -> Expressions:
    """Fill shapes with digits and operators; compute every node's length, place and value."""
    if not levels:
        empty = np.zeros(0, dtype=np.int64)
        return Expressions(empty.astype(np.uint16), empty, empty)
    symbols = [
        np.where(
            level.args > 0,
            rng.integers(len(OPERATORS), size=len(level.args)),
            rng.integers(len(DIGITS), size=len(level.args)),
        )
        for level in levels
    ]
    lengths, values = _lengths_and_values(levels, symbols)
    starts = np.cumsum(lengths[0]) - lengths[0]
    codes = np.empty(int(lengths[0].sum()), dtype=np.uint16)
    places = starts
    for depth, level in enumerate(levels):
        is_operator = level.args > 0
        codes[places] = np.where(
            is_operator, operator_code(symbols[depth], level.args), symbols[depth]
        )
        codes[(places + lengths[depth] - 1)[is_operator]] = CLOSE_CODE
        if depth + 1 < len(levels):
            places = _child_places(places, level.args, lengths[depth + 1])
    return Expressions(codes, starts, values[0])


def _lengths_and_values(
    levels: list[Level], symbols: list[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Compute length and value of the expression below every node, from the leaves up."""
    lengths = [np.ones(len(level.args), dtype=np.int64) for level in levels]
    values = [symbol.copy() for symbol in symbols]
    for depth in range(len(levels) - 2, -1, -1):
        args = levels[depth].args
        operators = np.flatnonzero(args)
        counts = args[operators]
        first = np.cumsum(counts) - counts
        lengths[depth][operators] = 2 + np.add.reduceat(lengths[depth + 1], first)
        values[depth][operators] = _apply_operators(
            symbols[depth][operators], values[depth + 1], first, counts
        )
    return lengths, values


def _apply_operators(
    operators: np.ndarray, digits: np.ndarray, first: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Apply each operator to its run of ``counts`` digits that begins at ``first``."""
    # Sorting by run and digit at once leaves every run in place, with its digits in order.
    run = np.repeat(np.arange(len(counts)), counts)
    ordered = np.sort(run * 16 + digits) & 15
    low, high = ordered[first + (counts - 1) // 2], ordered[first + counts // 2]
    results = (
        ordered[first],
        ordered[first + counts - 1],
        (low + high) // 2,
        np.add.reduceat(digits, first) % 10,
    )
    return np.choose(operators, results)


def _child_places(places: np.ndarray, args: np.ndarray, child_lengths: np.ndarray) -> np.ndarray:
    """Return where each child begins: after its parent's symbol and its elder siblings."""
    operators = np.flatnonzero(args)
    counts = args[operators]
    first = np.cumsum(counts) - counts
    before = np.cumsum(child_lengths) - child_lengths
    return before + np.repeat(places[operators] + 1 - before[first], counts)
