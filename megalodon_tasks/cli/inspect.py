"""Draw what a trained model does: ``megalodon inspect CHECKPOINT``.

Writes ``kernels.png`` (CEMA's kernels before and after training), ``attention.png`` (the weights of one
chunk) and ``gates.png`` (the activity of the gates) for one item of the data, and for an encoder-decoder
``cross_attention.png``.  A Transformer has ``attention.png`` only, and a Megalodon without a moving
average has no ``kernels.png``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from megalodon_tasks.cli import options
from megalodon_tasks.evaluation import checkpoint, model_pictures
from megalodon_tasks.option_types import whole


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = options.parser(
        "inspect", "Draw what a trained model does.", "SAVE/checkpoint_best.pt --layers 0 5"
    )
    options.add_checkpoint(parser)
    add = parser.add_argument
    add("--split", default="valid", help="default: %(default)s")
    add("--item", type=whole(0), default=0, help="which item of the split, from 0")
    add("--chunk", type=whole(0), default=0, help="which chunk of attention, from 0")
    add("--layers", type=whole(0), nargs="+", help="default: four, evenly spaced")
    add(
        "--reach", type=whole(1, 1 << 20), default=128, help="steps of a kernel (default: 128)"
    )  # fmt: skip
    add("--output", type=Path, help="folder of the pictures (default: that of CHECKPOINT)")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Draw the pictures."""
    given = build_parser().parse_args(arguments)
    trained = checkpoint.load(given.checkpoint, given.data, torch.device("cpu"))
    folder = given.output or given.checkpoint.parent
    for path in model_pictures.draw(
        trained, given.split, given.item, given.chunk, given.layers, given.reach, folder
    ):
        print(f"wrote {path}")
