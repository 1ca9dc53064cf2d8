"""A small run of each recipe: its data, and the settings that make an update of it quick."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_cli import hydra_train
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from megalodon_tasks.cli import train
from megalodon_tasks.configuration import compose_configuration, hydra_overrides, quoted
from megalodon_tasks.data.sequences import ColumnSpec, ValueScale
from megalodon_tasks.fairseq_compat import training_settings
from megalodon_tasks.recipes.speech.prepare_speech_commands import Options, prepare
from megalodon_tasks.recipes.translation import demo_numbers, prepare_pairs
from tests.cli.language_models import write_corpus
from tests.data.prepared import write_random
from tests.recipes.conversation_files import prepare_conversations
from tests.recipes.image_files import build_index, write_tree
from tests.recipes.lm_data import preprocess
from tests.recipes.speech_files import write_release

ROOT = Path(__file__).resolve().parents[2]


def write_pixels(folder: Path, benchmark: str) -> Path:
    """Images of 16 pixels in three classes."""
    form = {
        "columns": {"inputs": ColumnSpec("uint8", 16)},
        "vocabulary": (),
        "scale": ValueScale(255.0, 0.5, 0.25),
    }
    return write_random(folder, benchmark=benchmark, kind="pixels", **form).folder


def write_tokens(folder: Path, benchmark: str, columns: Sequence[str] = ("inputs",)) -> Path:
    """Sequences, or pairs of them, of up to 9 tokens in three classes."""
    form = {name: ColumnSpec("uint8") for name in columns}
    return write_random(folder, benchmark=benchmark, columns=form).folder


def write_clips(folder: Path) -> Path:
    """Clips of 40 samples of ten words."""
    write_release(folder / "raw", per_word=20, length=40)
    options = Options(splits="official", lengths="fit", seconds=40 / 16_000)
    prepare(folder / "raw", folder / "prepared", options)
    return folder / "prepared"


def write_images(folder: Path) -> Path:
    """The index of 30 images in three classes."""
    build_index(write_tree(folder / "images"), folder / "index")
    return folder / "index"


def write_pairs(folder: Path) -> Path:
    """Numbers in words and in digits."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for split, count in {"train": 30, "valid": 8, "test": 8}.items():
        pairs = demo_numbers.draw_split(split, count)
        for side, language in enumerate(("en", "de")):
            (raw / f"{split}.{language}").write_text("".join(f"{pair[side]}\n" for pair in pairs))
    names = ["--train", "train", "--valid", "valid", "--test", "test"]
    return prepare_pairs.main([str(raw), str(folder / "prepared"), *names])


# What each kind of data is written by.
DATA: dict[str, Callable[[Path], Path]] = {
    "listops": functools.partial(write_tokens, benchmark="listops"),
    "text": functools.partial(write_tokens, benchmark="text"),
    "retrieval": functools.partial(
        write_tokens, benchmark="retrieval", columns=("inputs", "inputs2")
    ),
    "image": functools.partial(write_pixels, benchmark="image"),
    "pathfinder": functools.partial(write_pixels, benchmark="pathfinder"),
    "pathx": functools.partial(write_pixels, benchmark="pathx"),
    "clips": write_clips,
    "images": write_images,
    "bytes": write_corpus,
    "words": preprocess,
    "conversations": prepare_conversations,
    "pairs": write_pairs,
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_RUN = _words(
    """common.cpu=true common.log_format=none dataset.num_workers=0 optimization.max_update=1
    dataset.batch_size=4 dataset.batch_size_valid=50 checkpoint.no_save=true"""
)
_WIDTHS = _words(
    "model.model_dim=8 model.num_layers=1 model.z_dim=4 model.value_dim=8 model.ffn_hidden_dim=8"
)
_BATCH = ("task.effective_batch=null",)
_SMALL = (*_WIDTHS, *_words("model.cema_ndim=2 model.norm_num_groups=2 model.chunk_size=8"))
_SMALLER = (*_SMALL, *_BATCH)
_BLOCKS = _words(
    """task.tokens_per_sample=8 task.block_multiple_max=2 task.block_multiple_min=1
    task.eval_multiple=1 task.eval_chunk_size=null dataset.max_tokens=null
    dataset.validate_interval_updates=0"""
)
_SPREAD = ("model.cema_memory=8",)


@dataclass(frozen=True)
class Run:
    """A recipe's configuration, its data (a name in ``DATA``), and overrides that make it small."""

    recipe: str
    data: str
    overrides: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = [word.partition("=")[2] for word in self.overrides if "_name=" in word]
        return " with ".join([self.recipe, *names])

    @property
    def path(self) -> Path:
        """The recipe's YAML file."""
        return ROOT / "recipes" / f"{self.recipe}.yaml"

    def layers(self) -> Any:
        """Return what the recipe's files state, later ones over earlier."""
        _, *names = OmegaConf.load(self.path).defaults
        return OmegaConf.merge(*(OmegaConf.load(self.path.parent / f"{n}.yaml") for n in names))

    def compose(self, folder: Path, data: Path) -> DictConfig:
        """Compose the configuration of a run in ``folder``, as hydra does."""
        paths = (f"task.data={quoted(str(data))}", f"checkpoint.save_dir={quoted(str(folder))}")
        user_dir = f"common.user_dir={quoted(str(ROOT / 'megalodon_tasks'))}"
        words = [user_dir, *_RUN, *self.overrides, *paths]
        return compose_configuration(self.path.parent, self.path.stem, words)


def _lra(recipe: str, *words: str) -> Run:
    return Run(f"lra/{recipe}", recipe.removesuffix("_demo"), (*_SMALLER, *words))


def _lm(recipe: str, data: str, *words: str) -> Run:
    return Run(f"lm/{recipe}", data, (*_SMALLER, *_BLOCKS, *words))


def _with_model(name: str, recipe: str, data: str, *words: str) -> Run:
    return Run(recipe, data, (*_WIDTHS, *_BATCH, *words, f"model._name={name}"))


RUNS = (
    _lra("listops_demo", "task.max_positions=20"),
    _lra("listops"),
    _lra("text_demo"),
    _lra("text"),
    _lra("retrieval_demo"),
    _lra("retrieval"),
    _lra("image_demo", *_SPREAD),
    _lra("image"),
    _lra("pathfinder_demo", *_SPREAD),
    _lra("pathfinder"),
    _lra("pathx_demo", *_SPREAD),
    _lra("pathx"),
    Run("speech/sc_raw_demo", "clips", _SMALLER),
    Run("speech/sc_raw", "clips", _SMALLER),
    Run("imagenet/imagenet_demo", "images", (*_SMALLER, "task.image_size=16")),
    Run("imagenet/imagenet", "images", (*_SMALLER, "task.image_size=16", "task.patch_size=8")),
    _lm("enwik8_demo", "bytes"),
    _lm("enwik8", "bytes"),
    _lm("pg19_demo", "bytes", "model.num_heads=1"),
    _lm("pg19", "bytes", "model.num_heads=1", "task.stream=true"),
    _lm("wikitext103_demo", "words", "model.adaptive_cutoffs='6'"),
    _lm("wikitext103", "words", "model.adaptive_cutoffs='6'"),
    _lm("instruct_demo", "conversations", "model.num_heads=1", "task.tokens_per_sample=256"),
    _lm("instruct", "conversations", "model.num_heads=1", "task.tokens_per_sample=256"),
    _lm("pretrain_7b", "bytes", "model.num_heads=1", "common.bf16=false"),
    Run("translation/wmt16_en_de_demo", "pairs", (*_SMALL, "model.num_heads=2")),
    Run("translation/wmt16_en_de", "pairs", _SMALL),
    _with_model("mega_lra_listops", "lra/listops_demo", "listops", "task.max_positions=20"),
    _with_model("transformer_lra_listops", "lra/listops_demo", "listops", "task.max_positions=20"),
)


def start(config: DictConfig, overrides: Sequence[str] = ()) -> int:
    """Train with ``config`` and further overrides, as ``megalodon train`` does after hydra."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides=hydra_overrides(overrides))
        ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    except HydraException as error:
        print(f"error: {error}")
        return 1
    training_settings.install()  # as the command does
    train._with_messages(hydra_train._hydra_main)(config)
    return 0
