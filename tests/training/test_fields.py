"""Overrides of fields that there are not."""

from pathlib import Path

import pytest

import megalodon_tasks  # noqa: F401
from megalodon_tasks.errors import UserError
from megalodon_tasks.training import fields

LISTOPS = Path(__file__).parents[2] / "recipes" / "lra" / "listops.yaml"


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("model.chunck_size=3", "model.chunk_size"),
        ("optimization.max_updat=3", "optimization.max_update"),
        ("chekpoint.save_dir=x", "checkpoint.save_dir"),
        ("max_update=3", "optimization.max_update"),
        ("optimizer.weigth_decay=0", "optimizer.weight_decay"),
        ("lr_scheduler.warmup=9", "lr_scheduler.warmup_updates"),
        ("criterion.smoothing=0", "criterion.label_smoothing"),
        ("task.max_position=9", "task.max_positions"),
    ],
)
def test_a_misspelt_field_is_named_with_the_nearest(word, near):
    given = word.partition("=")[0]
    with pytest.raises(UserError, match=f"^{given}: there is no such field; did you mean .*{near}"):
        fields.check(LISTOPS, ["common.seed=2", word])


@pytest.mark.parametrize(
    "word",
    [
        "model.chunk_size=3", "model.cema_ndim=4", "task.data=a=b", "optimization.lr=[0.1]",
        "+model.anything=1", "~lr_scheduler", "++common.seed=1", "hydra.run.dir=x", "--multirun",
        "model._name=megalodon_lra_text", "ema.store_ema=true", "optimizer.adam_eps=1e-6",
    ],
)  # fmt: skip
def test_fields_that_there_are_pass(word):
    fields.check(LISTOPS, [word])


def test_fields_are_those_of_the_chosen_component():
    fields.check(LISTOPS, ["lr_scheduler._name=cosine", "lr_scheduler.min_lr=0"])
    with pytest.raises(UserError, match=r"lr_scheduler.min_lr: there is no such field"):
        fields.check(LISTOPS, ["lr_scheduler.min_lr=0"])
