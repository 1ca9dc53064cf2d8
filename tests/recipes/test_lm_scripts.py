"""The demos of the language models, from nothing to a sample; slow."""

import pytest

from tests.recipes.run_scripts import ROOT, run_demo

SCRIPTS = {
    name: ROOT / "recipes" / "lm" / f"{name}.sh" for name in ("wikitext103", "enwik8", "pg19")
}

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


@pytest.mark.slow
def test_instructions_are_followed_on_unseen_words(tmp_path):
    printed, (record,) = run_demo(ROOT / "recipes" / "lm" / "instruct.sh", tmp_path)
    assert (record["metric"], record["split"]) == ("exact", "test")
    assert record["value"] >= 95.0
    assert f"answers in {tmp_path / 'run' / 'answers-test.tsv'}" in printed
