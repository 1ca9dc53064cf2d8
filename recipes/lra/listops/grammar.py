"""The ListOps language: symbols, reading one expression, and its value.

Source: Nangia and Bowman, arXiv 1804.06028, in the variant of Long Range Arena (arXiv 2011.04006).
An expression is a digit or ``[OP argument argument ... ]``; the operators are minimum, maximum, median
(truncated to an integer) and sum modulo 10.  The released files add parentheses that make the tree
binary; they carry no information and every published model drops them, which leaves 15 symbols.
"""

from collections.abc import Sequence

DIGITS = tuple(str(digit) for digit in range(10))
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
CLOSE = "]"
PAD, END = "<pad>", "</s>"

# The order is part of the prepared format and of every trained embedding: append only.
VOCABULARY = (PAD, END, *DIGITS, *OPERATORS, CLOSE)
TOKEN_OF = {symbol: token for token, symbol in enumerate(VOCABULARY)}
PADDING_TOKEN, END_TOKEN = TOKEN_OF[PAD], TOKEN_OF[END]

_FIRST_DIGIT, _FIRST_OPERATOR, _CLOSE = TOKEN_OF["0"], TOKEN_OF[OPERATORS[0]], TOKEN_OF[CLOSE]
_TOKEN_OF_SOURCE = {symbol: TOKEN_OF[symbol] for symbol in (*DIGITS, *OPERATORS, CLOSE)}
_DROP_PARENTHESES = str.maketrans("()", "  ")


def tokenize(source: str) -> list[int]:
    """Turn an expression, with or without parentheses, into tokens of ``VOCABULARY`` (no end token).

    Raises ``ValueError`` naming the symbol that is not of the language, or the count of parentheses
    that do not match.
    """
    opened, closed = source.count("("), source.count(")")
    if opened != closed:
        raise ValueError(
            f"is unbalanced: it has {opened} '(' but {closed} ')', as in a file cut short"
        )
    symbols = source.translate(_DROP_PARENTHESES).split()
    try:
        return [_TOKEN_OF_SOURCE[symbol] for symbol in symbols]
    except KeyError as error:
        symbol = error.args[0]
        raise ValueError(
            f"has the symbol {symbol[:40]!r} at place {symbols.index(symbol) + 1}; the symbols are "
            f"0-9 {' '.join(OPERATORS)} {CLOSE} and parentheses, with spaces between them"
        ) from None


def evaluate(tokens: Sequence[int]) -> int:
    """Compute the value, 0 to 9, of one complete expression given as tokens (no end token).

    Raises ``ValueError`` where the tokens are not exactly one complete expression.
    """
    stack: list[tuple[int, list[int]]] = []
    operator, arguments = -1, []
    for place, token in enumerate(tokens, start=1):
        if token == _CLOSE:
            if not stack or not arguments:
                what = "closes an operator without arguments" if stack else "closes nothing"
                raise ValueError(f"is unbalanced: the ']' at place {place} {what}")
            value = apply_operator(operator, arguments)
            operator, arguments = stack.pop()
            arguments.append(value)
        elif token >= _FIRST_OPERATOR:
            stack.append((operator, arguments))
            operator, arguments = token - _FIRST_OPERATOR, []
        else:
            arguments.append(token - _FIRST_DIGIT)
    if stack:
        raise ValueError(f"is unbalanced: {len(stack)} of its operators lack the closing ']'")
    if len(arguments) != 1:
        raise ValueError(f"holds {len(arguments)} complete expressions, expected one")
    return arguments[0]


def apply_operator(operator: int, arguments: list[int]) -> int:
    """Apply the operator with this index in ``OPERATORS`` to one or more digits."""
    if operator == 0:
        return min(arguments)
    if operator == 1:
        return max(arguments)
    if operator == 3:
        return sum(arguments) % 10
    ordered, count = sorted(arguments), len(arguments)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) // 2
