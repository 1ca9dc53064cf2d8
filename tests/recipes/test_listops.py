import os
import shutil

import numpy as np
import pytest

from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.recipes.lra.listops import prepare as prepare_listops
from megalodon_tasks.recipes.lra.listops.generator import Settings, generate
from megalodon_tasks.recipes.lra.listops.grammar import VOCABULARY, evaluate, tokenize
from megalodon_tasks.recipes.lra.listops.release import FILES, read_rows
from megalodon_tasks.recipes.lra.listops.sampling import Grammar
from tests.data.prepared import write_random

PAIRED = "( ( ( [MAX 4 ) ( ( ( [SM 8 ) 9 ) ] ) ) ] )"
FLAT = "[MAX 4 [SM 8 9 ] ]"
HEADER = "Source\tTarget"


def test_vocabulary_is_fixed():
    assert " ".join(VOCABULARY) == "<pad> </s> 0 1 2 3 4 5 6 7 8 9 [MIN [MAX [MED [SM ]"


def test_parentheses_carry_nothing():
    tokens = tokenize(PAIRED)
    assert tokens == tokenize(FLAT)
    assert [VOCABULARY[token] for token in tokens] == FLAT.split()


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7", 7),
        ("[MIN 3 1 2 ]", 1),
        ("[MAX 3 1 2 ]", 3),
        ("[SM 8 9 5 ]", 2),
        ("[MED 9 1 5 ]", 5),
        ("[MED 1 2 ]", 1),
        ("[MED 9 0 4 7 ]", 5),
        ("[MED 9 8 ]", 8),
        (FLAT, 7),
        ("[SM [MIN 4 [MAX 9 8 ] ] [MED [SM 9 9 ] 2 5 ] 1 ]", 0),
    ],
)
def test_value_of_an_expression(expression, value):
    assert evaluate(tokenize(expression)) == value


def rows_of(text, path="basic_train.tsv"):
    data = text if isinstance(text, bytes) else text.encode()
    return list(read_rows(data.splitlines(keepends=True), path))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("source", [PAIRED, FLAT, f"  {FLAT} "])
def test_rows_are_read(end, source):
    rows = rows_of(end.join([HEADER, f"{source}\t7", "[MIN 2 3 ]\t2", ""]))
    assert [(row.tokens, row.label) for row in rows] == [
        (tokenize(FLAT), 7),
        (tokenize("[MIN 2 3 ]"), 2),
    ]


def test_columns_are_found_by_name():
    rows = rows_of(f"Index\tTarget\tSource\n12\t7\t{PAIRED}\n")
    assert [row.label for row in rows] == [7]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[MAD 1 2 ]\t1", "field Source: .*'\\[MAD 1 2 \\]' has the symbol '\\[MAD' at place 1"),
        ("[MIN 1 12 ]\t1", "has the symbol '12' at place 3; the symbols are 0-9"),
        ("[MIN 1 2]\t1", "has the symbol '2\\]' at place 3"),
        ("( ( ( [MIN 1 ) 2 ) ]\t1", "is unbalanced: it has 3 '\\(' but 2 '\\)'"),
        ("[MIN 1 [MAX 2 3 ]\t1", "is unbalanced: 1 of its operators lack the closing '\\]'"),
        ("[MIN 1 2 ] ]\t1", "is unbalanced: the '\\]' at place 5 closes nothing"),
        ("[MIN ]\t1", "the '\\]' at place 2 closes an operator without arguments"),
        ("1 2\t1", "holds 2 complete expressions, expected one"),
        ("\t1", "holds 0 complete expressions"),
        ("[MIN 1 2 ]\t10", "field Target: '10' is not a label from 0 to 9"),
        ("[MIN 1 2 ]\t-1", "field Target: '-1' is not a label"),
        ("[MIN 1 2 ]\tone", "field Target: 'one' is not a label"),
        ("[MIN 1 2 ]\t", "field Target: '' is not a label"),
        ("[MIN 1 2 ]\t2", "field Target: the label is 2, but the expression .* has the value 1"),
        ("[MIN 1 2 ]", "1 columns separated by tabs, expected 2 as in the header"),
        ("[MIN 1 2 ]\t1\t1", "3 columns separated by tabs, expected 2"),
        ("", "1 columns separated by tabs"),
        (b"[MIN 1 \xff2 ]\t1", "byte 0xff at place 8 is not UTF-8 text"),
    ],
)
def test_bad_row_is_named(row, message):
    row = row if isinstance(row, bytes) else row.encode()
    text = b"\n".join([HEADER.encode(), b"[MAX 1 2 ]\t2", row, b"[MAX 1 2 ]\t2", b""])
    with pytest.raises(ValueError, match=f"^data/basic_val.tsv, line 3[:,].*{message}"):
        rows_of(text, "data/basic_val.tsv")


def test_long_values_are_cut_in_messages():
    with pytest.raises(ValueError, match="'x") as error:
        rows_of(f"{HEADER}\n{'x' * 5000}\t1\n")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "basic_train.tsv is empty; expected the header Source<TAB>Target"),
        (f"{HEADER}\n", "basic_train.tsv has no rows after its header"),
        ("[MIN 1 2 ]\t1\n", "line 1: the header is .* and has no column 'Source'"),
        ("Source Target\n[MIN 1 2 ]\t1\n", "has no column 'Source'"),
        ("Source\tLabel\n[MIN 1 2 ]\t1\n", "has no column 'Target'"),
        (b"\x1f\x8b\x08\n", "line 1: byte 0x8b at place 2 is not UTF-8 text"),
    ],
)
def test_bad_file_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        rows_of(text)


ROWS = {
    "train": ["[MIN 1 2 ]\t1", f"{PAIRED}\t7", "[SM 1 2 3 ]\t6"],
    "valid": ["[MAX 1 2 ]\t2"],
    "test": ["[MED 1 2 9 ]\t2", "[SM 5 5 ]\t0"],
}


def write_files(folder, rows=ROWS):
    folder.mkdir(parents=True, exist_ok=True)
    for split, name in FILES.items():
        (folder / name).write_text("\n".join([HEADER, *rows[split], ""]))
    return folder


@pytest.mark.parametrize(
    "below", ["", "listops-1000", "lra_release/lra_release/listops-1000", "of/any/name"]
)
def test_files_are_found_some_levels_down(tmp_path, below):
    write_files(tmp_path / "raw" / below)
    assert prepare(tmp_path / "raw", tmp_path / "out")
    assert len(PreparedDataset(tmp_path / "out").split("train")) == 3


def test_symbolic_links_are_followed(tmp_path):
    write_files(tmp_path / "elsewhere" / "listops-1000")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "lra_release").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw" / "loop").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "raw")
    assert prepare(tmp_path / "link", tmp_path / "out")


def test_a_missing_file_is_named(tmp_path):
    path = write_files(tmp_path / "listops-1000") / "basic_val.tsv"
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} is missing beside the other files"):
        prepare(tmp_path, tmp_path / "out")


def test_renamed_files_are_not_replaced_by_synthetic_ones(tmp_path):
    for path in write_files(tmp_path / "raw").iterdir():
        path.rename(path.with_suffix(".txt"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="holds no data that is recognised: looked there"):
        prepare(tmp_path / "raw", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def prepare(source, out):
    return prepare_listops.prepare(source, out)


def test_prepared_data_holds_the_rows(tmp_path):
    assert prepare(write_files(tmp_path / "raw"), tmp_path / "out")
    dataset = PreparedDataset(tmp_path / "out")
    assert dataset.spec.benchmark == "listops"
    assert dataset.spec.vocabulary == VOCABULARY
    assert dataset.spec.classes == tuple("0123456789")
    for split, rows in ROWS.items():
        found = dataset.split(split)
        assert found.labels.tolist() == [int(row.split("\t")[1]) for row in rows]
        for index, row in enumerate(rows):
            symbols = [VOCABULARY[token] for token in found.sequence("inputs", index)]
            flat = row.split("\t")[0].replace("(", "").replace(")", "").split()
            assert symbols == [*flat, "</s>"]
    dataset.manifest.verify()


def test_generated_files_are_prepared_in_the_same_folder(tmp_path):
    generate(tmp_path, Settings(30, 5, 6, 0, Grammar(9, 40, 5, 4)))
    assert prepare(tmp_path, tmp_path)
    splits = PreparedDataset(tmp_path).splits
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 30,
        "valid": 5,
        "test": 6,
    }


def test_preparation_is_skipped_while_the_files_are_the_same(tmp_path):
    raw, out = write_files(tmp_path / "raw"), tmp_path / "out"
    prepare(raw, out)
    assert not prepare(raw, out)
    os.utime(raw / FILES["train"], (1, 1))
    assert not prepare(raw, out), "same content, another time"
    write_files(raw, {**ROWS, "valid": ["[MAX 1 4 ]\t4"]})
    assert prepare(raw, out), "same size, other content"
    assert PreparedDataset(out).split("valid").labels.tolist() == [4]
    write_files(raw, {**ROWS, "valid": ROWS["valid"] * 2})
    assert prepare(raw, out)
    assert len(PreparedDataset(out).split("valid")) == 2


def test_damaged_prepared_data_is_prepared_again(tmp_path):
    raw, out = write_files(tmp_path / "raw"), tmp_path / "out"
    prepare(raw, out)
    path = out / "train.inputs.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert prepare(raw, out)
    PreparedDataset(out).manifest.verify()


def test_bad_file_leaves_no_prepared_data(tmp_path):
    raw, out = write_files(tmp_path / "raw"), tmp_path / "out"
    write_files(raw, {**ROWS, "test": ["[SM 5 5 ]\t1"]})
    with pytest.raises(ValueError, match=f"{raw / 'basic_test.tsv'}, line 2, field Target"):
        prepare(raw, out)
    assert not out.exists()


def test_bad_file_leaves_the_prepared_data_before(tmp_path):
    raw, out = write_files(tmp_path / "raw"), tmp_path / "out"
    prepare(raw, out)
    write_files(raw, {**ROWS, "test": ["[SM 5 5 ]\t1"]})
    with pytest.raises(ValueError, match="line 2"):
        prepare(raw, out)
    np.testing.assert_array_equal(PreparedDataset(out).split("test").labels, [2, 0])


def test_data_of_another_benchmark_is_not_replaced(tmp_path):
    write_random(tmp_path / "out", benchmark="imdb")
    with pytest.raises(ValueError, match="holds prepared data of 'imdb'; choose another folder"):
        prepare(write_files(tmp_path / "raw"), tmp_path / "out")


def test_command_line(tmp_path, capsys):
    raw, out = write_files(tmp_path / "raw"), tmp_path / "out"
    prepare_listops.main([str(raw), str(out)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{out}: prepared"
    assert printed[1].startswith(
        "train: 3 expressions (the released benchmark has 96000), lengths 5 to 8 with the end token"
    )
    assert "1:33.3%" in printed[1]
    prepare_listops.main([str(raw), str(out), "--verify"])
    assert "prepared already from the same files" in capsys.readouterr().out


def test_command_line_reports_an_error_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        prepare_listops.main([str(tmp_path), str(tmp_path / "out")])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path} is empty: looked there")
    assert error.count("\n") == 1


GENERATE = ["--generate", "--train", "30", "--valid", "5", "--test", "6", "--min-length", "9"]
GENERATE += ["--max-length", "40", "--max-depth", "5", "--max-args", "4", "--workers", "1"]


def test_data_is_generated_where_asked_and_says_so(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    prepare_listops.main([str(raw), str(out), *GENERATE])
    source = PreparedDataset(out).spec.source
    assert source["origin"] == "generated"
    assert source["settings"]["generated"]["seed"] == 0
    # without the option the same files are read, and still known to be generated
    prepare_listops.main([str(raw), str(tmp_path / "again")])
    assert PreparedDataset(tmp_path / "again").spec.source["origin"] == "generated"


def test_generated_data_never_takes_the_place_of_other_data(tmp_path, capsys):
    raw, out = write_files(tmp_path / "raw"), tmp_path / "out"
    prepare_listops.main([str(raw), str(out)])
    assert PreparedDataset(out).spec.source["origin"] == "release"
    for source, folder, options in (
        (raw, out, []), (tmp_path / "new", out, ["--if-missing"]), (out, out, []), (raw, raw, []),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            prepare_listops.main([str(source), str(folder), *GENERATE, *options])
    errors = capsys.readouterr().err
    assert f"{raw / FILES['train']} exists and was not written by this generator" in errors
    assert errors.count(f"{out} holds prepared data that was not generated (origin: release)") == 3
    assert PreparedDataset(out).split("train").labels.tolist() == [1, 7, 6]


def test_an_option_of_the_generator_without_it_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare_listops.main([str(tmp_path), str(tmp_path / "out"), "--seed", "1"])
    assert "--seed: an option of synthetic data, which needs --generate" in capsys.readouterr().err


def test_prepared_data_is_its_own_source(tmp_path, capsys):
    raw, out = write_files(tmp_path / "raw"), tmp_path / "out"
    assert prepare_listops.main([str(raw), str(out)]) == out
    assert prepare_listops.main([str(out), str(tmp_path / "other")]) == out
    shutil.rmtree(raw)
    assert prepare_listops.main([str(raw), str(out), "--if-missing"]) == out
    assert f"{out}: prepared before, taken as it is" in capsys.readouterr().out
    assert not (tmp_path / "other").exists()
