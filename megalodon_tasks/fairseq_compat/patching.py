"""How every mend in this package replaces a function of fairseq."""

import functools
from collections.abc import Callable


def replace(owner: object, name: str, build: Callable[[Callable], Callable]) -> None:
    """Replace the function ``owner.name`` by ``build(original)``; a second call does nothing.

    The original stays reachable as ``owner.name.__wrapped__``.
    """
    original = getattr(owner, name)
    if getattr(original, "mended_by_megalodon_tasks", False):
        return
    mended = functools.wraps(original)(build(original))
    mended.mended_by_megalodon_tasks = True
    is_static = isinstance(owner, type) and isinstance(vars(owner)[name], staticmethod)
    setattr(owner, name, staticmethod(mended) if is_static else mended)
