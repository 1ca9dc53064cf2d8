"""Images a second of ImageNet's data pipeline beside timm's own loader, on the same images.

    python -m benchmarks.image_loading                     # on JPEG files made for it
    python -m benchmarks.image_loading --images DATA       # on an ImageFolder tree
    python -m benchmarks.image_loading --workers 2 --rounds 5

Prints one JSON line.  Both sides decode the same files in as many worker processes, apply the same
transform (DeiT's, by timm) and deliver normalised float32 batches.  They run in turn, one round of each,
so that the ratio holds on a machine whose speed varies.  Ours is the iterator that fairseq trains with:
keyed randomness, repeated augmentation, checks of the file.  timm's is ``create_loader``.
"""

import argparse
import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.tasks import setup_task
from omegaconf import OmegaConf
from PIL import Image, ImageFilter
from timm.data import ImageDataset, create_loader
from tqdm import tqdm

import megalodon_tasks  # noqa: F401 - registers the task
from megalodon_tasks.recipes.imagenet.augmentation import training_transform
from megalodon_tasks.recipes.imagenet.image_tree import build_index, is_indexed
from megalodon_tasks.recipes.imagenet.task import ImagenetConfig, ImagenetTask

# ImageNet: 138 GB of training images, so 108 KB each, most of about this size.
MADE_SIZE, MADE_CLASSES, MADE_PER_CLASS = (500, 375), 4, 192


def write_images(root: Path) -> None:
    """JPEG files of noise at several scales, of ImageNet's size in pixels and about that in bytes."""
    generator = np.random.default_rng(0)
    width, height = MADE_SIZE
    for number in range(MADE_CLASSES * MADE_PER_CLASS):
        fine = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        image = Image.blend(
            coarse.resize(MADE_SIZE, Image.Resampling.BICUBIC),
            fine.filter(ImageFilter.GaussianBlur(1)),
            0.5,
        )
        for split in ("train", "val") if number < MADE_CLASSES else ("train",):
            folder = root / split / f"class{number % MADE_CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.jpg", quality=97)


def our_batches(task: ImagenetTask, batch: int, workers: int) -> Iterator[torch.Tensor]:
    """Batches without end, epoch after epoch, from the iterator of training."""
    task.load_dataset("train")
    epochs = task.get_batch_iterator(
        task.dataset("train"), max_sentences=batch, num_workers=workers, data_buffer_size=10
    )
    while True:
        yield from (sample["net_input"]["inputs"] for sample in epochs.next_epoch_itr())


def timm_batches(
    root: Path, config: ImagenetConfig, batch: int, workers: int
) -> Iterator[torch.Tensor]:
    """The same from timm's loader, with the very same transform in place of its own."""
    dataset = ImageDataset(str(root / "train"))
    loader = create_loader(
        dataset,
        input_size=(3, config.image_size, config.image_size),
        batch_size=batch,
        is_training=True,
        num_workers=workers,
        use_prefetcher=False,
        device=torch.device("cpu"),
        persistent_workers=workers > 0,
    )
    dataset.transform = training_transform(config)
    while True:
        yield from (images for images, _ in loader)


def seconds_per_image(batches: Iterator[torch.Tensor], count: int) -> float:
    """Time of ``count`` batches."""
    start, images = time.perf_counter(), 0
    for _ in range(count):
        images += len(next(batches))
    return (time.perf_counter() - start) / images


def measure(options: argparse.Namespace, root: Path, index: Path) -> dict[str, Any]:
    """Run both in turn; medians over the rounds."""
    if not is_indexed(index):
        build_index(root, index)
    fields = {"seed": 1, "train_subset": "train", "valid_subset": "valid", "store_ema": False}
    config = OmegaConf.structured(ImagenetConfig(_name="imagenet", data=str(index), **fields))
    sides = {
        "ours": our_batches(setup_task(config), options.batch, options.workers),
        "timm": timm_batches(root, ImagenetConfig(**fields), options.batch, options.workers),
    }
    for batches in sides.values():  # start the workers and fill their queues
        seconds_per_image(batches, options.batches)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in tqdm(range(options.rounds), desc="rounds", disable=None):
        for name, batches in sides.items():
            # what the workers did ahead during the other side's turn must not count
            seconds_per_image(batches, 2 * max(options.workers, 1) + 10)
            times[name].append(seconds_per_image(batches, options.batches))
    ratios = [timm / ours for ours, timm in zip(*times.values(), strict=True)]
    return {
        "ours": round(1 / statistics.median(times["ours"]), 1),
        "timm": round(1 / statistics.median(times["timm"]), 1),
        "ours_over_timm": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "unit": "images a second",
        "workers": options.workers,
        "batch": options.batch,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.image_loading", description="Data loading beside timm's."
    )
    parser.add_argument(
        "--images", type=Path, help="ImageFolder tree (default: images made for it)"
    )
    parser.add_argument("--workers", type=int, default=1, help="worker processes")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=24, help="measured batches in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        root = options.images or Path(folder) / "images"
        if options.images is None:
            write_images(root)
        print(json.dumps(measure(options, root, Path(folder) / "index")))


if __name__ == "__main__":
    main()
