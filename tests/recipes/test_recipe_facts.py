"""Every setting of a recipe is the published one, or its README names the difference and the reason."""

import re

import pytest
from omegaconf import OmegaConf

from megalodon_tasks.models.presets import CLASSIFIER_PRESETS, LM_PRESETS
from megalodon_tasks.recipes.lm import prepare_pg19
from tests.recipes.test_configurations import RECIPES, flat, load_yaml

# Sizes and optimisation: the published commands of Mega (github.com/facebookresearch/mega and
# XuezheMax/mega-image); widths of the feed-forward layer and the groups: see models/presets.py.
_ADAM = {
    "optimizer._name": "adamw_groups", "optimizer.adam_betas": "(0.9, 0.98)",
    "optimizer.adam_eps": 1e-8, "optimization.clip_norm": 1.0,
}  # fmt: skip
_LINEAR = {
    "lr_scheduler._name": "linear_decay", "lr_scheduler.warmup_init_lr": 1e-7,
    "lr_scheduler.warmup_power": 1.0, "lr_scheduler.end_learning_rate": 0.0,
}  # fmt: skip
# true of all these models: positions, and the feed-forward layer of all but PG-19
_STACK = {"model.rope_base": 10_000.0, "model.swiglu": False, "model.rescale_nffn": False}
_NO_DROPOUT = {f"model.{name}dropout": 0.0 for name in ("", "attention_", "hidden_")}
_CLASSIFIER = {
    **_ADAM, **_LINEAR, **_NO_DROPOUT, **_STACK, "criterion.label_smoothing": 0.0, "model.cema_ndim": 16,
    "model.num_heads": 1, "model.chunk_size": None, "checkpoint.keep_last_epochs": 1,
    "checkpoint.best_checkpoint_metric": "accuracy", "dataset.required_batch_size_multiple": 1,
    "checkpoint.maximize_best_checkpoint_metric": True, "optimizer.weight_decay": 0.01,
    "common.fp16": False, "common.bf16": False,
}  # fmt: skip
_LM = {
    **_ADAM, **_LINEAR, **_STACK, "optimization.clip_norm": 0.25, "optimization.lr": [0.005],
    "optimization.max_update": 400_000, "lr_scheduler.warmup_updates": 24_000,
    "optimizer.weight_decay": 0.1, "model.cema_ndim": 16, "model.num_heads": 1,
    "model.scale_emb": True, "model.share_emb": True,
    "task.sample_break_mode": "complete", "task.eval_streams": 10,
}  # fmt: skip
_IMAGES = {
    "image_size": 224, "patch_size": 16, "crop_pct": 0.875, "interpolation": "bicubic",
    "smallest_crop": 0.08, "hflip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.3,
    "random_erasing": 0.25, "random_erasing_clip": 2.0, "mixup": 0.8, "cutmix": 1.0, "mix_prob": 1.0,
    "mix_switch_prob": 0.5, "repeats": 3,
}  # fmt: skip


def sizes(layers: int, d: int, v: int, ffn: int, z: int) -> dict[str, int]:
    names = ("num_layers", "model_dim", "value_dim", "ffn_hidden_dim", "z_dim")
    return {f"model.{name}": size for name, size in zip(names, (layers, d, v, ffn, z), strict=True)}


def training(
    lr: float, updates: int, warmup: int, batch: int, batch_valid: int
) -> dict[str, object]:
    return {
        "optimization.lr": [lr], "optimization.max_update": updates,
        "lr_scheduler.warmup_updates": warmup, "dataset.batch_size": batch,
        "dataset.batch_size_valid": batch_valid,
    }  # fmt: skip


PUBLISHED: dict[str, dict[str, object]] = {
    "lra/listops": _CLASSIFIER | sizes(6, 80, 160, 200, 64) | training(1e-3, 90_000, 3_000, 64, 256)
    | {"model.dropout": 0.1, "task.max_positions": 2002},
    "lra/text": _CLASSIFIER | sizes(4, 128, 256, 320, 64) | training(4e-3, 25_000, 10_000, 25, 100)
    | {"model.dropout": 0.1, "task.max_positions": 4002},
    "lra/retrieval": _CLASSIFIER | sizes(6, 128, 256, 320, 64)
    | training(3e-3, 91_960, 10_000, 8, 64)
    | {"model.dropout": 0.1, "task.max_positions": 4002, "optimizer.weight_decay": 0.04},
    "lra/image": _CLASSIFIER | sizes(8, 160, 320, 320, 96) | training(1e-2, 180_000, 9_000, 50, 50)
    | {"task.max_positions": 1024, "optimizer.weight_decay": 0.02},
    "lra/pathfinder": _CLASSIFIER | sizes(6, 128, 256, 320, 64)
    | training(1e-2, 250_000, 50_000, 128, 512)
    | {"task.max_positions": 1024, "model.cema_activation": "silu"},
    "lra/pathx": _CLASSIFIER | sizes(4, 64, 128, 160, 32) | training(1e-2, 125_000, 25_000, 2, 12)
    | {"task.max_positions": 16384, "lr_scheduler.warmup_power": 2.0, "model.cema_activation": "silu"},
    "speech/sc_raw": _CLASSIFIER | sizes(6, 60, 120, 120, 30)
    | training(1e-2, 250_000, 10_000, 20, 20)
    | {
        "task.max_positions": 16_000, "model.chunk_size": 1000, "task.normalisation": "per_step",
        "task.sample_rate": None,
    },
    "imagenet/imagenet": _ADAM | _NO_DROPOUT | _STACK | sizes(12, 768, 1536, 1536, 256)
    | {f"task.{name}": value for name, value in _IMAGES.items()}
    | {
        "optimization.lr": [2e-3], "optimization.max_epoch": 300, "optimizer.weight_decay": 0.05,
        "optimizer.spare_vectors": True, "lr_scheduler._name": "cosine_by_epoch",
        "lr_scheduler.warmup_epochs": 20, "lr_scheduler.warmup_init_lr": 1e-5,
        "lr_scheduler.min_lr": 1e-6, "lr_scheduler.cosine_epochs": None, "dataset.batch_size": 128,
        "criterion.label_smoothing": 0.1, "model.drop_path": 0.3, "ema.store_ema": False,
        "common.seed": 42, "model.chunk_size": None, "model.cema_ndim": 16,
    },
    "lm/wikitext103": _LM | sizes(16, 1024, 2048, 2048, 256)
    | {
        "model.dropout": 0.3, "model.attention_dropout": 0.1, "model.hidden_dropout": 0.1,
        "model.adaptive_dropout": 0.2, "model.adaptive_cutoffs": "20000,60000",
        "model.adaptive_factor": 4.0, "dataset.max_tokens": 6144, "task.block_multiple_min": 2,
        "task.block_multiple_max": 6, "criterion._name": "adaptive_loss",
        # evaluated in pieces of 2 chunks of 2,048
        "model.chunk_size": 1024, "task.eval_chunk_size": 2048, "task.eval_multiple": 4,
        # those of the released model of this width
        "model.norm_num_groups": 32,
    },
    "lm/enwik8": _LM | _NO_DROPOUT | sizes(12, 512, 1024, 1024, 128)
    | {
        "model.dropout": 0.1, "dataset.max_tokens": 8192, "task.block_multiple_min": 2,
        "task.block_multiple_max": 4, "criterion._name": "cross_entropy",
        "model.chunk_size": 2048, "task.eval_chunk_size": 4096,
    },
    # the authors' mega1.3B_pg19, and the defaults of its repository
    "lm/pg19": _ADAM | _LINEAR | _NO_DROPOUT | _STACK | sizes(24, 2048, 4096, 3584, 512)
    | {
        "model.num_heads": 2, "model.swiglu": True, "model.chunk_size": 2048,
        "task.eval_chunk_size": None,
        "model.norm_num_groups": 64, "model.scale_emb": True, "model.share_emb": True,
        "model.init_mode": "he", "optimization.lr": [1e-3], "optimizer.weight_decay": 0.1,
        "lr_scheduler.warmup_updates": 2000, "lr_scheduler.end_learning_rate": 1e-5,
    },
    # examples/mega/README.mt.md
    "translation/wmt16_en_de": _ADAM | _LINEAR | sizes(6, 512, 1024, 1024, 128)
    | {
        "model.num_heads": 1, "model.cema_ndim": 16, "model.chunk_size": None, "model.dropout": 0.15,
        "model.attention_dropout": 0.1, "model.hidden_dropout": 0.1,
        "model.share_all_embeddings": True, "optimizer._name": "adam", "optimizer.weight_decay": 0.05,
        "optimization.lr": [1e-3], "optimization.max_update": 500_000,
        "lr_scheduler.warmup_updates": 4000, "criterion._name": "label_smoothed_cross_entropy",
        "criterion.label_smoothing": 0.1, "dataset.max_tokens": 8192, "dataset.batch_size": 1024,
        "task.eval_bleu": True, "task.eval_bleu_remove_bpe": "@@ ", "task.eval_bleu_detok": "space",
        "task.eval_tokenized_bleu": True, "checkpoint.best_checkpoint_metric": "bleu",
        "checkpoint.maximize_best_checkpoint_metric": True, "checkpoint.keep_last_epochs": 5,
        "checkpoint.keep_interval_updates": 1, "checkpoint.save_interval_updates": 5000,
    },
}  # fmt: skip

# Further sizes of a recipe: model -> the published ones.
VARIANTS: dict[str, dict[str, object]] = {
    "megalodon_sc_raw_big": sizes(6, 72, 144, 144, 36) | {"model.chunk_size": 1000},
    # feed-forward width 2.5 d, as documented for the base model
    "megalodon_imagenet_tiny": sizes(12, 192, 384, 480, 64) | {"model.num_heads": 1},
    "megalodon_lm_200m": sizes(12, 1024, 2048, 2560, 256)
    | {"model.norm_num_groups": 32, "model.chunk_size": 2048},
    "megalodon_lm_1.3b": sizes(24, 2048, 4096, 4864, 512) | {"model.norm_num_groups": 64},
}
# As the published commands read the test split.
STREAMS = {"wikitext103": 10, "enwik8": 50}

# What nothing is published for, or what does not change the result.
_FREE = {
    "task._name", "task.benchmark", "model._name", "model.checkpoint_activations",
    "checkpoint.save_dir", "dataset.num_workers", "dataset.required_batch_size_multiple",
}  # fmt: skip
_OF_BATCH = {"optimization.update_freq", "task.effective_batch"}  # tested with the effective batch
_CHOSEN = {
    "translation/wmt16_en_de": {"task.source_lang", "task.target_lang"},
    "speech/sc_raw": {"task.resampling"},
    "imagenet/imagenet": {"dataset.batch_size_valid", "ema.ema_decay"},
    "lm/wikitext103": {"distributed_training.ddp_backend"},
    "lm/enwik8": {"task.eval_multiple"},
    "lm/pg19": {
        "task.stream", "task.documents", "task.block_multiple_min", "task.block_multiple_max",
        "task.eval_streams", "task.eval_multiple", "dataset.batch_size", "dataset.batch_size_valid",
        "dataset.validate_interval_updates", "optimization.max_update", "criterion._name",
    },
}  # fmt: skip
_METRICS = {"checkpoint.best_checkpoint_metric", "checkpoint.maximize_best_checkpoint_metric"}

_ROW = re.compile(r"^\| `(\w+)` \| `([\w.]+)` \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def deviations(recipe: str) -> dict[str, tuple[str, str, str]]:
    """Return field -> (here, published, reason) from the table of deviations in the family's README."""
    family, name = recipe.split("/")
    readme = (RECIPES / family / "README.md").read_text("utf-8")
    _, _, section = readme.partition("## Deviations from the published settings\n")
    section = section.partition("\n## ")[0]
    return {field: tuple(rest) for owner, field, *rest in _ROW.findall(section) if owner == name}


def shown(value: object) -> str:
    return OmegaConf.to_yaml(OmegaConf.create({"value": value})).removeprefix("value: ").strip()


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_settings_are_the_published_ones_or_the_difference_is_documented(recipe):
    config = load_yaml(RECIPES / f"{recipe}.yaml", "task.data=DATA")
    found = {field: OmegaConf.select(config, field) for field in PUBLISHED[recipe]}
    differing = {
        field: (shown(found[field]), shown(published))
        for field, published in PUBLISHED[recipe].items()
        if found[field] != published
    }
    documented = {field: row[:2] for field, row in deviations(recipe).items()}
    assert documented == differing
    assert all(reason for _, _, reason in deviations(recipe).values())


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_every_setting_of_a_recipe_was_compared(recipe):
    """With what is published, or it is listed above as free."""
    family, name = recipe.split("/")
    settings = OmegaConf.load(RECIPES / family / "settings" / f"{name}.yaml")
    stated = set(flat(OmegaConf.to_container(settings)))
    compared = PUBLISHED[recipe].keys() | {"task.tokens_per_sample"}  # the chunk size
    assert not stated - compared - _FREE - _OF_BATCH - _METRICS - _CHOSEN.get(recipe, set())


@pytest.mark.parametrize("model", VARIANTS)
def test_sizes_of_other_models_are_the_published_ones(model):
    found = (CLASSIFIER_PRESETS | LM_PRESETS)[model]
    expected = {field.removeprefix("model."): value for field, value in VARIANTS[model].items()}
    assert {field: found[field] for field in expected} == expected


@pytest.mark.parametrize("recipe", STREAMS)
def test_the_test_split_is_read_in_the_published_number_of_streams(recipe):
    script = (RECIPES / "lm" / f"{recipe}.sh").read_text("utf-8")
    assert re.search(rf"^EVALUATION=\(.*--segments {STREAMS[recipe]}\)$", script, re.MULTILINE)


def test_how_to_give_the_vocabulary_of_pg19_is_documented():
    readme = (RECIPES / "lm" / "README.md").read_text("utf-8")
    assert "cc_all.32000/sentencepiece.model" in readme
    assert prepare_pg19.MODEL in readme
