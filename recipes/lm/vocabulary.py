"""The vocabulary of a prepared folder, and whether a checkpoint was trained with the same."""

import hashlib
from pathlib import Path

from fairseq.data import Dictionary
from omegaconf import DictConfig


def load_dictionary(data: str | None) -> Dictionary:
    """Read ``dict.txt`` of the folder ``data``.  Raises ``ValueError`` where there is none."""
    if not data:
        raise ValueError(
            f"task.data={data!r} names no folder; give the one that fairseq-preprocess wrote"
        )
    path = Path(data).absolute() / "dict.txt"
    if not path.parent.is_dir():
        raise ValueError(f"task.data: the folder {path.parent} does not exist")
    if not path.is_file():
        raise ValueError(
            f"task.data: {path.parent} has no dict.txt; it must be a folder that "
            "fairseq-preprocess --only-source wrote"
        )
    return Dictionary.load(str(path))


def digest(dictionary: Dictionary) -> str:
    """``<symbols>:<digest of all symbols in their order>``: equal for equal vocabularies alone."""
    symbols = "\n".join(dictionary.symbols).encode("utf-8", "surrogatepass")
    return f"{len(dictionary)}:{hashlib.sha256(symbols).hexdigest()[:16]}"


def check_vocabulary(model: DictConfig, dictionary: Dictionary) -> None:
    """Write the vocabulary into the settings of a new model; compare it with those of a trained one.

    Raises ``ValueError`` where they differ: the numbers of the tokens would mean other words.
    """
    known = getattr(model, "vocabulary", None)
    if not hasattr(model, "vocabulary"):
        return  # a model of someone else's
    found = digest(dictionary)
    if known is None:
        model.vocabulary = found
    elif known != found:
        theirs, ours = known.split(":")[0], len(dictionary)
        differ = (
            f"{theirs} symbols" if theirs != str(ours) else f"the same number, {ours}, but others"
        )
        raise ValueError(
            f"the vocabulary of the checkpoint has {differ}; that of the data has {ours} symbols. "
            "Prepare the data with the dict.txt that the model was trained with "
            "(fairseq-preprocess --srcdict)"
        )
