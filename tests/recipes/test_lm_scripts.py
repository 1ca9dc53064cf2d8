"""The run scripts of the language models: what they call; and, slowly, the whole demos."""

import pytest

from tests.recipes.run_scripts import ROOT, option, run_demo

SCRIPTS = {
    name: ROOT / "recipes" / "lm" / f"{name}.sh" for name in ("wikitext103", "enwik8", "pg19")
}
TRAIN, EVALUATE, SAMPLE, PLOT = "cli.train", "cli.evaluate_lm", "cli.sample", "runs.plot"
METRICS = {"wikitext103": "perplexity", "enwik8": "bits_per_byte", "pg19": "word_perplexity"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_prepares_trains_and_evaluates_on_documents(script, name):
    done = script.run("data", "run", "optimization.max_update=3", script=SCRIPTS[name])
    assert done.returncode == 0, done.stderr
    prepare, train, evaluate, plot = script.called()
    assert prepare == [f"recipes.lm.prepare_{name}", "data", "data/prepared"]
    assert option(train, "--config-name") == name
    assert train[-1] == "optimization.max_update=3"
    assert evaluate[:2] == [EVALUATE, "run/checkpoint_best.pt"]
    assert option(evaluate, "--data") == "data/prepared"
    assert option(evaluate, "--recipe") == f"lm/{name}"
    assert option(evaluate, "--metric") == METRICS[name]
    assert plot == [PLOT, "run"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_demo_makes_its_own_text_and_shows_a_sample(script, name):
    assert script.run("--demo", "data", "run", script=SCRIPTS[name]).returncode == 0
    text, prepare, train, evaluate, sample, _ = script.called()
    assert text[:2] == ["recipes.lm.python_topics", "data/demo/text"]
    assert prepare[1:3] == ["data/demo/text", "data/demo/prepared"]
    assert option(train, "--config-name") == f"{name}_demo"
    assert option(evaluate, "--recipe") == f"lm/{name}-demo"
    assert sample[:2] == [SAMPLE, "run/checkpoint_best.pt"]
    assert ("--compressors" in evaluate) == (name == "enwik8")


@pytest.mark.parametrize(("asked", "threads"), [("", "1"), ("2", "2")])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_demo_takes_one_thread_unless_told_otherwise(script, name, asked, threads):
    script.run("--demo", "data", "run", script=SCRIPTS[name], OMP_NUM_THREADS=asked)
    assert set(script.threads()) == {threads}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("files", [("manifest.json",), ("dict.txt", "train.idx")])
def test_prepared_data_is_taken_as_it_is(script, name, files):
    (script.folder / "data").mkdir()
    for file in files:
        (script.folder / "data" / file).touch()
    script.run("train", "data", "run", script=SCRIPTS[name])
    (train,) = script.called()
    assert option(train, "--data") == "data"


def test_pg19_takes_a_given_vocabulary(script):
    (script.folder / "data").mkdir()
    (script.folder / "data" / "sentencepiece.model").touch()
    script.run("prepare", "data", "run", script=SCRIPTS["pg19"])
    (prepare,) = script.called()
    assert option(prepare, "--sentencepiece-model") == "data/sentencepiece.model"


# What a model that has learned nothing but the frequencies of its symbols would not reach.
LEARNED = {"wikitext103": 120.0, "enwik8": 2.2, "pg19": 60.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_demo_learns(tmp_path, name):
    printed, (record,) = run_demo(SCRIPTS[name], tmp_path)
    reached = record["measures"]["bits_per_byte" if name == "enwik8" else "perplexity"]
    assert reached < LEARNED[name]
    if name == "enwik8":
        assert reached < record["compressors"]["bz2 -9"]
    for file in ("context_length.csv", "context_length.png", "training_curve.png"):
        assert (tmp_path / "run" / file).stat().st_size > 100
    assert "a sample at temperature 0.7:" in printed
