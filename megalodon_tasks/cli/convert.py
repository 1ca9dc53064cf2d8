"""Convert language models between fairseq's checkpoints, the release, and the form of Hugging Face.

    megalodon convert from-released SOURCE CHECKPOINT.pt --data DIR
    megalodon convert to-released CHECKPOINT.pt TARGET [--shards N]
    megalodon convert to-hf CHECKPOINT.pt FOLDER [--data DIR]
    megalodon convert from-hf FOLDER CHECKPOINT.pt --data DIR
    megalodon convert consolidate CHECKPOINT.pt TARGET.pt          # of sharded training, to one file

SOURCE and TARGET are what ``megalodon_tasks.models.released.files`` reads and writes: the release's
folder (with its model-parallel shards), a safetensors file, or a torch file.  FOLDER is one that
transformers loads after ``import megalodon_tasks.hf``.  DIR is the prepared data whose dictionary goes
with the model: row i of the embedding belongs to symbol i of ``dict.txt``, with ``<s> <pad> </s> <unk>``
in front.  Nothing is executed from any file, and a file is written whole or not at all.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megalodon_tasks.cli import options
from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.data.tokenizers import corpus_tokenizer
from megalodon_tasks.evaluation import hf_folder
from megalodon_tasks.evaluation.checkpoint import (
    consolidated,
    data_of,
    read_language_model,
    untrained_checkpoint,
)
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.released.files import read_released, write_released, write_tensors
from megalodon_tasks.models.released.names import config_to_released, load_released, to_released
from megalodon_tasks.option_types import whole


def from_released(given: argparse.Namespace) -> None:
    """Convert the released form to a checkpoint of fairseq."""
    tensors, config = read_released(given.source, given.config)
    write_checkpoint(load_released(tensors, config), given)


def from_hf(given: argparse.Namespace) -> None:
    """Convert a folder of Hugging Face to a checkpoint of fairseq."""
    write_checkpoint(hf_folder.read_folder(given.source), given)


def write_checkpoint(model: CausalLM, given: argparse.Namespace) -> None:
    """Write ``model`` as the checkpoint that is asked for."""
    checkpoint = untrained_checkpoint(model, given.data)
    given.target.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(given.target, checkpoint)
    print(f"wrote {given.target}: {sum(p.numel() for p in model.parameters()):,} parameters")


def to_hf(given: argparse.Namespace) -> None:
    """Convert a checkpoint of fairseq to a folder of Hugging Face."""
    model = read_language_model(given.source)
    corpus = read_corpus(given.data or data_of(given.source))
    hf_folder.write_folder(model, corpus_tokenizer(corpus), given.target)
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
        "Convert language models between fairseq's checkpoints, the release and Hugging Face, and "
        "sharded checkpoints to one file.",
        "from-released RELEASE CHECKPOINT.pt --data DATA/prepared",
    )
    directions = parser.add_subparsers(dest="direction", required=True)
    into = directions.add_parser("from-released", help="to a checkpoint that fairseq's tools load")
    into.add_argument("source", type=Path, help="folder of the release, .safetensors or torch file")
    into.add_argument("--config", type=Path, help="JSON file of the model's configuration")
    into.set_defaults(convert=from_released)
    hf = directions.add_parser("from-hf", help="from Hugging Face to a checkpoint of fairseq")
    hf.add_argument("source", type=Path, help="a folder that convert to-hf or transformers wrote")
    hf.set_defaults(convert=from_hf)
    for command in (into, hf):
        command.add_argument("target", type=Path, help="the checkpoint to write")
        command.add_argument(
            "--data", type=Path, required=True, help="prepared data of the same vocabulary"
        )
    back = directions.add_parser("to-released", help="to the released names and files")
    back.add_argument("source", type=Path, help="a checkpoint that a training run wrote")
    back.add_argument("target", type=Path, help="a folder, or a file .safetensors, .pth, .pt")
    back.add_argument(
        "--shards",
        type=whole(1),
        default=1,
        help="model-parallel shards (a folder only)",
    )
    back.set_defaults(convert=convert_to_released)
    out = directions.add_parser("to-hf", help="to a folder that transformers loads")
    out.add_argument("source", type=Path, help="a checkpoint that a training run wrote")
    out.add_argument("target", type=Path, help="the folder to write")
    out.add_argument("--data", type=Path, help="prepared data (default: as in training)")
    out.set_defaults(convert=to_hf)
    one_file = directions.add_parser("consolidate", help="from shards to one file")
    one_file.add_argument("source", type=Path, help="a checkpoint of ddp_backend=fully_sharded")
    one_file.add_argument("target", type=Path, help="the checkpoint to write")
    one_file.set_defaults(convert=consolidate)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Convert in the direction that the first word names."""
    given = build_parser().parse_args(arguments)
    given.convert(given)
