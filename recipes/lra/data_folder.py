"""What the benchmarks whose data can be generated say and ask about that."""

import argparse
from collections.abc import Iterable
from typing import Any


def generator_options(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return those of the generator's options ``names`` that were given.

    Raises ``ValueError`` where there are some without ``--generate``.
    """
    given = {n: v for n in names if (v := getattr(options, n)) is not None}
    if given and not options.generate:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{words}: an option of synthetic data, which needs --generate")
    return given


#: What to do where there is no data, for benchmarks whose data can be generated.
OR_GENERATE = (
    "or make synthetic data with --generate (results on it do not compare with published ones)"
)
