"""Draw what a trained model does: ``megalodon-inspect CHECKPOINT``.

Writes ``kernels.png`` (CEMA's kernels before and after training), ``attention.png`` (the weights of one
chunk) and ``gates.png`` (the activity of the gates) for one item of the data.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fairseq import utils

from megalodon_tasks import fairseq_compat
from megalodon_tasks.cli import evaluate
from megalodon_tasks.cli.evaluate import Trained
from megalodon_tasks.errors import UserError, user_errors
from megalodon_tasks.evaluation import pictures
from megalodon_tasks.evaluation.kernels import Kernels, kernels
from megalodon_tasks.evaluation.observe import observed
from megalodon_tasks.models.layers.cema import ComplexEMA

MOST_LAYERS = 4


def build_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = argparse.ArgumentParser(
        prog="megalodon-inspect", description="Draw what a trained model does."
    )
    parser.add_argument("checkpoint", type=Path, help="a file that a training run wrote")
    parser.add_argument("--data", help="folder of the prepared data (default: as in training)")
    parser.add_argument("--split", default="valid", help="default: %(default)s")
    parser.add_argument("--item", type=int, default=0, help="which item of the split, from 0")
    parser.add_argument("--chunk", type=int, default=0, help="which chunk of attention, from 0")
    parser.add_argument("--layers", type=int, nargs="+", help="default: four, evenly spaced")
    parser.add_argument("--reach", type=int, default=128, help="steps of a kernel (default: 128)")
    parser.add_argument(
        "--output", type=Path, help="folder of the pictures (default: that of CHECKPOINT)"
    )
    return parser


def chosen_layers(wanted: list[int] | None, count: int) -> list[int]:
    """The layers to draw.  Raises :class:`UserError` for one that the model does not have."""
    if wanted is None:
        return sorted(set(np.linspace(0, count - 1, min(count, MOST_LAYERS)).round().astype(int)))
    for layer in wanted:
        if not 0 <= layer < count:
            raise UserError(f"--layers {layer}: the model has the layers 0 to {count - 1}")
    return wanted


def as_it_began(trained: Trained) -> torch.nn.Module:
    """The model before its first update: training seeds the generator and builds, and so does this."""
    utils.set_torch_seed(trained.cfg.common.seed)
    return trained.task.build_model(trained.cfg.model)


def all_kernels(model: torch.nn.Module, layers: list[int], reach: int) -> list[Kernels]:
    """The kernels of the chosen layers."""
    found = [module for module in model.modules() if isinstance(module, ComplexEMA)]
    return [kernels(found[layer], reach) for layer in layers]


def one_item(trained: Trained, split: str, item: int) -> dict:
    """A batch of one item.  Raises :class:`UserError` for an item that there is not."""
    trained.task.load_dataset(split, combine=False, epoch=1)
    dataset = trained.task.dataset(split)
    if not 0 <= item < len(dataset):
        raise UserError(f"--item {item}: the split {split} has the items 0 to {len(dataset) - 1}")
    return dataset.collater([dataset[item]])


@user_errors()
def run(options: argparse.Namespace) -> None:
    """Draw the three pictures."""
    if options.reach < 1:
        raise UserError(f"--reach {options.reach}: give at least 1 step")
    if not options.checkpoint.is_file():
        raise UserError(f"{options.checkpoint}: there is no such checkpoint")
    trained = evaluate.load(options.checkpoint, options.data, torch.device("cpu"))
    sample = one_item(trained, options.split, options.item)
    with observed(trained.model) as seen, torch.inference_mode():
        trained.model(**sample["net_input"])
    layers = chosen_layers(options.layers, len(seen))
    names = [f"layer {layer}" for layer in layers]
    shown = [seen[layer] for layer in layers]
    folder = options.output or options.checkpoint.parent
    folder.mkdir(parents=True, exist_ok=True)
    pictures.draw_attention(folder / "attention.png", shown, names, options.chunk, None)
    pictures.draw_gates(folder / "gates.png", shown, names, None)
    before, after = (
        all_kernels(model, layers, options.reach) for model in (as_it_began(trained), trained.model)
    )
    pictures.draw_kernels(folder / "kernels.png", before, after, names)
    for name in ("kernels", "attention", "gates"):
        print(f"wrote {folder / name}.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    fairseq_compat.install()
    run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
