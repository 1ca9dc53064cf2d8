"""The effective batch of a recipe holds on any number of processes, and is recorded."""

import pytest
import torch
from omegaconf import OmegaConf

from megalodon_tasks.configuration import compose_configuration, recipes
from megalodon_tasks.errors import UserError
from megalodon_tasks.runs import record
from megalodon_tasks.training.effective_batch import batch_record, derived_update_freq
from tests.toy_plugin import runs


def settings(effective=None, update_freq=(1,), **dataset):
    dataset = {"batch_size": None, "max_tokens": None, **dataset}
    sections = {
        "task": {"effective_batch": effective},
        "dataset": dataset,
        "optimization": {"update_freq": list(update_freq)},
    }
    return OmegaConf.create(sections)


@pytest.mark.parametrize(
    ("processes", "limit", "effective", "expected"),
    [
        (1, {"batch_size": 2}, 128, 64),
        (8, {"batch_size": 2}, 128, 8),
        (8, {"batch_size": 128, "max_tokens": 100}, 1024, 1),
        (1, {"max_tokens": 8192}, 65536, 8),
        (4, {"max_tokens": 8192}, 65536, 2),
    ],
)
def test_update_freq_follows_from_the_processes(processes, limit, effective, expected):
    cfg = settings(effective, **limit)
    assert derived_update_freq(cfg, processes) == [expected]
    cfg.optimization.update_freq = [expected]
    batch = batch_record(cfg, processes)
    assert (batch.effective_batch, batch.processes) == (effective, processes)
    assert batch.effective_batch_unit == ("items" if "batch_size" in limit else "tokens")


@pytest.mark.parametrize(
    ("processes", "limit", "effective", "message"),
    [
        (8, {"batch_size": 64}, 64, "batch=64 is no multiple of 512.*set dataset.batch_size to 8"),
        (
            3,
            {"batch_size": 25},
            50,
            "=50 is no multiple of 75, .*=25 on each of 3.*that divides it",
        ),
        (
            1,
            {"max_tokens": 1000},
            1500,
            "=1500 is no multiple of 1000.*set dataset.max_tokens to 15",
        ),
        (1, {"batch_size": 4}, 0, "effective_batch=0 is no multiple of 4"),
    ],
)
def test_what_does_not_divide_is_refused_with_both_numbers(processes, limit, effective, message):
    with pytest.raises(ValueError, match=message):
        derived_update_freq(settings(effective, **limit), processes)


def test_an_update_freq_that_says_otherwise_is_refused():
    with pytest.raises(ValueError, match=r"update_freq=\[4\] contradicts .*=64: .* makes 2; leave"):
        derived_update_freq(settings(64, [4], batch_size=32), 1)
    assert derived_update_freq(settings(64, [2], batch_size=32), 1) == [2]
    assert derived_update_freq(settings(None, [4, 2], batch_size=32), 1) == [4, 2]
    assert batch_record(settings(None, [4, 2], batch_size=32), 1).effective_batch is None


def test_a_run_trains_with_it_and_records_it(tmp_path):
    derived = runs.train(tmp_path / "derived", "--effective-batch", "12")
    given = runs.train(tmp_path / "given", "--update-freq", "2")
    assert derived == given
    runs.assert_equal(runs.state_of(tmp_path / "derived"), runs.state_of(tmp_path / "given"))
    for folder in (tmp_path / "derived", tmp_path / "given"):
        saved = torch.load(folder / "checkpoint_last.pt")["extra_state"]
        for source in (record.read_run(folder).start, saved):
            assert (source["effective_batch"], source["processes"]) == (12, 1)
            assert source["effective_batch_unit"] == "items"


def test_a_run_that_does_not_divide_ends_before_it_starts(tmp_path):
    with pytest.raises(UserError, match="task.effective_batch=32 is no multiple of 6"):
        runs.train(tmp_path, "--effective-batch", "32")
    assert not list(tmp_path.glob("*.pt"))


CONFIGURATIONS = [(recipe, demo) for recipe in recipes() for demo in (False, True)]


@pytest.mark.parametrize(("recipe", "demo"), CONFIGURATIONS, ids=str)
def test_every_recipe_states_it_for_one_process(recipe, demo):
    cfg = compose_configuration(recipe.script.parent, recipe.config_name(demo))
    assert list(cfg.optimization.update_freq) == [1]
    (frequency,) = derived_update_freq(cfg, 1)
    assert frequency == 1 or not demo


PUBLISHED_ON_8 = {
    "lra/pathx": 8, "imagenet/imagenet": 1, "lm/enwik8": 1, "lm/wikitext103": 3, "lm/pg19": 1,
}  # fmt: skip


@pytest.mark.parametrize(("name", "frequency"), PUBLISHED_ON_8.items())
def test_recipes_for_8_gpus_run_on_them_as_published(name, frequency):
    (recipe,) = [recipe for recipe in recipes() if recipe.id == name]
    cfg = compose_configuration(recipe.script.parent, recipe.config_name(demo=False))
    assert derived_update_freq(cfg, 8) == [frequency]
