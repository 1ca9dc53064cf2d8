"""Prepare parallel text with fairseq's own ``fairseq-preprocess``.

    megalodon prepare translation/wmt16_en_de SOURCE OUT

SOURCE holds WMT16 English-German as Google released it, tokenised and in byte pairs:
``train.tok.clean.bpe.32000.en``, ``newstest2013.tok.bpe.32000.en`` (validation),
``newstest2014.tok.bpe.32000.en`` (test), and the same with ``.de``.  ``--train``, ``--valid`` and
``--test`` name other files.  A SOURCE that ``fairseq-preprocess`` wrote is taken as it is.
"""

import argparse
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from fairseq import options
from fairseq_cli import preprocess as fairseq_preprocess

from megalodon_tasks.data.manifest import Manifest, is_prepared, sha256_of
from megalodon_tasks.data.provenance import origin_of
from megalodon_tasks.files import read_lines, sole_writer
from megalodon_tasks.option_types import PROCESSES, whole

BENCHMARK = "wmt16_en_de"
SUFFIX = "bpe.32000"
# Mega's command for fairseq-preprocess (examples/mega/README.mt.md of github.com/facebookresearch/mega).
WORDS = 33_000
logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of this preparation."""
    parser = argparse.ArgumentParser(prog=f"megalodon prepare translation/{BENCHMARK}")
    add = parser.add_argument
    add("source", type=Path, help="folder of the parallel text, or what fairseq-preprocess wrote")
    add("out", type=Path, help="folder for the prepared data")
    add("--if-missing", action="store_true", help="take prepared data in OUT as it is")
    add("--source-lang", default="en")
    add("--target-lang", default="de")
    add("--train", default=f"train.tok.clean.{SUFFIX}", help="default: %(default)s")
    add("--valid", default=f"newstest2013.tok.{SUFFIX}", help="default: %(default)s")
    add(
        "--test", nargs="+", default=[f"newstest2014.tok.{SUFFIX}"],
        help="one or more; the second becomes the split test1 (default: newstest2014)",
    )  # fmt: skip
    add("--workers", type=whole(1, PROCESSES), default=1, help="processes (default: 1)")
    return parser


def main(arguments: Sequence[str]) -> Path:
    """Prepare, and return the folder that holds the data.

    Raises ``ValueError`` for files that are missing or empty, and pairs of unequal numbers of lines.
    """
    given = build_parser().parse_args(arguments)
    languages = given.source_lang, given.target_lang
    if all((given.source / f"dict.{language}.txt").is_file() for language in languages):
        return given.source
    if given.if_missing and is_prepared(given.out):
        return given.out
    splits = {"train": given.train, "valid": given.valid}
    splits |= {f"test{i or ''}": name for i, name in enumerate(given.test)}
    counts = {
        name: _count_pairs(given.source, prefix, languages) for name, prefix in splits.items()
    }
    with sole_writer(given.out):
        inside = given.out / ".preprocessed"
        shutil.rmtree(inside, ignore_errors=True)
        _preprocess(given, inside)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in sorted(inside.iterdir())
            if path.suffix != ".log"
        }
        for name in files:
            (inside / name).replace(given.out / name)
        shutil.rmtree(inside)
        source = {
            "origin": origin_of(given.source, "text"),
            "split_rule": "files",
            "settings": {"languages": list(languages), "splits": splits},
        }
        pairs = {name: {"items": count} for name, count in counts.items()}
        Manifest(given.out, "pairs", BENCHMARK, source, pairs, files).write(given.out)
    logger.info("%s: %s", given.out, ", ".join(f"{n} {c:,} pairs" for n, c in counts.items()))
    return given.out


def _count_pairs(folder: Path, prefix: str, languages: Sequence[str]) -> int:
    counts = {}
    for language in languages:
        path = folder / f"{prefix}.{language}"
        if not path.is_file():
            raise ValueError(
                f"{path} is missing; the folder needs it, or dict.{language}.txt and the other files "
                "of fairseq-preprocess (--train, --valid and --test name other files)"
            )
        counts[path.name] = _count_lines(path)
    if len(set(counts.values())) > 1 or 0 in counts.values():
        found = " and ".join(f"{name} has {count:,} lines" for name, count in counts.items())
        raise ValueError(f"{folder}: {found}; line i of one must translate line i of the other")
    return next(iter(counts.values()))


def _count_lines(path: Path) -> int:
    number = 0
    for number, line in enumerate(read_lines(path), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number} is not UTF-8 (byte {error.start}); correct or replace the file"
            ) from None
    return number


def _preprocess(given: argparse.Namespace, folder: Path) -> None:
    folder.mkdir()
    words = ["--source-lang", given.source_lang, "--target-lang", given.target_lang]
    words += ["--trainpref", str(given.source / given.train)]
    words += ["--validpref", str(given.source / given.valid)]
    words += ["--testpref", ",".join(str(given.source / name) for name in given.test)]
    words += ["--destdir", str(folder), "--joined-dictionary", "--workers", str(given.workers)]
    words += ["--nwordssrc", str(WORDS), "--nwordstgt", str(WORDS)]
    fairseq_preprocess.main(options.get_preprocessing_parser().parse_args(words))
