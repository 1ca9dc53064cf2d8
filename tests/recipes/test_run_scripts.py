"""The run scripts: what they call, in which order, with which folders, and how they end.

An interpreter that only writes down its arguments stands in for Python.
"""

import shutil

import pytest

from tests.recipes.run_scripts import LISTOPS, ROOT, option

RECIPES = ROOT / "recipes"
SCRIPTS = {
    f"{path.parent.name}/{path.stem}": path
    for path in sorted(RECIPES.glob("*/*.sh"))
    if path.with_suffix(".yaml").exists()
}
GENERATED = ("lra/listops", "lra/pathfinder", "lra/pathx")
METRICS = {
    "lm/wikitext103": "perplexity",
    "lm/enwik8": "bits_per_byte",
    "lm/pg19": "word_perplexity",
}
TRANSLATION = "translation/wmt16_en_de"
OTHERS = {
    **dict.fromkeys(METRICS, "evaluate-lm"),
    TRANSLATION: "evaluate-translation",
    "lm/instruct": "evaluate-answers",
}
TRAIN, EVALUATE, REPORT = "train", "evaluate", "report"


def names(calls):
    return [call[0] for call in calls]


def test_all_recipes_have_a_script():
    assert len(SCRIPTS) == len(list(RECIPES.glob("*/*_demo.yaml"))) == 13


def test_does_everything_in_order(script):
    done = script.run("my data", "my run", "optimization.max_update=20", "dataset.batch_size=4")
    assert done.returncode == 0, done.stderr
    prepare, train, evaluate, report = script.called()
    assert prepare == ["prepare", "lra/listops", "my data", "my data/prepared", "--if-missing"]
    assert train == [
        TRAIN, "--config-dir", str(LISTOPS.parent), "--config-name", "listops",
        "--data", "my data/prepared", "--save-dir", "my run",
        "optimization.max_update=20", "dataset.batch_size=4",
    ]  # fmt: skip
    assert evaluate == [
        EVALUATE, "my run/checkpoint_best.pt", "--data", "my data/prepared", "--split", "test",
        "--recipe", "lra/listops", "--results", "my run/results.jsonl",
        "--predictions", "my run/predictions.csv", "--confusion", "my run/confusion.png",
        "--by-length", "my run/accuracy_by_length.csv",
        "--by-class", "my run/accuracy_by_class.csv",
    ]  # fmt: skip
    assert report == [REPORT, "my run", "--training-curve", "my run/training_curve.png"]


@pytest.mark.parametrize("recipe", SCRIPTS)
def test_every_script_trains_and_evaluates_its_recipe(script, recipe):
    done = script.run("my data", "run", "model.chunk_size=128", script=SCRIPTS[recipe])
    assert done.returncode == 0, done.stderr
    prepare, train, *_, evaluate, report = script.called()
    assert prepare == ["prepare", recipe, "my data", "my data/prepared", "--if-missing"]
    assert option(train, "--config-dir") == str(SCRIPTS[recipe].parent)
    assert option(train, "--config-name") == SCRIPTS[recipe].stem
    assert train[-1] == "model.chunk_size=128"
    assert evaluate[:2] == [OTHERS.get(recipe, EVALUATE), "run/checkpoint_best.pt"]
    assert (option(evaluate, "--recipe"), option(evaluate, "--split")) == (recipe, "test")
    if recipe in METRICS:
        assert option(evaluate, "--metric") == METRICS[recipe]
    assert report[0] == REPORT


@pytest.mark.parametrize("recipe", SCRIPTS)
def test_a_demo_has_its_own_data_and_name(script, recipe):
    assert script.run("--demo", "data", "run", script=SCRIPTS[recipe]).returncode == 0
    prepare, train, *others = script.called()
    folder = "data/demo/prepared"
    assert prepare == ["prepare", recipe, "data/demo", folder, "--if-missing", "--demo"]
    assert option(train, "--config-name") == f"{SCRIPTS[recipe].stem}_demo"
    assert option(train, "--data") == folder
    evaluations = [call for call in others if call[0].startswith(EVALUATE)]
    assert option(evaluations[-1], "--recipe") == f"{recipe}-demo"
    samples = [call for call in others if call[0] == "sample"]
    assert len(samples) == (recipe in METRICS)


@pytest.mark.parametrize(("asked", "threads"), [("", "1"), ("2", "2")])
def test_a_demo_takes_one_thread_unless_told_otherwise(script, asked, threads):
    script.run("--demo", "data", "run", OMP_NUM_THREADS=asked)
    assert set(script.threads()) == {threads}


def test_words_are_evaluated_at_two_sampling_rates(script):
    for options, rate in (((), "8000"), (("--demo",), "2000")):
        script.run(*options, "data", "run", script=SCRIPTS["speech/sc_raw"])
        half, full = [call for call in script.called() if call[0] == EVALUATE]
        assert option(half, "--recipe") == option(full, "--recipe") + "-half-rate"
        assert option(half, "--task-override") == f"sample_rate={rate}"
        assert option(half, "--time-step") == "2"
        assert "--time-step" not in full


def test_a_translation_demo_is_evaluated_on_longer_sequences_too(script):
    script.run("--demo", "data", "run", script=SCRIPTS[TRANSLATION])
    longer, same = [call for call in script.called() if call[0] == "evaluate-translation"]
    assert option(longer, "--split") == "test1"
    assert option(longer, "--recipe") == option(same, "--recipe") + "-twice-as-long"
    script.run("data", "run", script=SCRIPTS[TRANSLATION])
    (call,) = [call for call in script.called() if call[0] == "evaluate-translation"]
    assert (option(call, "--lenpen"), option(call, "--remove-bpe")) == ("0.5", "@@ ")


def test_the_folder_that_the_preparation_prints_is_taken(script):
    assert script.run("data", "run", FOLDER="some where/prepared before").returncode == 0
    _, train, evaluate, _ = script.called()
    assert option(train, "--data") == option(evaluate, "--data") == "some where/prepared before"


@pytest.mark.parametrize("recipe", GENERATED)
def test_data_is_generated_where_asked(script, recipe):
    assert (
        script.run("prepare", "--generate", "data", "run", script=SCRIPTS[recipe]).returncode == 0
    )
    (prepare,) = script.called()
    assert prepare[-2:] == ["--if-missing", "--generate"]


@pytest.mark.parametrize("recipe", sorted(set(SCRIPTS) - set(GENERATED)))
def test_there_is_no_synthetic_data_for_others(script, recipe):
    done = script.run("--generate", "data", "run", script=SCRIPTS[recipe])
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: there is no synthetic data for {recipe}\n")
    assert "--generate" not in done.stderr
    assert script.called() == []


@pytest.mark.parametrize(
    ("word", "commands"),
    [("prepare", ["prepare"]), ("train", ["prepare", TRAIN]),
     ("evaluate", ["prepare", EVALUATE, REPORT])],
)  # fmt: skip
def test_a_first_word_does_that_part(script, word, commands):
    script.run("data", "run")
    assert script.run(word, "data", "run").returncode == 0
    assert names(script.called()) == commands


@pytest.mark.parametrize(("command", "status"), [("prepare", 2), (TRAIN, 1), (TRAIN, 130)])
def test_nothing_is_done_after_a_failure(script, command, status):
    done = script.run("data", "run", FAILING=command, STATUS=str(status))
    assert done.returncode == status
    assert names(script.called()) == ["prepare", TRAIN][: 1 + (command == TRAIN)]


def test_evaluating_before_training_is_refused_before_anything_is_done(script):
    done = script.run("evaluate", "data", "run")
    assert done.returncode == 1
    assert done.stderr == "error: run/checkpoint_best.pt does not exist: train first\n"
    assert script.called() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "DATA_DIR and SAVE_DIR are needed"),
        (["data"], "DATA_DIR and SAVE_DIR are needed"),
        (["data", ""], "DATA_DIR or SAVE_DIR is empty"),
        (["data", "run", "train"], "'train' is not an override: write key=value"),
        (["data", "run", "--fast"], "unknown option --fast"),
        (["evaluate", "data", "run", "model.dim=3"], "'evaluate' takes none (it got model.dim=3)"),
        (["--demo", "--generate", "data", "run"], "--demo brings its own data"),
    ],
)
def test_wrong_usage_is_explained(script, arguments, message):
    done = script.run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[0]
    assert "usage: listops.sh [options]" in done.stderr
    assert script.called() == []


@pytest.mark.parametrize("recipe", SCRIPTS)
def test_help_goes_to_standard_output_and_says_what_data_is_read(script, recipe):
    done = script.run("--help", script=SCRIPTS[recipe])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {SCRIPTS[recipe].name}")
    assert "DATA_DIR holds" in done.stdout


def test_an_interpreter_without_what_is_needed_is_named(script):
    done = script.run("data", "run", MISSING="torch fairseq")
    assert done.returncode == 1
    assert f"error: {script.python} lacks: torch fairseq; run 'make venv'" in done.stderr


def test_the_interpreter_of_the_checkout_comes_before_the_one_on_the_path(script, tmp_path):
    checkout = tmp_path / "check out"
    (checkout / "recipes").mkdir(parents=True)
    shutil.copy(ROOT / "recipes" / "run.sh", checkout / "recipes")
    shutil.copytree(LISTOPS.parent, checkout / "recipes" / "lra", symlinks=True)
    (checkout / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(script.python, checkout / ".venv" / "bin" / "python")
    copied = checkout / "recipes" / "lra" / "listops.sh"
    assert script.run("data", "run", script=copied, PYTHON="").returncode == 0
    assert names(script.called())[-1] == REPORT
