"""Prepare ListOps: from the released text files to memory-mapped tokens.

    python -m megalodon_tasks.recipes.lra.prepare_listops SOURCE OUT

SOURCE is the folder with ``basic_{train,val,test}.tsv`` (or one above it, as the LRA release has it),
OUT the data folder of the task ``lra_text``; it may be the same folder.

Tokenisation is that of the official code and of S4: parentheses dropped, one symbol per operator, digit
and closing bracket (15 in all).  As in S4 and Mega an end token follows every expression, so that
lengths are 502 to 2000; with padding the vocabulary has 17 tokens (S4 also reserves one for unknown
symbols, which here are an error).
"""

import argparse
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megalodon_tasks.data.progress import progress_bar
from megalodon_tasks.data.storage import (
    ColumnSpec,
    DatasetSpec,
    PreparedDataset,
    is_prepared,
    sha256_of,
)
from megalodon_tasks.data.storage_writer import SplitWriter, write_dataset
from megalodon_tasks.recipes.lra.listops import CLASSES, RELEASED_COUNTS, find_files, read_rows
from megalodon_tasks.recipes.lra.listops_grammar import END_TOKEN, VOCABULARY

BENCHMARK = "listops"
# What the prepared form depends on beside the files; a change makes older ones be prepared again.
_SETTINGS = {"end_token": True, "parentheses": False}


def prepare(source: Path, out: Path, *, hidden: bool = False) -> bool:
    """Check and prepare ListOps; return False if ``out`` already holds it, made from the same files.

    ``hidden`` hides the progress bar.  Raises ``ValueError`` for bad files (see ``listops.read_rows``),
    and leaves ``out`` as it was then.
    """
    files = find_files(source)
    if _is_current(files, out):
        return False
    spec = DatasetSpec(
        benchmark=BENCHMARK,
        kind="tokens",
        columns={"inputs": ColumnSpec("uint8")},
        classes=CLASSES,
        vocabulary=VOCABULARY,
        source={"settings": _SETTINGS, "files": {}},
    )
    total = sum(path.stat().st_size for path in files.values())
    bar = progress_bar(total=total, label="checking ListOps", unit="B", scale=True, hidden=hidden)
    with bar, write_dataset(out, spec) as writer:
        for split, path in files.items():
            with writer.split(split) as items:
                spec.source["files"][split] = _copy(path, items, bar)
    return True


def _copy(path: Path, items: SplitWriter, bar: Any) -> dict[str, Any]:
    """Write the rows of one file as items; return what identifies the file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        status = os.fstat(stream.fileno())

        def lines() -> Iterator[bytes]:
            for line in stream:
                digest.update(line)
                bar.update(len(line))
                yield line

        for row in read_rows(lines(), path):
            items.add(row.label, inputs=np.asarray([*row.tokens, END_TOKEN], np.uint8))
    return {
        "name": path.name,
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "sha256": digest.hexdigest(),
    }


def _is_current(files: dict[str, Path], out: Path) -> bool:
    """Whether ``out`` was prepared from these very files in this way, and is complete."""
    if not is_prepared(out):
        return False
    try:
        spec = PreparedDataset(out).spec
    except ValueError:
        return False
    source = spec.source
    if spec.benchmark != BENCHMARK:
        raise ValueError(
            f"{out} holds prepared data of {spec.benchmark!r}; choose another folder for ListOps"
        )
    if spec.vocabulary != VOCABULARY or source.get("settings") != _SETTINGS:
        return False
    known = source.get("files", {})
    return all(_is_same(path, known.get(split, {})) for split, path in files.items())


def _is_same(path: Path, known: dict[str, Any]) -> bool:
    status = path.stat()
    if status.st_size != known.get("bytes"):
        return False
    return status.st_mtime_ns == known.get("modified_ns") or sha256_of(path) == known.get("sha256")


def report(dataset: PreparedDataset) -> list[str]:
    """Lines that say what a prepared ListOps holds, and how that differs from the release."""
    lines = []
    for name, split in dataset.splits.items():
        info, expected = split.info, RELEASED_COUNTS.get(name)
        balance = " ".join(
            f"{label}:{100 * count / info.items:.1f}%"
            for label, count in zip(dataset.spec.classes, info.class_counts, strict=True)
        )
        note = "" if info.items == expected else f" (the released benchmark has {expected})"
        lines.append(
            f"{name}: {info.items} expressions{note}, lengths {info.min_length['inputs']} to "
            f"{info.max_length['inputs']} with the end token, labels {balance}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m megalodon_tasks.recipes.lra.prepare_listops",
        description="Check ListOps and bring it into the form that the task lra_text reads.",
    )
    parser.add_argument(
        "source", type=Path, help="folder with basic_{train,val,test}.tsv, or the LRA release"
    )
    parser.add_argument("out", type=Path, help="folder for the prepared data")
    parser.add_argument(
        "--verify", action="store_true", help="also compare the checksums of the prepared arrays"
    )
    args = parser.parse_args(arguments)
    try:
        prepared = prepare(args.source, args.out)
        dataset = PreparedDataset(args.out)
        if args.verify:
            with progress_bar(
                total=dataset.total_bytes, label="verifying", unit="B", scale=True
            ) as bar:
                dataset.verify(bar.update)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; nothing was written, start the same command again\n")
    state = "prepared" if prepared else "prepared already from the same files, nothing to do"
    print("\n".join([f"{args.out}: {state}", *report(dataset)]))


if __name__ == "__main__":
    main()
