"""Convert released checkpoints to fairseq's and back.

    python -m megalodon_tasks.cli.convert from-released SOURCE CHECKPOINT.pt --data DIR
    python -m megalodon_tasks.cli.convert to-released CHECKPOINT.pt TARGET [--shards N]

SOURCE and TARGET are what ``megalodon_tasks.models.released.files`` reads: the release's folder (with
its model-parallel shards), a safetensors file, or a torch file.  DIR is the prepared data whose
dictionary goes with the model: row i of the embedding belongs to symbol i of ``dict.txt``, with ``<s>
<pad> </s> <unk>`` in front.  Nothing is executed from any file, and a target is written whole or not at
all.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.initialize import add_defaults
from omegaconf import OmegaConf

from megalodon_tasks import fairseq_compat
from megalodon_tasks.data.corpus import DICTIONARY
from megalodon_tasks.errors import UserError, user_errors
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.released.files import (
    read_released,
    read_tensors,
    write_released,
    write_tensors,
)
from megalodon_tasks.models.released.names import config_to_released, load_released, to_released

PREFIX = "decoder.lm."
MODEL, TASK = "megalodon_lm", "megalodon_language_modeling"


def fairseq_checkpoint(model: CausalLM, data: Path) -> dict[str, Any]:
    """A checkpoint before its first update, as fairseq's tools load it.

    Raises ``ValueError`` if the dictionary in ``data`` has another number of symbols than the model.
    """
    path = data / DICTIONARY
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: --data names the prepared data that goes with the model"
        )
    symbols = len(Dictionary.load(str(path)))
    if symbols != model.vocab_size:
        raise ValueError(
            f"{path} has {symbols} symbols, the checkpoint {model.vocab_size}; prepare the data with "
            "the vocabulary that the model was trained with"
        )
    settings = {f.name: getattr(model.config, f.name) for f in fields(MegalodonConfig)}
    unit = {"tokens_per_sample": model.config.chunk_size} if model.config.chunk_size else {}
    return {
        "args": None,
        "cfg": _settings(
            model={**settings, "scale_emb": model.scale_emb, "share_emb": model.share_emb},
            task={"data": str(data.resolve()), **unit},
        ),
        "model": {PREFIX + name: tensor.detach() for name, tensor in model.state_dict().items()},
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "CrossEntropyCriterion",
                "optimizer_name": "",
                "lr_scheduler_state": {"best": None},
                "num_updates": 0,
            }
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }


def _settings(model: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """fairseq's whole configuration with its defaults but for ``model`` and ``task``."""
    config = OmegaConf.structured(FairseqConfig())
    OmegaConf.set_struct(config, False)
    config.model = {"_name": MODEL, **model}
    config.task = {"_name": TASK, **task}
    config.criterion = {"_name": "cross_entropy"}
    add_defaults(config)
    return OmegaConf.to_container(config, resolve=True, enum_to_str=True)


def model_of_checkpoint(path: Path) -> CausalLM:
    """The language model in a fairseq checkpoint of this project.

    Raises ``ValueError`` if it holds another model, or one that the released form has no place for.
    """
    state = read_tensors(path)
    known = isinstance(state, Mapping) and {"cfg", "model"} <= state.keys()
    weights = state["model"] if known else {}
    if not weights or not all(name.startswith(PREFIX) for name in weights):
        raise ValueError(f"{path} holds no language model of this project")
    settings = state["cfg"]["model"]
    if settings.get("adaptive_cutoffs") is not None:
        raise ValueError(
            f"{path}: adaptive_cutoffs={settings['adaptive_cutoffs']}: the released model has no "
            "adaptive embedding and softmax, so this model cannot be converted"
        )
    plain = {f.name: settings[f.name] for f in fields(MegalodonConfig) if f.name in settings}
    vocab_size = len(weights[f"{PREFIX}embedding.weight"])
    options = {key: settings[key] for key in ("scale_emb", "share_emb")}
    with torch.device("meta"):
        model = CausalLM(MegalodonConfig(**{**plain, "causal": True}), vocab_size, **options)
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: its tensors do not fit its settings: {error}") from None
    return model


@user_errors()
def from_released(options: argparse.Namespace) -> None:
    """Released form -> fairseq checkpoint."""
    tensors, config = read_released(options.source, options.config)
    model = load_released(tensors, config)
    checkpoint = fairseq_checkpoint(model, options.data)
    options.target.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(options.target, checkpoint)
    print(f"wrote {options.target}: {sum(p.numel() for p in model.parameters()):,} parameters")


@user_errors()
def convert_to_released(options: argparse.Namespace) -> None:
    """Fairseq checkpoint -> released form."""
    if not options.source.is_file():
        raise UserError(f"{options.source}: there is no such checkpoint")
    if options.shards < 1:
        raise UserError(f"--shards {options.shards} must be at least 1")
    model = model_of_checkpoint(options.source)
    tensors, config = to_released(model), config_to_released(model)
    write_released(options.target, tensors, config, options.shards)
    print(f"wrote {options.target}: {len(tensors)} tensors")


def build_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m megalodon_tasks.cli.convert",
        description="Convert released checkpoints of language models to fairseq's and back.",
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
    back.add_argument("--shards", type=int, default=1, help="model-parallel shards (a folder only)")
    back.set_defaults(convert=convert_to_released)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    fairseq_compat.install()
    options.convert(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
