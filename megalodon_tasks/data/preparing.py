"""What every preparation does once its files are found, and how its command looks and ends.

Writing (not again if it was done from the same files in the same way), progress, the report.
"""

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from megalodon_tasks.data.manifest import Manifest, OnBytes, is_prepared
from megalodon_tasks.data.parallel import usable_cores
from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.data.sources import LIMIT, Origin, Rejects, describe
from megalodon_tasks.data.writer import Form, Read, publish, unfinished_folder, write_unpublished
from megalodon_tasks.option_types import PROCESSES, whole

T = TypeVar("T")
# What a manifest says of its source that must be as it is now for the data to be taken as it is.
_RECORDED = ("settings", "origin", "split_rule", "published")
# What to do where there is no data, for benchmarks whose data can be generated.
OR_GENERATE = (
    "or make synthetic data with --generate (results on it do not compare with published ones)"
)


@dataclass(frozen=True)
class Preparation:
    """What is to be written, from which files, and how to read each split.

    title: name in messages.  form: how it is stored; ``form.source["settings"]`` is what the result
    depends on beside the files.  origins: the source files, recorded under their keys.  splits: how to
    read the records of each.  rejects: damaged items, recorded too.
    complete: called with the form and the hidden folder before the first split is read, for what depends
    on the data (a value scale, a vocabulary); returns the form with it.  Files that it leaves in the
    folder are there again after an interruption.
    total, unit: of the progress, where it is not measured in bytes of the origins.
    replaces: whether data that was prepared with other settings is replaced, or refused.
    """

    title: str
    form: Form
    origins: Mapping[str, Origin]
    splits: Mapping[str, Read]
    rejects: Rejects = field(default_factory=Rejects)
    complete: Callable[[Form, Path], Form] | None = None
    total: int | None = None
    unit: str = "B"
    replaces: bool = True

    def write(self, out: Path) -> bool:
        """Prepare the data; return False if ``out`` already holds it, made from the same files.

        Raises ``ValueError`` for bad files, as the reading functions do, and if ``out`` holds another
        benchmark, or data of other settings that is not to be replaced; ``out`` is then as it was.
        """
        if self._is_current(out):
            return False
        if not self.replaces and is_prepared(out):
            self._refuse_other_settings(out)
        identity = {
            "benchmark": self.form.benchmark,
            "form": self._known_details(),
            "content": self.form.content,
            "settings": self.form.source.get("settings"),
            "files": {key: origin.status() for key, origin in self.origins.items()},
        }
        with unfinished_folder(out, identity) as inside:
            if not is_prepared(inside):  # else a run was stopped while it published
                self._write(inside)
            publish(out, inside)
        return True

    def _refuse_other_settings(self, out: Path) -> None:
        found = Manifest.read(out, contents=False).source.get("settings")
        expected = self.form.source.get("settings")
        if found != expected:
            raise ValueError(
                f"{out} holds {self.title} prepared with {found}, where {expected} is asked for; choose "
                "another folder, or replace it with --replace"
            )

    def _write(self, inside: Path) -> None:
        form = self.form if self.complete is None else self.complete(self.form, inside)
        total = self.total or sum(origin.bytes for origin in self.origins.values())
        bar = progress_bar(total=total, label=f"preparing {self.title}", unit=self.unit, scale=True)
        source = functools.partial(self._source, form)
        with bar:
            write_unpublished(inside, form, self.splits, self.rejects, source, bar.update)
            bar.update(total - bar.n)  # what was read before an interruption, or not at all

    def _source(self, form: Form) -> dict[str, Any]:
        unread = sum(origin.bytes for origin in self.origins.values() if not origin.was_read)
        bar = progress_bar(
            total=unread, label="checksums of the source", unit="B", scale=True,
            hidden=not unread,
        )  # fmt: skip
        with bar:
            files = {key: origin.description(bar.update) for key, origin in self.origins.items()}
        return {**form.source, "files": files, "left_out": self.rejects.reasons}

    def _known_details(self) -> dict[str, Any]:
        """Return what the form says before any data is read, as JSON has it."""
        details = _details(self.form.details(), self.form)
        return {key: value for key, value in details.items() if value is not None}

    def _is_current(self, out: Path) -> bool:
        """Return whether ``out`` was prepared from these very files in this way, and is complete."""
        try:
            found = Manifest.read(out, contents=False)
        except ValueError:
            return False
        if (found.benchmark, found.kind) != (self.form.benchmark, self.form.stored_as):
            raise ValueError(
                f"{out} holds prepared data of {found.benchmark!r}; choose another folder for "
                f"{self.title}"
            )
        try:
            Manifest.read(out)
        except ValueError:  # damaged, so it is prepared again
            return False
        details = _details(found.form, found)
        if any(details.get(key) != value for key, value in self._known_details().items()):
            return False
        if any(found.source.get(key) != self.form.source.get(key) for key in _RECORDED):
            return False
        allowed = 0 if self.rejects.strict else self.rejects.limit
        if len(found.source.get("left_out", {})) > allowed:
            return False
        known = found.source.get("files", {})
        return known.keys() == self.origins.keys() and all(
            origin.is_same(known[key]) for key, origin in self.origins.items()
        )


def _details(form: dict[str, Any], names: Form | Manifest) -> dict[str, Any]:
    return {**form, "classes": list(names.classes), "vocabulary": list(names.vocabulary)}


def from_the_start(read: Callable[..., Iterator[T]], *arguments: Any) -> Read:
    """Make a ``Read`` of ``read(*arguments, on_bytes)``, which always begins with the first record."""

    def read_from(first: int, on_bytes: OnBytes) -> Iterator[T]:
        return itertools.islice(read(*arguments, on_bytes), first, None)

    return read_from


def progress_bar(
    items: Iterable[T] | None = None,
    *,
    total: int,
    label: str,
    unit: str = "item",
    scale: bool = False,
    hidden: bool = False,
) -> "tqdm[T]":
    """Show a bar on standard error over ``items``, or one to be moved by ``update``.

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


def describe_splits(
    dataset: PreparedDataset, what: str, released: Mapping[str, int], note: str = ""
) -> list[str]:
    """Return a line per split: counts beside the released ones, lengths, balance of the labels.

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


def describe_duplicates(counts: Mapping[str, int]) -> list[str]:
    """Return a line for each split, or pair of splits, of ``writer.duplicates``."""
    return [
        f"duplicates: {' and '.join(names.split(', '))} share {count:,} items"
        if ", " in names
        else f"duplicates: {names} has {count:,} items that it has already"
        for names, count in counts.items()
    ]


def command_line(recipe: str, description: str, source_help: str) -> argparse.ArgumentParser:
    """Build the parser of ``megalodon prepare recipe`` with what all preparations have."""
    parser = argparse.ArgumentParser(
        prog=f"megalodon prepare {recipe}",
        description=description,
        epilog=f"example: megalodon prepare {recipe} DATA DATA/prepared",
    )
    parser.add_argument("source", type=Path, help=source_help)
    parser.add_argument("out", type=Path, help="folder for the prepared data")
    parser.add_argument(
        "--verify", action="store_true", help="also compare the checksums of the prepared files"
    )
    parser.add_argument(
        "--if-missing", action="store_true", help="take prepared data in OUT as it is, however made"
    )
    return parser


def add_rejects_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose what is done with damaged items."""
    parser.add_argument(
        "--strict", action="store_true", help="refuse a damaged item instead of leaving it out"
    )
    parser.add_argument(
        "--max-rejects",
        type=whole(0),
        default=LIMIT,
        metavar="N",
        help="refuse the data if more items are damaged (default: %(default)s)",
    )


def rejects_of(options: argparse.Namespace) -> Rejects:
    """Return what collects damaged items as the options say."""
    return Rejects(strict=options.strict, limit=options.max_rejects)


def add_workers_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how many processes work."""
    parser.add_argument(
        "--workers",
        type=whole(1, PROCESSES),
        default=usable_cores(),
        help="processes (default: all cores)",
    )


def generator_options(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return those of the generator's options ``names`` that were given.

    Raises ``ValueError`` where there are some without ``--generate``.
    """
    given = {n: v for n in names if (v := getattr(options, n)) is not None}
    if given and not options.generate:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{words}: an option of synthetic data, which needs --generate")
    return given


@contextmanager
def ending_with_messages(
    parser: argparse.ArgumentParser,
    interrupted: str = "the same command continues where it was stopped",
) -> Iterator[None]:
    """End the process with status 2 and the message of a ``ValueError`` or ``OSError`` of the block.

    After Ctrl-C: with status 130 and ``interrupted``.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"interrupted; {interrupted}\n")


def run(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    prepare: Callable[[], bool],
    report: Callable[[Any], list[str]],
    opened: Callable[[Path], Any] = PreparedDataset,
) -> Path:
    """Prepare, verify where asked, and print the report on what ``opened`` makes of the folder.

    Returns the folder of the prepared data: OUT, or SOURCE if that is prepared data itself.  An error
    ends the process with its message.
    """
    with ending_with_messages(parser):
        folder = prepared_before(options)
        if folder is not None and not is_prepared(folder):
            print(f"{folder}: data of fairseq-preprocess, taken as it is")
            return folder
        state = "prepared before, taken as it is"
        if folder is None:
            folder = options.out
            state = (
                "prepared" if prepare() else "prepared already from the same files, nothing to do"
            )
        manifest = Manifest.read(folder)
        if options.verify:
            total = manifest.total_bytes
            with progress_bar(total=total, label="verifying", unit="B", scale=True) as bar:
                manifest.verify(bar.update)
        lines = report(opened(folder))
    lines += describe_duplicates(manifest.source.get("duplicates", {}))
    print("\n".join([f"{folder}: {state}", *lines, *describe(manifest.source["left_out"])]))
    return folder


def prepared_before(options: argparse.Namespace) -> Path | None:
    """Return SOURCE if it is prepared data, or with ``--if-missing`` OUT if that is, or None.

    Raises ``ValueError`` where data is to be generated and one of them holds other prepared data.
    """
    source, out = options.source, options.out
    other_source = source.resolve() != out.resolve()
    if getattr(options, "generate", False):
        for folder in (source, out):
            origin = Manifest.read(folder).source["origin"] if is_prepared(folder) else "generated"
            if origin != "generated":
                raise ValueError(
                    f"{folder} holds prepared data that was not generated (origin: {origin}); leave "
                    "out --generate to take it, or choose another folder"
                )
    if other_source and is_prepared(source):
        return source
    if options.if_missing and is_prepared(out):
        return out
    # what fairseq-preprocess writes
    if other_source and all((source / name).is_file() for name in ("dict.txt", "train.idx")):
        return source
    return None
