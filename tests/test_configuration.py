"""Recipes, their configurations, and overrides that name fields."""

import pytest

import megalodon_tasks  # noqa: F401
from megalodon_tasks import configuration
from megalodon_tasks.configuration import (
    check_fields,
    compose_configuration,
    training_configuration,
)
from megalodon_tasks.errors import UserError


@pytest.fixture
def listops():
    return configuration.find_recipe("lra/listops")


@pytest.fixture
def listops_config(listops):
    return listops.script.parent, listops.config_name(demo=False)


def test_a_recipe_is_found_by_id_name_and_script(listops):
    assert listops.script.name == "listops.sh"
    for name in ("listops", str(listops.script)):
        assert configuration.find_recipe(name) == listops


def test_a_recipe_of_the_users_own_is_found_by_its_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.sh").touch()
    with pytest.raises(UserError, match=r"recipe './toy.sh' is unknown"):
        configuration.find_recipe("./toy.sh")
    (tmp_path / "toy.yaml").touch()
    recipe = configuration.find_recipe("./toy.sh")
    assert (recipe.id, recipe.script) == (f"{tmp_path.name}/toy", tmp_path / "toy.sh")


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"'lra/listop' is unknown; choose one of .*lra/listops"):
        configuration.find_recipe("lra/listop")


@pytest.mark.parametrize("demo", [False, True])
def test_a_configuration_has_yaml_overrides_and_defaults(listops, demo):
    overrides = ["task.data=D", "model.chunk_size=null", "optimization.lr=[0.01]"]
    overrides += ["model.norm_num_groups=4"]  # not written in the YAML
    config = training_configuration(listops.script.parent, listops.config_name(demo), overrides)
    assert config.model.chunk_size is None
    assert config.optimization.lr == [0.01]
    assert config.model.norm_num_groups == 4
    assert config.task.benchmark == "listops"
    assert config.optimizer.adam_eps == 1e-8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.chunk_size=half", "could not be converted to Integer"),
        ("model.chunk_size=0", "chunk_size=0"),
        ("model.num_heads=3", "does not divide"),
        ("model.chunk_size=[", "no viable alternative"),
    ],
)
def test_values_that_no_run_can_have_are_refused(listops_config, override, message):
    with pytest.raises(UserError) as caught:
        training_configuration(*listops_config, ["task.data=D", override])
    assert message in str(caught.value)
    assert override in str(caught.value)


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("model.chunck_size=3", "model.chunk_size"),
        ("chunk_size=3", "model.chunk_size"),
        ("modell.z_dim=3", "model.z_dim"),
        ("optimization.max_updat=3", "optimization.max_update"),
        ("chekpoint.save_dir=x", "checkpoint.save_dir"),
        ("max_update=3", "optimization.max_update"),
        ("optimizer.weigth_decay=0", "optimizer.weight_decay"),
        ("lr_scheduler.warmup=9", "lr_scheduler.warmup_updates"),
        ("criterion.smoothing=0", "criterion.label_smoothing"),
        ("task.max_position=9", "task.max_positions"),
    ],
)
def test_a_misspelt_field_is_named_with_the_nearest(listops_config, word, near):
    given = word.partition("=")[0]
    with pytest.raises(UserError, match=f"^{given}: there is no such field; did you mean .*{near}"):
        check_fields(*listops_config, ["common.seed=2", word])


@pytest.mark.parametrize(
    "word",
    [
        "model.chunk_size=3", "model.cema_ndim=4", "task.data=a=b", "optimization.lr=[0.1]",
        "+model.anything=1", "~lr_scheduler", "++common.seed=1", "hydra.run.dir=x", "--multirun",
        "model._name=megalodon_lra_text", "ema.store_ema=true", "optimizer.adam_eps=1e-6",
    ],
)  # fmt: skip
def test_known_fields_pass(listops_config, word):
    check_fields(*listops_config, [word])


def test_fields_are_those_of_the_chosen_component(listops_config):
    check_fields(*listops_config, ["lr_scheduler._name=cosine", "lr_scheduler.min_lr=0"])
    with pytest.raises(UserError, match=r"lr_scheduler.min_lr: there is no such field"):
        check_fields(*listops_config, ["lr_scheduler.min_lr=0"])


@pytest.mark.parametrize("content", [bytes(300), b"\x89PNG\r\n\xaf", b"a: [1, 2", b"a: 'b"])
def test_a_file_that_is_no_yaml_is_named(tmp_path, content):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path / 'mine.yaml'}, or a file it names, is not"):
        compose_configuration(tmp_path, "mine")
