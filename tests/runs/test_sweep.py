"""What a sweep consists of, and the file that says so."""

import pytest

from megalodon_tasks.errors import UserError
from megalodon_tasks.runs.sweep import (
    DONE,
    FAILED,
    FILE,
    WAITING,
    enter_sweep,
    grid,
    read_sweep,
)
from tests.runs.toy_sweep import toy_sweep


def test_the_grid_has_every_combination(tmp_path):
    sweep = toy_sweep(tmp_path)
    assert [run.name for run in sweep.runs] == [
        "chunk_size-64_seed-1", "chunk_size-64_seed-2",
        "chunk_size-full_seed-1", "chunk_size-full_seed-2",
    ]  # fmt: skip
    run = sweep.runs[2]
    assert run.folder == tmp_path / "sweep" / "runs" / run.name
    assert sweep.overrides(run) == ["model.dropout=0", "model.chunk_size=null", "common.seed=1"]


def test_fields_with_equal_last_names_keep_their_sections(tmp_path):
    (run,) = toy_sweep(tmp_path, "model.dropout=0", "task.dropout=1").runs
    assert run.name == "model.dropout-0_task.dropout-1"


ALIKE = [
    ["a.b=[1,12],[11,2]"],
    ["a.b=[1,1,2],[11,2],[1,12],[112]"],
    ["a.b='x y',xy,'x/y','x.y'"],
    ["a.b='1_c-2',1", "a.c=3,'2_c-3'"],
    ["a.b='(0.9, 0.98)','(0.9,0.98)'"],
    ["a.b=" + ",".join("x" * 300 + str(n) for n in range(3))],
    ["a.b=-1,1,+1,'1'"],
    ["a.b='ä','a'"],
]


@pytest.mark.parametrize("words", ALIKE)
def test_two_settings_never_share_a_name(tmp_path, words):
    runs = toy_sweep(tmp_path, *words).runs
    names = [run.name for run in runs]
    assert len(set(names)) == len(names) > 1
    assert all(len(name) < 200 and "/" not in name for name in names)
    # nor does a name depend on the other points
    for run in runs:
        word = [f"{field}={value}" for field, value in run.settings.items()]
        assert toy_sweep(tmp_path, points=[run.settings]).runs[0].name == run.name, word


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        (['{"status": 0, "sec{"status": 0, "seconds": 1.0}'], WAITING),
        (['{"status": 0, "seconds": 1.0}', '{"stat'], WAITING),
        (['{"stat', '{"status": 0, "seconds": 1.0}'], DONE),
        (["\0\0\0", '{"status": 3, "seconds": 1.0}'], FAILED),
        (["null", "[]", "3", '{"status": null}'], WAITING),
        (["\xff"], WAITING),
    ],
)
def test_a_torn_status_spoils_its_own_run_only(tmp_path, lines, state):
    sweep = enter_sweep(toy_sweep(tmp_path))
    run, other, *_ = sweep.runs
    for each, text in ((run, "\n".join(lines)), (other, '{"status": 0, "seconds": 2.0}')):
        each.job.mkdir(parents=True)
        each.attempts_file.write_bytes(text.encode("latin-1") + b"\n")
    assert (run.state, other.state) == (state, DONE)
    assert run.damaged_attempts > 0 == other.damaged_attempts


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("a.b=1", ["1"]),
        ("a.b=1,2,1", ["1", "2"]),
        ("a.b=range(1,4)", ["1", "2", "3"]),
        ("a.b=[0.1],[0.2,0.3]", ["[0.1]", "[0.2,0.3]"]),
        ("a.b='(0.9, 0.98)',null", ["'(0.9, 0.98)'", "null"]),
    ],
)
def test_values_are_those_of_hydras_grammar(word, values):
    assert grid([word]) == [{"a.b": value} for value in values]


@pytest.mark.parametrize("word", ["a.b", "a.b=1,,2", "a.b=(1,2", "a.b=interval(0,1)"])
def test_a_word_of_another_form_is_refused(word):
    with pytest.raises(UserError, match="write FIELD=VALUE,VALUE"):
        grid([word])


def test_a_sweep_is_read_back_and_can_grow(tmp_path):
    first = enter_sweep(toy_sweep(tmp_path))
    assert read_sweep(first.folder) == first
    second = toy_sweep(tmp_path, "model.chunk_size=128,64", "common.seed=1,3")
    grown = enter_sweep(second)
    assert grown.points[:4] == first.points
    assert [run.name for run in grown.runs[4:]] == [
        "chunk_size-128_seed-1", "chunk_size-128_seed-3", "chunk_size-64_seed-3",
    ]  # fmt: skip
    assert read_sweep(first.folder) == grown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "lra/text"}, "its recipe is 'toy/listops', not 'lra/text'"),
        ({"data": "elsewhere"}, "its data is"),
        ({"demo": True}, "its demo is False"),
        ({"generate": True}, "its generate is False, not True"),
        ({"fixed": {}}, "its fixed is"),
        ({"points": [{"common.seed": "1"}]}, r"its fields is ['model.chunk_size', 'common.seed']"),
    ],
)
def test_the_folder_of_another_sweep_is_refused(tmp_path, changes, message):
    sweep = enter_sweep(toy_sweep(tmp_path))
    before = (sweep.folder / FILE).read_bytes()
    with pytest.raises(UserError, match="holds another sweep") as caught:
        enter_sweep(toy_sweep(tmp_path, **changes))
    assert message in str(caught.value)
    assert (sweep.folder / FILE).read_bytes() == before


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something else than a sweep"):
        enter_sweep(toy_sweep(tmp_path))


def test_no_sweep_and_a_damaged_one_are_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no sweep: sweep\.json is missing"):
        read_sweep(tmp_path)
    (tmp_path / FILE).write_text('{"recipe": ')
    with pytest.raises(UserError, match="is damaged"):
        read_sweep(tmp_path)
