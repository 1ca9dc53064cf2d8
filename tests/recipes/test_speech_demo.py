"""Speech Commands from files to a number: the demo's words and, slowly, the whole demo."""

import pytest

from megalodon_tasks.recipes.speech import demo_words
from megalodon_tasks.recipes.speech.speech_commands import TEN_WORDS
from tests.recipes.run_scripts import ROOT, run_demo

SCRIPT = ROOT / "recipes" / "speech" / "sc_raw.sh"


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
