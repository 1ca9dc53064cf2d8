"""Prepare a data set: ``megalodon prepare RECIPE SOURCE OUT``.

The report goes to standard error; standard output gets the folder that holds the prepared data, so that
a script can pass it on.
"""

import argparse
import contextlib
import difflib
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from megalodon_tasks.data.manifest import is_prepared
from megalodon_tasks.data.provenance import mark_as_demo

_RECIPES = "megalodon_tasks.recipes"
# recipe -> the module below recipes/, and the function where it is not ``main``, that prepares its data
MODULES = {
    "lra/listops": "lra.listops.prepare",
    "lra/text": "lra.text.prepare",
    "lra/retrieval": "lra.retrieval.prepare",
    "lra/image": "lra.image.prepare",
    "lra/pathfinder": "lra.pathfinder.prepare",
    "lra/pathx": "lra.pathfinder.prepare:main_pathx",
    "speech/sc_raw": "speech.prepare_speech_commands",
    "imagenet/imagenet": "imagenet.prepare_imagenet",
    "lm/wikitext103": "lm.prepare_wikitext103",
    "lm/enwik8": "lm.prepare_enwik8",
    "lm/pg19": "lm.prepare_pg19",
    "lm/text": "lm.prepare_text",
    "lm/instruct": "lm.prepare_instruct",
    "translation/wmt16_en_de": "translation.prepare_pairs",
}
_PATHS = "--contour-length 2 --num-distractors 0 --marker-radius 1 --continuity 20 --distinct"
_PASSAGE = 128  # bytes that are read of a text
# recipe -> the small data of its demo: modules below recipes/ that write it into RAW, and the options of
# the preparation, or of another recipe's
DEMOS = {
    "lra/listops": "lra/listops --generate --train 40000 --valid 1000 --test 1000 "
    "--min-length 9 --max-length 61 --max-depth 5 --max-args 5",
    "lra/text": "lra.demo_texts text RAW; lra/text --subset --validation held-out",
    "lra/retrieval": f"lra.demo_texts retrieval RAW {_PASSAGE}; lra/retrieval --max-bytes {_PASSAGE}",
    "lra/image": "lra.image.demo_images RAW; lra/image --side 8",
    "lra/pathfinder": f"lra/pathfinder --generate --side 14 --seed-distance 3 --count 24000 {_PATHS}",
    "lra/pathx": f"lra/pathx --generate --side 17 --seed-distance 3 --count 16000 {_PATHS}",
    "speech/sc_raw": "speech.demo_words RAW; speech/sc_raw --splits official --lengths fit "
    "--sample-rate 4000 --seconds 0.5",
    "imagenet/imagenet": "imagenet.demo_digits RAW; imagenet/imagenet",
    "lm/wikitext103": "lm.python_topics RAW --words; lm/wikitext103",
    "lm/enwik8": "lm.python_topics RAW; lm/text --name python-topics",
    "lm/pg19": "lm.python_topics RAW; lm/text --name python-topics --tokens sentencepiece --pieces 1000",
    "lm/instruct": "lm.demo_instructions RAW; lm/instruct",
    "translation/wmt16_en_de": "translation.demo_numbers RAW; translation/wmt16_en_de --train train "
    "--valid valid --test test test1",
}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the first word; the recipe's own preparation parses the others."""
    parser = argparse.ArgumentParser(
        prog="megalodon prepare",
        usage="megalodon prepare RECIPE SOURCE OUT [options]",
        description="Check a data set and bring it into the form that training reads.",
        epilog=f"recipes: {', '.join(MODULES)}\n\n"
        "example: megalodon prepare lra/listops DATA DATA/prepared\n"
        "a demo:  megalodon prepare lra/listops demo demo/prepared --demo\n\n"
        "`megalodon prepare RECIPE --help` lists the options of a recipe.  --demo makes the small data\n"
        "of its demo in SOURCE/raw and prepares that.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a data set and print its folder; return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    recipe = parser.parse_args(words[:1]).recipe
    if recipe not in MODULES:
        near = difflib.get_close_matches(recipe, MODULES, n=2) or MODULES
        parser.error(f"unknown recipe {recipe!r}; there is {', '.join(near)}")
    wants_help = {"-h", "--help"} & set(words)
    with contextlib.nullcontext() if wants_help else contextlib.redirect_stdout(sys.stderr):
        folder = (
            _prepare_demo(recipe, words[1:]) if "--demo" in words else _prepare(recipe, words[1:])
        )
    print(folder)
    return 0


def _prepare(recipe: str, words: Sequence[str]) -> Path:
    module, _, function = MODULES[recipe].partition(":")
    return getattr(importlib.import_module(f"{_RECIPES}.{module}"), function or "main")(words)


def _prepare_demo(recipe: str, words: Sequence[str]) -> Path:
    parser = argparse.ArgumentParser(prog=f"megalodon prepare {recipe} --demo")
    parser.add_argument(
        "source", type=Path, help="folder for the data; raw/ in it gets the raw data"
    )
    parser.add_argument("out", type=Path, help="folder for the prepared data")
    parser.add_argument("--demo", action="store_true", help="prepare the demo's small data")
    parser.add_argument(
        "--if-missing", action="store_true", help="take prepared data in OUT as it is"
    )
    options = parser.parse_args(words)
    raw = str(options.source / "raw")
    *makers, preparation = (shlex.split(command) for command in DEMOS[recipe].split(";"))
    if not (options.if_missing and is_prepared(options.out)):
        for module, *more in makers:
            maker = importlib.import_module(f"{_RECIPES}.{module}")
            maker.main([raw if word == "RAW" else word for word in more])
        if makers:
            mark_as_demo(Path(raw), recipe)
    prepared, *more = preparation
    if options.if_missing:
        more.append("--if-missing")
    return _prepare(prepared, [raw, str(options.out), *more])
