"""Prepared text is taken without its source, and never replaced in silence."""

import shutil

import pytest

from megalodon_tasks.cli.main import main
from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.recipes.lm import prepare_enwik8
from tests.cli.language_models import write_text

TITLED = " \n = Title = \n \n some words \n"


def wikitext(folder):
    folder.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (folder / f"wiki.{split}.tokens").write_text(TITLED)
    return folder


def prepare(recipe, source, out, *options):
    return main(["prepare", recipe, str(source), str(out), *options])


def prepare_small_enwik8(source, out):
    source.mkdir()
    (source / "enwik8").write_bytes(b"text " * 200)
    prepare_enwik8.prepare(source, out, size=1000)


@pytest.mark.parametrize("recipe", ["lm/wikitext103", "lm/pg19", "lm/enwik8"])
def test_scripts_take_complete_data_without_the_raw_text(tmp_path, recipe, capsys):
    source = tmp_path / "DATA"
    out = tmp_path / "prepared"
    if recipe == "lm/enwik8":
        prepare_small_enwik8(source, out)
    elif recipe == "lm/pg19":
        prepare(recipe, write_text(source), out, "--tokens", "bytes", "--workers", "1")
    else:
        prepare(recipe, wikitext(source), out, "--workers", "1")
    shutil.rmtree(source)
    source.mkdir()
    out = shutil.move(out, source / "prepared")
    capsys.readouterr()
    assert prepare(recipe, source, out, "--if-missing") == 0
    assert capsys.readouterr().out == f"{out}\n"


@pytest.mark.parametrize("recipe", ["lm/pg19", "lm/text"])
def test_data_of_another_vocabulary_is_not_replaced_in_silence(tmp_path, recipe, capsys):
    source, out = write_text(tmp_path / "text"), tmp_path / "out"
    pieces = ["--tokens", "sentencepiece", "--pieces", "280", "--workers", "1"]
    prepare(recipe, source, out, *pieces)
    with pytest.raises(SystemExit):
        prepare(recipe, source, out, "--tokens", "bytes", "--workers", "1")
    message = capsys.readouterr().err
    assert "{'tokens': 'bytes'} is asked for" in message
    assert "replace it with --replace" in message
    assert read_corpus(out).tokenizer["kind"] == "sentencepiece"
    prepare(recipe, source, out, "--tokens", "bytes", "--workers", "1", "--replace")
    assert read_corpus(out).tokenizer["kind"] == "bytes"


def test_changed_text_is_prepared_again_with_the_same_settings(tmp_path):
    source, out = write_text(tmp_path / "text"), tmp_path / "out"
    prepare("lm/text", source, out, "--workers", "1")
    (source / "test" / "9.txt").write_text("one more document")
    prepare("lm/text", source, out, "--workers", "1")
    assert read_corpus(out).info("test").documents == 4
