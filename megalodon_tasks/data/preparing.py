"""What every preparation of labelled sequences does once its files are found and read.

Writing (not again if it was done from the same files in the same way), the report, the command line.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from megalodon_tasks.data.messages import ending_with_messages
from megalodon_tasks.data.origins import OnBytes, Origin
from megalodon_tasks.data.parallel import usable_cores
from megalodon_tasks.data.progress import progress_bar
from megalodon_tasks.data.rejects import Rejects, describe
from megalodon_tasks.data.storage import DatasetSpec, PreparedDataset, ValueScale, is_prepared
from megalodon_tasks.data.storage_writer import write_dataset

#: A label and one sequence per column.
Item = tuple[int, dict[str, np.ndarray]]
Read = Callable[[OnBytes], Iterator[Item]]


@dataclass(frozen=True)
class Preparation:
    """What is to be written, from which files, and how to read each split.

    ``spec.source["settings"]`` is what the prepared form depends on beside the files.  ``title`` is the
    task's name in messages; ``origins`` are recorded under their keys; a function of ``splits`` yields
    the items of that split and tells its argument how many bytes it has just read.  What it puts into
    ``rejects`` is recorded too.  ``measure`` is called before the first split is read, for a scale that
    depends on the data; ``spec`` has none then.
    """

    title: str
    spec: DatasetSpec
    origins: Mapping[str, Origin]
    splits: Mapping[str, Read]
    rejects: Rejects = field(default_factory=Rejects)
    measure: Callable[[], ValueScale] | None = None

    def write(self, out: Path, *, hidden: bool = False) -> bool:
        """Prepare the data; return False if ``out`` already holds it, made from the same files.

        ``hidden`` hides the progress bar.  Raises ``ValueError`` for bad files, as the reading functions
        do, and if ``out`` holds another benchmark; ``out`` is then as it was before.
        """
        if self._is_current(out):
            return False
        spec = self.spec if self.measure is None else replace(self.spec, scale=self.measure())
        total = sum(origin.bytes for origin in self.origins.values())
        label = f"checking {self.title}"
        bar = progress_bar(total=total, label=label, unit="B", scale=True, hidden=hidden)
        with bar, write_dataset(out, spec) as writer:
            for split, read in self.splits.items():
                with writer.split(split) as items:
                    for class_, sequences in read(bar.update):
                        items.add(class_, **sequences)
            spec.source["files"] = {
                key: origin.description() for key, origin in self.origins.items()
            }
            spec.source["left_out"] = self.rejects.reasons
        return True

    def _is_current(self, out: Path) -> bool:
        """Whether ``out`` was prepared from these very files in this way, and is complete."""
        if not is_prepared(out):
            return False
        try:
            found = PreparedDataset(out).spec
        except ValueError:
            return False
        wanted = self.spec
        if found.benchmark != wanted.benchmark:
            raise ValueError(
                f"{out} holds prepared data of {found.benchmark!r}; choose another folder for "
                f"{self.title}"
            )
        parts = ["kind", "columns", "classes", "vocabulary"]
        if self.measure is None:
            parts.append("scale")
        if any(getattr(found, part) != getattr(wanted, part) for part in parts):
            return False
        if found.source.get("settings") != wanted.source["settings"]:
            return False
        if self.rejects.strict and found.source.get("left_out"):
            return False
        known = found.source.get("files", {})
        return known.keys() == self.origins.keys() and all(
            origin.is_same(known[key]) for key, origin in self.origins.items()
        )


def describe_splits(
    dataset: PreparedDataset, what: str, released: Mapping[str, int], note: str = ""
) -> list[str]:
    """One line per split: counts beside the released ones, lengths, balance of the labels.

    ``what`` are the items (``expressions``), ``note`` says what counts as length.
    """
    lines = []
    for name, split in dataset.splits.items():
        info, expected = split.info, released.get(name)
        balance = " ".join(
            f"{label}:{100 * count / info.items:.1f}%"
            for label, count in zip(dataset.spec.classes, info.class_counts, strict=True)
        )
        same = expected in (None, info.items)
        differs = "" if same else f" (the released benchmark has {expected})"
        lengths = " and ".join(
            f"{info.min_length[column]} to {info.max_length[column]}" for column in info.min_length
        )
        lines.append(
            f"{name}: {info.items} {what}{differs}, lengths {lengths}{note}, labels {balance}"
        )
    return lines


def command_line(module: str, description: str, source_help: str) -> argparse.ArgumentParser:
    """The parser of a preparing command: SOURCE, OUT and --verify."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("source", type=Path, help=source_help)
    parser.add_argument("out", type=Path, help="folder for the prepared data")
    parser.add_argument(
        "--verify", action="store_true", help="also compare the checksums of the prepared arrays"
    )
    return parser


def add_strict_option(parser: argparse.ArgumentParser) -> None:
    """The option that chooses what is done with a damaged item."""
    parser.add_argument(
        "--strict", action="store_true", help="refuse a damaged item instead of leaving it out"
    )


def add_workers_option(parser: argparse.ArgumentParser) -> None:
    """The option that says how many processes work."""
    parser.add_argument(
        "--workers", type=int, default=usable_cores(), help="processes (default: all cores)"
    )


def run(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    prepare: Callable[[], bool],
    report: Callable[[PreparedDataset], list[str]],
) -> None:
    """Prepare, verify where asked, and print the report; an error ends the process with its message."""
    with ending_with_messages(parser, "nothing was written, start the same command again"):
        prepared = prepare()
        dataset = PreparedDataset(options.out)
        if options.verify:
            with progress_bar(
                total=dataset.total_bytes, label="verifying", unit="B", scale=True
            ) as bar:
                dataset.verify(bar.update)
    state = "prepared" if prepared else "prepared already from the same files, nothing to do"
    left_out = describe(dataset.spec.source.get("left_out", {}))
    print("\n".join([f"{options.out}: {state}", *report(dataset), *left_out]))
