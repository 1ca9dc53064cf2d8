"""How every patch in this package replaces a function of fairseq."""

import functools
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

TRAINING_FILE = os.path.join("fairseq_cli", "train.py")


def wrap(owner: object, name: str, around: Callable[..., Any]) -> None:
    """Let ``owner.name(...)`` return ``around(original, ...)``; repeating the call does nothing.

    The original stays reachable as ``owner.name.__wrapped__``.  One that a class inherits is replaced
    for that class only.
    """
    attribute = vars(owner).get(name) if isinstance(owner, type) else None
    bound = isinstance(attribute, (staticmethod, classmethod))
    original: Any = attribute.__func__ if bound else getattr(owner, name)
    patches = getattr(original, "patched_by", ())
    patch = f"{around.__module__}.{around.__qualname__}"
    if patch in patches:
        return

    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    function: Any = patched
    function.patched_by = (*patches, patch)
    setattr(owner, name, type(attribute)(function) if bound else function)


def training_modules() -> list[ModuleType]:
    """Return fairseq's module for training, where it is loaded; ``python -m`` makes it ``__main__``.

    It is not imported, because that would configure logging.
    """
    loaded = (sys.modules.get(name) for name in ("fairseq_cli.train", "__main__", "__mp_main__"))
    return [m for m in loaded if m and str(getattr(m, "__file__", "")).endswith(TRAINING_FILE)]
