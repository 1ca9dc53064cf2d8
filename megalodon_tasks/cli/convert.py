"""Convert released checkpoints of language models to fairseq's and back, and sharded ones to one file.

    megalodon convert from-released SOURCE CHECKPOINT.pt --data DIR
    megalodon convert to-released CHECKPOINT.pt TARGET [--shards N]
    megalodon convert consolidate CHECKPOINT.pt TARGET.pt

SOURCE and TARGET are what ``megalodon_tasks.models.released.files`` reads and writes: the release's
folder (with its model-parallel shards), a safetensors file, or a torch file.  DIR is the prepared data
whose dictionary goes with the model: row i of the embedding belongs to symbol i of ``dict.txt``, with
``<s> <pad> </s> <unk>`` in front.  Nothing is executed from any file, and a target is written whole or
not at all.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megalodon_tasks.cli import options
from megalodon_tasks.evaluation.checkpoint import (
    consolidated,
    read_language_model,
    untrained_checkpoint,
)
from megalodon_tasks.models.released.files import read_released, write_released, write_tensors
from megalodon_tasks.models.released.names import config_to_released, load_released, to_released


def from_released(given: argparse.Namespace) -> None:
    """Convert the released form to a checkpoint of fairseq."""
    tensors, config = read_released(given.source, given.config)
    model = load_released(tensors, config)
    checkpoint = untrained_checkpoint(model, given.data)
    given.target.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(given.target, checkpoint)
    print(f"wrote {given.target}: {sum(p.numel() for p in model.parameters()):,} parameters")


def convert_to_released(given: argparse.Namespace) -> None:
    """Convert a checkpoint of fairseq to the released form."""
    model = read_language_model(given.source)
    tensors, config = to_released(model), config_to_released(model)
    write_released(given.target, tensors, config, given.shards)
    print(f"wrote {given.target}: {len(tensors)} tensors")


def consolidate(given: argparse.Namespace) -> None:
    """Make one ordinary file of a checkpoint with sharded tensors."""
    checkpoint = consolidated(given.source)
    given.target.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(given.target, checkpoint)
    size = sum(tensor.numel() for tensor in checkpoint["model"].values())
    print(f"wrote {given.target}: {size:,} parameters")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = options.parser(
        "convert",
        "Convert released checkpoints of language models to fairseq's and back, and sharded checkpoints "
        "to one file.",
        "from-released RELEASE CHECKPOINT.pt --data DATA/prepared",
    )
    directions = parser.add_subparsers(dest="direction", required=True)
    into = directions.add_parser("from-released", help="to a checkpoint that fairseq's tools load")
    into.add_argument("source", type=Path, help="folder of the release, .safetensors or torch file")
    into.add_argument("target", type=Path, help="the checkpoint to write")
    into.add_argument(
        "--data", type=Path, required=True, help="prepared data of the same vocabulary"
    )
    into.add_argument("--config", type=Path, help="JSON file of the model's configuration")
    into.set_defaults(convert=from_released)
    back = directions.add_parser("to-released", help="to the released names and files")
    back.add_argument("source", type=Path, help="a checkpoint that a training run wrote")
    back.add_argument("target", type=Path, help="a folder, or a file .safetensors, .pth, .pt")
    back.add_argument(
        "--shards",
        type=options.at_least(1),
        default=1,
        help="model-parallel shards (a folder only)",
    )
    back.set_defaults(convert=convert_to_released)
    whole = directions.add_parser("consolidate", help="from shards to one file")
    whole.add_argument("source", type=Path, help="a checkpoint of ddp_backend=fully_sharded")
    whole.add_argument("target", type=Path, help="the checkpoint to write")
    whole.set_defaults(convert=consolidate)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Convert in the direction that the first word names."""
    given = build_parser().parse_args(arguments)
    given.convert(given)
