"""The progress bar of everything that prepares data."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress_bar(
    items: Iterable[T] | None = None,
    *,
    total: int,
    label: str,
    unit: str = "item",
    scale: bool = False,
    hidden: bool = False,
) -> "tqdm[T]":
    """A bar on standard error over ``items``, or to be moved by ``update``.

    ``scale`` writes large numbers as 12.3M.  Where standard error is a file it gets a line now and then
    rather than ten a second.
    """
    interval = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(
        items,
        total=total,
        desc=label,
        unit=f" {unit}",
        unit_scale=scale,
        mininterval=interval,
        dynamic_ncols=True,
        disable=hidden,
    )
