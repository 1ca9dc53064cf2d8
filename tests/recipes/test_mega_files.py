"""Mega's processed files of the token tasks, written here by fairseq's own preprocessing."""

import shutil

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder

from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.recipes.lra.listops import prepare as prepare_listops
from megalodon_tasks.recipes.lra.retrieval import prepare as prepare_retrieval
from megalodon_tasks.recipes.lra.text import prepare as prepare_text
from tests.recipes.mega_files import SPLITS, write_lines, write_task

EXPRESSIONS = {
    "train": [
        ("[MAX 4 [SM 8 9 ] ]", 7),
        ("[MIN 1 2 ]", 1),
        ("[SM 1 2 3 ]", 6),
        ("[MED 7 7 7 ]", 7),
    ],
    "valid": [("[MAX 1 2 ]", 2), ("[MAX 9 8 0 5 ]", 9), ("[MIN 0 3 ]", 0)],
    "test": [("[MED 1 2 9 ]", 2), ("[SM 5 5 ]", 0), ("[MED 3 4 8 5 ]", 4)],
}
# Every label has to be in the training split to be in the dictionary; the commonest comes first there.
EVERY_LABEL = [(f"[MAX {value} ]", value) for value in (9, 8, 6, 5, 4, 3, 2, 0)]
# In Text and Retrieval the class 1 is the commoner, so that the dictionary has it first.
TEXTS = {
    "train": [("g o o d", 1), ("b a d d", 0), ("o d d", 1)],
    "valid": [("d o g", 1), ("z o o", 0)],
    "test": [("b o b", 0)],
}
PAIRS = {
    "train": [("g o o d", "b a d", 1), ("b a d", "d o", 0), ("o d d", "g", 1)],
    "valid": [("d o g", "d a d", 1)],
    "test": [("b o b", "o z", 0)],
}
# What fairseq makes of TEXTS: symbols by frequency, equal ones by name.
SYMBOLS = ("d", "o", "a", "b", "g")


def columns(rows, place):
    return {split: [str(row[place]) for row in rows[split]] for split in SPLITS}


def write_listops(folder, written=lambda expression: expression):
    rows = {**EXPRESSIONS, "train": EXPRESSIONS["train"] + EVERY_LABEL}
    sources = {s: [written(row[0]) for row in rows[s]] for s in SPLITS}
    return write_task(folder, sources, columns(rows, 1))


def write_text(folder):
    return write_task(folder, columns(TEXTS, 0), columns(TEXTS, 1))


def write_retrieval(folder):
    return write_task(folder, columns(PAIRS, 0), columns(PAIRS, 2), columns(PAIRS, 1))


def prepare(task, source, out, rejects=None):
    rejects = Rejects() if rejects is None else rejects
    if task == "listops":
        return prepare_listops.prepare(source, out)
    if task == "text":
        return prepare_text.prepare(source, out, prepare_text.Options(), rejects)
    return prepare_retrieval.prepare(source, out, rejects)


WRITE = {"listops": write_listops, "text": write_text, "retrieval": write_retrieval}
FOLDERS = {"listops": "listops", "text": "imdb-4000", "retrieval": "aan"}


def binary_tree(expression):
    """The expression with the parentheses of the release: one more argument in each pair."""
    symbols, stack = expression.split(), []
    for symbol in symbols:
        if symbol == "]":
            tree = stack.pop()
            done = f"( {tree} ] )"
            if not stack:
                return done
            stack[-1] = f"( {stack[-1]} {done} )"
        elif symbol.startswith("["):
            stack.append(symbol)
        else:
            stack[-1] = f"( {stack[-1]} {symbol} )"
    return None


@pytest.mark.parametrize(
    "written",
    [lambda e: e, binary_tree, lambda e: e.replace("]", "X")],
    ids=["flat", "parentheses", "renamed bracket"],
)
def test_listops_is_the_same_as_from_the_release(tmp_path, written):
    write_listops(tmp_path / "lra" / "listops", written)
    raw = tmp_path / "raw"
    raw.mkdir()
    for split, name in (("train", "train"), ("valid", "val"), ("test", "test")):
        rows = EXPRESSIONS[split] + (EVERY_LABEL if split == "train" else [])
        lines = ["Source\tTarget", *(f"{source}\t{target}" for source, target in rows)]
        (raw / f"basic_{name}.tsv").write_text("\n".join(lines) + "\n")
    prepare("listops", tmp_path / "lra", tmp_path / "from mega")
    prepare("listops", raw, tmp_path / "from release")
    found, wanted = (PreparedDataset(tmp_path / f"from {name}") for name in ("mega", "release"))
    assert (found.spec.classes, found.spec.vocabulary) == (
        wanted.spec.classes,
        wanted.spec.vocabulary,
    )
    for split in SPLITS:
        assert found.split(split).info == wanted.split(split).info


def words(split, column="inputs"):
    vocabulary = split.spec.vocabulary
    return [" ".join(vocabulary[t] for t in split.sequence(column, i)) for i in range(len(split))]


def test_text_keeps_megas_symbols_and_has_its_classes_in_order(tmp_path):
    folder = write_text(tmp_path / "imdb-4000")
    labels = Dictionary.load(str(folder / "label-bin" / "dict.txt"))
    assert labels.symbols[labels.nspecial] == "1", "so the number of a label is not its class"
    assert prepare("text", tmp_path, tmp_path / "out")
    dataset = PreparedDataset(tmp_path / "out")
    assert (dataset.spec.benchmark, dataset.spec.classes) == ("text", ("neg", "pos"))
    assert dataset.spec.vocabulary == ("<pad>", "</s>", "<unk>", *SYMBOLS)
    assert dataset.spec.columns["inputs"].dtype == "uint8"
    for split in SPLITS:
        found = dataset.split(split)
        assert found.labels.tolist() == [label for _, label in TEXTS[split]]
        known = [text.replace("z", "<unk>") for text, _ in TEXTS[split]]
        assert words(found) == [f"{text} </s>" for text in known]
    dataset.manifest.verify()


def test_retrieval_has_both_sides(tmp_path):
    write_retrieval(tmp_path / "aan")
    assert prepare("retrieval", tmp_path, tmp_path / "out")
    dataset = PreparedDataset(tmp_path / "out")
    assert (dataset.spec.benchmark, dataset.spec.classes) == ("retrieval", ("0", "1"))
    for split in SPLITS:
        found = dataset.split(split)
        assert found.labels.tolist() == [label for _, _, label in PAIRS[split]]
        assert words(found) == [f"{a} </s>" for a, _, _ in PAIRS[split]]
        seconds = [b.replace("z", "<unk>") for _, b, _ in PAIRS[split]]
        assert words(found, "inputs2") == [f"{b} </s>" for b in seconds]


def test_long_sequences_are_cut(tmp_path):
    write_text(tmp_path / "imdb-4000")
    options = prepare_text.Options(max_bytes=2)
    prepare_text.prepare(tmp_path, tmp_path / "out", options, Rejects())
    assert words(PreparedDataset(tmp_path / "out").split("train")) == [
        "g o </s>", "b a </s>", "o d </s>"
    ]  # fmt: skip


def test_many_symbols_need_two_bytes(tmp_path):
    symbols = " ".join(f"symbol{number}" for number in range(300))
    sources = {split: [symbols, symbols] for split in SPLITS}
    write_task(tmp_path / "imdb-4000", sources, {split: ["0", "1"] for split in SPLITS})
    prepare("text", tmp_path, tmp_path / "out")
    dataset = PreparedDataset(tmp_path / "out")
    assert dataset.spec.columns["inputs"].dtype == "uint16"
    assert words(dataset.split("test"))[0] == f"{symbols} </s>"


@pytest.mark.parametrize("name", ["0.0", "neg"])
def test_other_names_of_the_same_classes_are_known(tmp_path, name):
    labels = {split: [name, "1"] for split in SPLITS}
    write_task(tmp_path / "imdb-4000", {split: ["a", "b"] for split in SPLITS}, labels)
    prepare("text", tmp_path, tmp_path / "out")
    assert PreparedDataset(tmp_path / "out").split("train").labels.tolist() == [0, 1]


@pytest.mark.parametrize("task", sorted(WRITE))
def test_preparation_is_skipped_while_the_files_are_the_same(tmp_path, task):
    folder = WRITE[task](tmp_path / FOLDERS[task])
    assert prepare(task, tmp_path, tmp_path / "out")
    assert not prepare(task, tmp_path, tmp_path / "out")
    with open(folder / "src-bin" / "dict.txt", "a") as stream:
        stream.write("( 0\n")
    assert prepare(task, tmp_path, tmp_path / "out")


def test_held_out_validation_is_for_the_release_alone(tmp_path):
    write_text(tmp_path / "imdb-4000")
    options = prepare_text.Options(validation="held-out")
    with pytest.raises(ValueError, match="imdb-4000 has a validation split of its own"):
        prepare_text.prepare(tmp_path, tmp_path / "out", options, Rejects())


@pytest.mark.parametrize("task", ["text", "retrieval"])
def test_an_empty_sequence_is_left_out_and_named(tmp_path, task):
    rows = {"text": TEXTS, "retrieval": PAIRS}[task]
    side = len(rows["train"][0]) - 2
    emptied = [*rows["train"][0]]
    emptied[side] = ""
    rows = {**rows, "train": [tuple(emptied), *rows["train"][1:]]}
    folder, second = tmp_path / FOLDERS[task], None
    if task == "retrieval":
        second = columns(rows, 1)
    write_task(folder, columns(rows, 0), columns(rows, len(emptied) - 1), second)
    rejects = Rejects()
    prepare(task, tmp_path, tmp_path / "out", rejects)
    inputs = ("src-bin", "src1-bin")[side]
    assert rejects.reasons == {f"{folder / inputs / 'train'}.bin, item 1": "is empty"}
    assert len(PreparedDataset(tmp_path / "out").split("train")) == 2


def overwrite(folder, name, split, items):
    """Write items of ids, with an index that fits."""
    prefix = folder / name / split
    builder = MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for ids in items:
        builder.add_item(torch.tensor(ids))
    builder.finalize(f"{prefix}.idx")


def cut(path, count):
    path.write_bytes(path.read_bytes()[:-count])


def damage(folder, kind):
    """Damage a folder of Text with three training items; return what the message says."""
    source, label = folder / "src-bin", folder / "label-bin"
    if kind == "missing":
        (label / "valid.idx").unlink()
        return f"{label / 'valid.idx'} is missing; copy Mega's folder imdb-4000 whole"
    if kind == "no dictionary":
        (source / "dict.txt").unlink()
        return f"{source / 'dict.txt'} is missing"
    if kind == "data cut":
        cut(source / "train.bin", 1)
        return (
            f"{source / 'train.bin'} has 27 bytes, expected 28 as its index says: it was cut short"
        )
    if kind == "index cut":
        cut(source / "train.idx", 8)
        return f"{source / 'train.idx'} has 54 bytes, expected 62 for 3 items: it was cut short"
    if kind == "index gone":
        (source / "train.idx").write_bytes(b"MMIDIDX")
        return f"{source / 'train.idx'} has 7 bytes: it was cut short"
    if kind == "no index":
        (source / "train.idx").write_bytes(b"TNTIDX\0\0" + b"\1" * 40)
        return f"{source / 'train.idx'} begins with b'TNTIDX"
    if kind == "no items":
        overwrite(folder, "src-bin", "test", [])
        return f"{source / 'test.idx'} has no items"
    if kind == "counts":
        overwrite(folder, "label-bin", "train", [[4, 2], [5, 2]])
        return f"{source / 'train'}.idx has 3 items, but {label / 'train'}.idx has 2 labels"
    if kind == "unknown id":
        overwrite(folder, "src-bin", "train", [[4, 5, 2], [9, 2], [4, 2]])
        return f"{source / 'train'}.bin, item 2: the number 9 is no symbol of {source / 'dict.txt'}"
    if kind == "special inside":
        overwrite(folder, "src-bin", "train", [[4, 5, 2], [4, 2, 5, 2], [4, 2]])
        return f"{source / 'train'}.bin, item 2: the number 2 is no symbol"
    if kind == "label outside":
        overwrite(folder, "label-bin", "test", [[7, 2]])
        return f"{label / 'test'}.bin, item 1: [7] is not one label of {label / 'dict.txt'}"
    if kind == "two labels":
        overwrite(folder, "label-bin", "test", [[4, 5, 2]])
        return f"{label / 'test'}.bin, item 1: [4, 5] is not one label"
    if kind == "other labels":
        (label / "dict.txt").write_text("".join(f"{digit} 1\n" for digit in range(10)))
        return (
            f"{label / 'dict.txt'}: the labels are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, expected 0, neg, 1"
        )
    if kind == "class missing":
        (label / "dict.txt").write_text("1 3\nmadeupword0000 0\n")
        return "the labels are 1, expected 0, neg, 1, pos; it belongs to another task"
    if kind == "dictionary of ListOps":
        (source / "dict.txt").write_text("[MAX 9\n] 8\n1 7\n2 6\n3 5\n")
        return f"{source / 'dict.txt'} has the symbols [MAX: it is the dictionary of ListOps, not"
    if kind == "no text":
        (source / "dict.txt").write_bytes(b"caf\xe9 3\n")
        return f"{source / 'dict.txt'} is not UTF-8 (byte 3)"
    (source / "dict.txt").write_text("d three\n")
    return f"{source / 'dict.txt'}, line 1 is not a symbol and its count: 'd three'"


@pytest.mark.parametrize(
    "kind",
    [
        "missing", "no dictionary", "data cut", "index cut", "index gone", "no index", "no items",
        "counts", "unknown id", "special inside", "label outside", "two labels", "other labels",
        "class missing", "dictionary of ListOps", "no text", "no dictionary format",
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused(tmp_path, kind):
    message = damage(write_text(tmp_path / "imdb-4000"), kind)
    with pytest.raises(ValueError) as error:
        prepare("text", tmp_path, tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("text", "listops", "label-bin/dict.txt: the labels are .*, expected 0, neg, 1, pos"),
        ("text", "retrieval", "has src1-bin: its items are pairs.*megalodon prepare lra/retrieval"),
        ("retrieval", "text", "has no src1-bin: its items are single sequences"),
        ("retrieval", "listops", "has no src1-bin"),
        ("listops", "text", "label-bin/dict.txt: the labels are 1, 0, expected 0, 1, 2, 3"),
        ("listops", "retrieval", "has src1-bin"),
    ],
)
def test_the_folder_of_another_task_is_refused(tmp_path, task, given, message):
    folder = WRITE[given](tmp_path / FOLDERS[given])
    with pytest.raises(ValueError, match=message):
        prepare(task, folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "label", "message"),
    [
        ("[MAX 1 2 ] ]", "2", "src-bin/test.bin, item 1: the expression is unbalanced"),
        ("[MAX 1 2", "2", "item 1: the expression is unbalanced: 1 of its operators lack"),
        ("[MAX 1 2 ]", "1", "item 1: the label is 1, but the expression has the value 2"),
        ("[MAD 1 2 ]", "1", "item 1 has a symbol that is not in the dictionary"),
    ],
)
def test_a_wrong_expression_of_megas_is_named(tmp_path, line, label, message):
    folder = write_listops(tmp_path / "listops")
    rows = {**EXPRESSIONS, "test": [(line, label)]}
    for place, name in enumerate(("src-bin", "label-bin")):
        write_lines(folder, name, columns(rows, place), "--srcdict", copied(folder, name))
    with pytest.raises(ValueError, match=message):
        prepare("listops", tmp_path, tmp_path / "out")


def copied(folder, name):
    """A dictionary beside the folder that it came from, which fairseq writes anew."""
    target = folder.parent / f"{name}.dict.txt"
    shutil.copy(folder / name / "dict.txt", target)
    return str(target)


def test_a_foreign_symbol_in_the_dictionary_of_listops_is_named(tmp_path):
    folder = write_listops(tmp_path / "listops")
    with open(folder / "src-bin" / "dict.txt", "a") as stream:
        stream.write("q 1\n")
    with pytest.raises(
        ValueError, match="dict.txt has the symbol 'q', which ListOps does not have"
    ):
        prepare("listops", tmp_path, tmp_path / "out")
