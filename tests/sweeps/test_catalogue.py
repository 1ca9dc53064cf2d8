import pytest

from megalodon_tasks.sweeps import catalogue


@pytest.fixture
def listops():
    return catalogue.find("lra/listops")


def test_a_recipe_is_found_by_id_name_and_script(listops):
    assert catalogue.find("listops") == catalogue.find(str(listops.script)) == listops
    assert listops.script.name == "listops.sh"


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'lra/listop' is unknown; choose one of .*lra/listops"):
        catalogue.find("lra/listop")


@pytest.mark.parametrize("demo", [False, True])
def test_settings_of_the_recipe_are_taken(listops, demo):
    settings = {"model.chunk_size": "null", "common.seed": "3", "optimization.lr": "[0.01]"}
    catalogue.check(listops, demo, settings)
    catalogue.check(listops, demo, {"model.norm_num_groups": "4"})  # not written in the YAML


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.chunk_sise", "3", "no such field; did you mean model.chunk_size"),
        ("chunk_size", "3", "did you mean model.chunk_size"),
        ("modell.z_dim", "3", "did you mean model.z_dim"),
        ("model.chunk_size", "half", "could not be converted to Integer"),
        ("model.chunk_size", "0", "chunk_size=0"),
        ("model.num_heads", "3", "does not divide"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(listops, field, value, message):
    with pytest.raises(ValueError, match=".") as caught:
        catalogue.check(listops, False, {field: value})
    assert message in str(caught.value)
