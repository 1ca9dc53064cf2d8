"""Speech Commands from files to a number: the script, the demo's words and, slowly, the whole demo."""

import pytest

from megalodon_tasks.recipes.speech import demo_words
from megalodon_tasks.recipes.speech.speech_commands import TEN_WORDS
from tests.recipes.run_scripts import ROOT, option, run_demo

SCRIPT = ROOT / "recipes" / "speech" / "sc_raw.sh"
PREPARE = "recipes.speech.prepare_speech_commands"


def test_words_are_prepared_trained_on_and_evaluated_at_two_rates(script):
    done = script.run("my data", "run", "model.chunk_size=500", script=SCRIPT)
    assert done.returncode == 0, done.stderr
    prepare, train, half, full, plot = script.called()
    assert prepare == [PREPARE, "my data", "my data/prepared"]
    assert (option(train, "--config-name"), train[-1]) == ("sc_raw", "model.chunk_size=500")
    assert option(full, "--recipe") == "speech/sc_raw"
    assert "--time-step" not in full
    assert option(half, "--recipe") == "speech/sc_raw-half-rate"
    assert (option(half, "--task-override"), option(half, "--time-step")) == (
        "sample_rate=8000",
        "2",
    )
    assert plot == ["cli.report", "run", "--training-curve"]


def test_the_demo_speaks_its_own_words(script):
    assert script.run("--demo", "data", "run", script=SCRIPT).returncode == 0
    speak, prepare, train, half, full, _ = script.called()
    assert speak == ["recipes.speech.demo_words", "data/demo/raw"]
    assert prepare[:3] == [PREPARE, "data/demo/raw", "data/demo/prepared"]
    assert option(prepare, "--splits") == "official"
    assert option(train, "--config-name") == "sc_raw_demo"
    assert option(full, "--recipe") == "speech/sc_raw-demo"
    assert int(option(half, "--task-override").split("=")[1]) * 2 == int(
        option(prepare, "--sample-rate")
    )


def test_no_speaker_is_in_two_splits_and_every_word_is_in_all():
    found = demo_words.utterances()
    assert len({utterance.name for utterance in found}) == len(found)
    speakers = []
    for split in ("train", "valid", "test"):
        chosen = [utterance for utterance in found if utterance.split == split]
        speakers.append({utterance.voice.split("+")[1] for utterance in chosen})
        assert {utterance.word for utterance in chosen} == set(TEN_WORDS)
    assert len(set.union(*speakers)) == sum(map(len, speakers))


def test_a_missing_synthesiser_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        demo_words.main([str(tmp_path / "out"), "--workers", "1"])
    assert stopped.value.code == 2
    assert "apt-get install espeak-ng" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_learns(tmp_path):
    _, (half, full) = run_demo(SCRIPT, tmp_path)
    assert full["best_constant"] == 10.0
    assert full["value"] > 50.0
    assert (half["benchmark"], half["time_step"]) == ("speech/sc_raw-demo-half-rate", 2)
