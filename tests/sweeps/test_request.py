import dataclasses

import pytest

from megalodon_tasks.sweeps import request
from megalodon_tasks.sweeps.request import Request


def test_the_grid_has_every_combination(asked):
    names = [run.name for run in asked.runs()]
    assert names == [
        "chunk_size-64_seed-1", "chunk_size-64_seed-2",
        "chunk_size-full_seed-1", "chunk_size-full_seed-2",
    ]  # fmt: skip
    assert asked.overrides(asked.runs()[2]) == [
        "model.dropout=0", "model.chunk_size=null", "common.seed=1",
    ]  # fmt: skip


def test_fields_with_equal_last_names_keep_their_sections():
    axes = {"model.dropout": ["0"], "task.dropout": ["1"]}
    (run,) = Request("r", "d", False, {}, axes).runs()
    assert run.name == "model.dropout-0_task.dropout-1"


@pytest.mark.parametrize("words", [["0"], ["-3"], ["big"], ["64", "6.4"], [""]])
def test_what_is_no_chunk_size_is_refused(words):
    with pytest.raises(ValueError, match="is no chunk size"):
        request.chunk_sizes(words)


def test_chunk_sizes_and_seeds_are_read():
    assert request.chunk_sizes(["064", "full"]) == ["64", "null"]
    assert request.seeds(["0", "12"]) == ["0", "12"]
    with pytest.raises(ValueError, match="'x' is no seed"):
        request.seeds(["1", "x"])


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("a.b=1,2", ["1", "2"]),
        ("a.b=[0.1],[0.2,0.3]", ["[0.1]", "[0.2,0.3]"]),
        ("a.b='(0.9, 0.98)',null", ["'(0.9, 0.98)'", "null"]),
    ],
)
def test_an_axis_is_split_at_its_own_commas(word, values):
    assert request.axis(word) == ("a.b", values)


@pytest.mark.parametrize("word", ["a.b", "=1", "a.b=", "a.b=1,,2"])
def test_an_axis_without_values_is_refused(word):
    with pytest.raises(ValueError, match="write field=value,value"):
        request.axis(word)


def test_a_sweep_is_read_back_and_can_grow(asked, tmp_path):
    assert request.read(tmp_path / "sweep") == asked
    axes = {"model.chunk_size": ["128", "64"], "common.seed": ["1", "2", "3"]}
    grown = request.enter(tmp_path / "sweep", dataclasses.replace(asked, axes=axes))
    assert grown.axes["model.chunk_size"] == ["64", "null", "128"]
    assert grown.axes["common.seed"] == ["1", "2", "3"]
    assert request.read(tmp_path / "sweep") == grown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "lra/text"}, "its recipe is 'lra/listops', wanted 'lra/text'"),
        ({"data": "elsewhere"}, "its data is"),
        ({"demo": True}, "its demo is False"),
        ({"fixed": {}}, "its fixed is"),
        ({"axes": {"common.seed": ["1"]}}, "it varies model.chunk_size, common.seed"),
    ],
)
def test_the_folder_of_another_sweep_is_refused(asked, tmp_path, changes, message):
    before = (tmp_path / "sweep" / request.FILE).read_bytes()
    with pytest.raises(ValueError, match="holds another sweep") as caught:
        request.enter(tmp_path / "sweep", dataclasses.replace(asked, **changes))
    assert message in str(caught.value)
    assert (tmp_path / "sweep" / request.FILE).read_bytes() == before


def test_a_folder_with_something_else_is_refused(asked, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and holds no sweep"):
        request.enter(tmp_path / "mine", asked)


def test_no_sweep_and_a_damaged_one_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no sweep: sweep\.json is missing"):
        request.read(tmp_path)
    (tmp_path / request.FILE).write_text('{"recipe": ')
    with pytest.raises(ValueError, match="is damaged"):
        request.read(tmp_path)
