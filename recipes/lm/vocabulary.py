"""The vocabulary of a prepared folder."""

from pathlib import Path

from fairseq.data import Dictionary


def load_dictionary(data: str | None) -> Dictionary:
    """Read ``dict.txt`` of the folder ``data``; raise ``ValueError`` where there is none."""
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
