"""The translation recipe: the demo's pairs, the preparation, and the evaluation's record."""

import json
import random

import pytest
import torch

from megalodon_tasks.cli import prepare
from megalodon_tasks.cli.main import main
from megalodon_tasks.data.manifest import Manifest
from megalodon_tasks.errors import UserError
from megalodon_tasks.recipes.translation import demo_numbers
from tests.recipes.test_translation_commands import train

RECIPE = "translation/wmt16_en_de"
OPTIONS = ["--train", "train", "--valid", "valid", "--test", "test", "test1"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (1_000, "one thousand"),
        (20_017, "twenty thousand seventeen"),
        (999_999, "nine hundred ninety nine thousand nine hundred ninety nine"),
    ],
)
def test_numbers_are_spelt(number, words):
    assert demo_numbers.in_words(number) == words.split()


def test_numbers_out_of_range_are_refused():
    for number in (-1, 1_000_000):
        with pytest.raises(ValueError, match=f"number {number} is not in 0 to 999,999"):
            demo_numbers.in_words(number)


def test_pairs_are_the_same_for_a_seed_and_longer_in_the_second_test():
    assert demo_numbers.draw_split("test", 20) == demo_numbers.draw_split("test", 20)
    assert demo_numbers.draw_split("test", 20) != demo_numbers.draw_split("valid", 20)
    pairs = demo_numbers.draw_split("test1", 20)
    assert {source.count(",") + 1 for source, _ in pairs} == {2 * demo_numbers.NUMBERS}
    assert {source.split()[0] for source, _ in pairs} == {"words", "digits"}


def test_both_directions_say_the_same():
    for seed in range(20):
        source, target = demo_numbers.draw_pair(random.Random(seed), 2)
        kind, words = source.split(" ", 1)
        digits, spelt = (target, words) if kind == "words" else (words, target)
        values = [int(number.replace(" ", "")) for number in digits.split(" , ")]
        assert spelt == " , ".join(" ".join(demo_numbers.in_words(value)) for value in values)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo_numbers.PAIRS, "train", 60)
        demo_numbers.main([str(folder / "raw")])
    for path in (folder / "raw").glob("[vt]*[td1].*"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]))
    words = [RECIPE, str(folder / "raw"), str(folder / "prepared"), *OPTIONS]
    assert prepare.main(words) == 0
    return folder / "prepared"


def test_prepared_data_has_a_manifest_and_is_taken_as_it_is(prepared, capsys):
    manifest = Manifest.read(prepared, "pairs")
    assert {name: counts["items"] for name, counts in manifest.splits.items()} == {
        "train": 60, "valid": 8, "test": 8, "test1": 8,
    }  # fmt: skip
    assert manifest.source["origin"] == "text"
    for words in ([str(prepared), "OUT"], [str(prepared.parent), str(prepared), "--if-missing"]):
        assert prepare.main([RECIPE, *words]) == 0
        assert capsys.readouterr().out == f"{prepared}\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: (raw / "valid.de").unlink(), "valid.de is missing; the folder needs it"),
        (lambda raw: (raw / "test.de").write_text("1\n"), "test.en has 8 lines and test.de has 1"),
        (lambda raw: [p.write_text("") for p in raw.glob("test.*")], "test.en has 0 lines"),
    ],
)
def test_incomplete_text_is_refused(prepared, tmp_path, change, message):
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in (prepared.parent / "raw").iterdir():
        (raw / path.name).write_text(path.read_text())
    change(raw)
    with pytest.raises(ValueError, match=message):
        prepare.main([RECIPE, str(raw), str(tmp_path / "out"), *OPTIONS])
    assert not (tmp_path / "out").exists()


def test_an_evaluation_records_its_search_and_the_translations(prepared, tmp_path, capsys):
    train(prepared, tmp_path, "--share-all-embeddings", "--max-update", "2")
    words = ["evaluate-translation", str(tmp_path / "checkpoint_last.pt"), "--cpu", "--beam", "2"]
    words += ["--max-len-b", "6", "--metric", "exact", "--recipe", f"{RECIPE}-demo"]
    assert main(words) == 0
    record = json.loads((tmp_path / "results.jsonl").read_text())
    assert (record["metric"], record["n"], record["search"]["beam"]) == ("exact", 8, 2)
    assert record["measures"]["exact"] == record["value"] == 0
    assert record["loss"] > 0
    assert record["data"]["manifest"] == Manifest.read(prepared).digest
    lines = (tmp_path / "translations-test.tsv").read_text().splitlines()
    assert lines[0] == "number\tsource\treference\ttranslation"
    raw = (prepared.parent / "raw" / "test.en").read_text().splitlines()
    read = [line.split("\t")[1] for line in lines[1:]]
    assert len(read) == 8
    # The few training pairs leave some words unknown.
    assert all(line == text for line, text in zip(read, raw, strict=True) if "<unk>" not in line)
    assert raw[0] in read
    assert "BLEU 0.00, exact 0.0 %" in capsys.readouterr().out


def test_inspect_draws_cross_attention(prepared, tmp_path, capsys):
    train(prepared, tmp_path, "--share-all-embeddings", "--max-update", "1")
    words = ["inspect", str(tmp_path / "checkpoint_last.pt"), "--reach", "8", "--item", "1"]
    assert main(words) == 0
    written = {path.name for path in tmp_path.glob("*.png")}
    assert written == {"kernels.png", "attention.png", "gates.png", "cross_attention.png"}
    assert "cross_attention.png" in capsys.readouterr().out


def test_other_models_are_no_translators(tmp_path, monkeypatch):
    from megalodon_tasks.evaluation import checkpoint, translation

    other = checkpoint.Trained(
        tmp_path / "c.pt", None, None, torch.nn.Linear(1, 1), None, 0, 0, torch.device("cpu"), None
    )
    with pytest.raises(UserError, match="holds a Linear, no encoder-decoder"):
        translation.evaluate(other, "test", translation.Search())
