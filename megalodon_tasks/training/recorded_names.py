"""Record in a checkpoint which symbols and classes the numbers in the data stand for.

Other data, in which the same numbers mean something else, has the right shapes: a model would be
evaluated on it without an error and with a wrong result.
"""

import hashlib
from collections.abc import Sequence

from omegaconf import DictConfig


def digest(names: Sequence[str]) -> str:
    """Return ``<count>:<digest of all names in their order>``, which differs if the lists differ."""
    joined = "\n".join(names).encode("utf-8", "surrogatepass")
    return f"{len(names)}:{hashlib.sha256(joined).hexdigest()[:16]}"


def check_recorded(model: DictConfig, kind: str, names: Sequence[str], remedy: str) -> None:
    """Write ``names`` into the settings of a new model; compare them with those of a trained one.

    kind: the field of the settings, ``vocabulary`` or ``classes``.  Nothing happens for a model of
    another project, which has no such field.  Raises ``ValueError`` where the names differ.
    """
    if not hasattr(model, kind):
        return
    known, found = getattr(model, kind), digest(names)
    if known is None:
        setattr(model, kind, found)
    elif known != found:
        raise ValueError(
            f"model.{kind}: the checkpoint was trained with {known}, the data has {found} (how many "
            f"names, and a digest of them in their order): the same numbers mean other things. {remedy}"
        )
