"""Data of fairseq's translation task that does not fit its dictionaries, or is not there."""

import shutil

import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.tasks.translation import TranslationConfig, TranslationTask

import megalodon_tasks  # noqa: F401
from megalodon_tasks.data.manifest import Manifest, sha256_of
from megalodon_tasks.errors import UserError

SYMBOLS = ("a", "b", "c")  # after the four special ones


def write_pairs(folder, source, target):
    """Write a split of one pair of token numbers, as fairseq-preprocess does."""
    for language, tokens in (("en", source), ("de", target)):
        (folder / f"dict.{language}.txt").write_text("".join(f"{s} 1\n" for s in SYMBOLS))
        path = folder / f"train.en-de.{language}"
        builder = MMapIndexedDatasetBuilder(f"{path}.bin")
        builder.add_item(torch.tensor(tokens))
        builder.finalize(f"{path}.idx")
    config = TranslationConfig(data=str(folder), dataset_impl="mmap", train_subset="train")
    return TranslationTask.setup_task(config)


@pytest.mark.parametrize(("source", "target"), [([6, 7, 2], [5, 2]), ([6, 2], [5, 9, 2])])
def test_a_token_that_the_dictionary_lacks_is_refused(tmp_path, source, target):
    wrong = max(source + target)
    with pytest.raises(UserError, match=f"token {wrong} is out of range: .* has 7 symbols"):
        write_pairs(tmp_path, source, target).load_dataset("train")


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_tokens_of_the_dictionary_are_read(tmp_path):
    task = write_pairs(tmp_path, [6, 2], [4, 5, 2])
    task.load_dataset("train")
    assert task.datasets["train"][0]["target"].tolist() == [4, 5, 2]


@pytest.mark.parametrize("content", ["b one\n", "b\n", "b 1\nb 1\n"])
def test_a_damaged_dictionary_is_named_with_its_line(tmp_path, content):
    write_pairs(tmp_path, [6, 2], [4, 2])
    (tmp_path / "dict.de.txt").write_text("a 1\n" + content)
    with pytest.raises(UserError, match=r"dict.de.txt, line [23]"):
        TranslationTask.setup_task(TranslationConfig(data=str(tmp_path)))


@pytest.mark.parametrize("data", [None, ""])
def test_no_folder_is_refused(data):
    with pytest.raises(UserError, match="task.data=.* names no folder of pairs"):
        TranslationTask.setup_task(TranslationConfig(data=data))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"eval_bleu": True, "eval_bleu_detok": ""}, "eval_bleu_detok='': there is no such"),
        ({"eval_bleu": True, "eval_bleu_detok": "mose"}, "known are moses, nltk, space"),
        ({"eval_bleu_remove_bpe": "seven"}, "eval_bleu_remove_bpe='seven' is unknown"),
    ],
)
def test_unknown_words_of_the_evaluation_are_refused(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        TranslationTask.setup_task(TranslationConfig(data=str(tmp_path), **words))


@pytest.mark.parametrize("items", [2, -1, "1", None, [1]])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_manifest_that_counts_other_pairs_is_refused(tmp_path, items, split):
    task = write_pairs(tmp_path, [6, 2], [4, 5, 2])
    for path in list(tmp_path.glob("train.*")):
        shutil.copyfile(path, path.with_name(path.name.replace("train", "valid")))
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in tmp_path.iterdir()
    }
    counts = {"train": {"items": 1}, "valid": {"items": 1}}
    Manifest(tmp_path, "pairs", "toy", {}, counts, files).write(tmp_path)
    task.load_dataset("train")
    Manifest(tmp_path, "pairs", "toy", {}, counts, files, form={"a": 1}).write(tmp_path)
    with pytest.raises(UserError, match="is damaged"):
        task.load_dataset("train")
    counts[split] = {"items": items}
    Manifest(tmp_path, "pairs", "toy", {}, counts, files).write(tmp_path)
    with pytest.raises(UserError, match="has 1 items, manifest.json says 2|is damaged"):
        task.load_dataset("train")
