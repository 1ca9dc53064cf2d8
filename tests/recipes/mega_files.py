"""Small folders as Mega's processed files have them, written by fairseq's own preprocessing."""

import logging
from pathlib import Path

from fairseq.options import get_preprocessing_parser
from fairseq_cli import preprocess

SPLITS = ("train", "valid", "test")
Lines = dict[str, list[str]]


def write_lines(folder: Path, name: str, lines: Lines, *options: str) -> None:
    """Binarise ``{split: lines of symbols}`` into ``folder``/``name`` as ``fairseq-preprocess`` does."""
    raw = folder.with_name(f"{folder.name}.raw")
    raw.mkdir(parents=True, exist_ok=True)
    words = ["--only-source", "--destdir", str(folder / name), *options]
    for split in SPLITS:
        path = raw / f"{name}.{split}"
        path.write_text("".join(f"{line}\n" for line in lines[split]))
        words += [f"--{split}pref", str(path)]
    handlers = logging.getLogger("fairseq_cli.preprocess").handlers
    before = list(handlers)
    preprocess.main(get_preprocessing_parser().parse_args(words))
    for handler in [handler for handler in handlers if handler not in before]:
        handlers.remove(handler)
        handler.close()


def write_task(folder: Path, sources: Lines, labels: Lines, second: Lines | None = None) -> Path:
    """A whole task: ``src-bin``, ``label-bin``, and ``src1-bin`` for pairs, with one dictionary."""
    write_lines(folder, "src-bin", sources)
    write_lines(folder, "label-bin", labels)
    if second is not None:
        write_lines(folder, "src1-bin", second, "--srcdict", str(folder / "src-bin" / "dict.txt"))
    return folder
