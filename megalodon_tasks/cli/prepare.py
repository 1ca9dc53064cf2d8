"""Prepare a data set: ``megalodon prepare RECIPE SOURCE OUT``."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

RECIPES = "megalodon_tasks.recipes"
# recipe -> the module below recipes/ whose ``main(arguments)`` prepares its data
MODULES = {
    "lra/listops": "lra.listops.prepare",
    "lra/text": "lra.text.prepare",
    "lra/retrieval": "lra.retrieval.prepare",
    "lra/image": "lra.image.prepare",
    "lra/pathfinder": "lra.pathfinder.prepare",
    "speech/sc_raw": "speech.prepare_speech_commands",
    "imagenet/imagenet": "imagenet.prepare_imagenet",
    "lm/wikitext103": "lm.prepare_wikitext103",
    "lm/enwik8": "lm.prepare_enwik8",
    "lm/pg19": "lm.prepare_pg19",
    "lm/text": "lm.prepare_text",
}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the first word; the recipe's own preparation parses the others."""
    parser = argparse.ArgumentParser(
        prog="megalodon prepare",
        usage="megalodon prepare RECIPE SOURCE OUT [options]",
        description="Check a data set and bring it into the form that training reads.",
        epilog=f"recipes: {', '.join(MODULES)}\n"
        "example: megalodon prepare lra/listops DATA DATA/prepared\n\n"
        "`megalodon prepare RECIPE --help` lists the options of a recipe.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a data set; return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    recipe = parser.parse_args(words[:1]).recipe
    if recipe not in MODULES:
        near = difflib.get_close_matches(recipe, MODULES, n=2) or MODULES
        parser.error(f"unknown recipe {recipe!r}; there is {', '.join(near)}")
    return importlib.import_module(f"{RECIPES}.{MODULES[recipe]}").main(words[1:]) or 0
