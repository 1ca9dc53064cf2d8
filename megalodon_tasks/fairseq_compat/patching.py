"""How every patch in this package replaces a function of fairseq."""

import functools
from collections.abc import Callable
from typing import Any


def replace(owner: object, name: str, build: Callable[[Callable], Callable]) -> None:
    """Replace the function ``owner.name`` by ``build(original)``; repeating the call does nothing.

    The original stays reachable as ``owner.name.__wrapped__``.
    """
    original = getattr(owner, name)
    builders = getattr(original, "patched_by", ())
    builder = f"{build.__module__}.{build.__qualname__}"
    if builder in builders:
        return
    patched: Any = functools.wraps(original)(build(original))
    patched.patched_by = (*builders, builder)
    is_static = isinstance(owner, type) and isinstance(vars(owner)[name], staticmethod)
    setattr(owner, name, staticmethod(patched) if is_static else patched)
