"""WikiText as people have it: line ends, stripped lines, no empty lines, words that are symbols."""

import itertools
import re

import pytest
from fairseq.data import Dictionary

from megalodon_tasks.cli.main import main
from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.data.tokenizers import WordTokenizer, tokenizer_of
from megalodon_tasks.recipes.lm import prepare_wikitext103

ARTICLES = 8
FORMS = {
    "as released": lambda text: text,
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "stripped": lambda text: re.sub(r"(?m)^ | $", "", text),
    "stripped, CRLF": lambda text: re.sub(r"(?m)^ | $", "", text).replace("\n", "\r\n"),
    "no empty lines": lambda text: re.sub(r"(?m)^ \n", "", text),
    "stripped, no empty lines": lambda text: re.sub(r"(?m)^ | $", "", text).replace("\n\n", "\n"),
}


def wikitext(articles=ARTICLES):
    parts = [
        f" \n = Title {n} = \n \n A = B is an equation . \n = = Section {n} = = \n the <unk> end . \n"
        for n in range(articles)
    ]
    return "".join(parts)


def write(folder, text):
    folder.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (folder / f"wiki.{split}.tokens").write_bytes(text.encode())
    return folder


def prepared(tmp_path, text):
    source = write(tmp_path / "raw", text)
    prepare_wikitext103.prepare(source, tmp_path / "out")
    return read_corpus(tmp_path / "out")


@pytest.mark.parametrize("form", FORMS)
def test_each_form_keeps_its_articles(tmp_path, form):
    corpus = prepared(tmp_path, FORMS[form](wikitext()))
    split, dictionary = corpus.split("test"), dictionary_of(corpus)
    assert len(split) == ARTICLES
    for number, (start, stop) in enumerate(itertools.pairwise(split.offsets)):
        words = [dictionary[token] for token in split.tokens(start, stop)]
        titles = [words[i + 1] for i, word in enumerate(words) if word == "Title"]
        assert titles == [str(number)]


@pytest.mark.parametrize("form", ["as released", "stripped", "no empty lines"])
def test_line_ends_count_as_one_character(tmp_path, form):
    text = FORMS[form](wikitext())
    one = prepared(tmp_path / "unix", text)
    other = prepared(tmp_path / "dos", text.replace("\n", "\r\n"))
    for split in ("train", "valid", "test"):
        assert one.info(split) == other.info(split)
        assert one.info(split).characters == len(text)


def test_text_without_a_title_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"wiki.train.tokens has no title"):
        prepared(tmp_path, " only words \n and no title \n")


@pytest.mark.parametrize("word", ["<pad>", "<s>", "</s>"])
def test_words_that_are_symbols_are_refused_with_their_line(tmp_path, word):
    text = wikitext() + f" a \n some {word} words \n"
    line = text.count("\n")
    with pytest.raises(ValueError, match=rf"wiki.train.tokens, line {line} has the word '{word}'"):
        prepared(tmp_path, text)


def test_symbols_inside_of_words_are_words(tmp_path):
    corpus = prepared(tmp_path, wikitext() + " a<pad>b <pads> \n")
    assert corpus.info("train").documents == ARTICLES


def test_a_prompt_with_such_a_word_is_refused(tmp_path):
    corpus = prepared(tmp_path, wikitext())
    tokenizer = tokenizer_of(corpus.folder, corpus.tokenizer, dictionary_of(corpus))
    with pytest.raises(ValueError, match="line 2 of the text has the word '</s>'"):
        tokenizer.encode("the end\n</s> .")


def test_words_that_fill_the_dictionary_up_are_never_drawn(tmp_path):
    corpus = prepared(tmp_path, wikitext() + " madeupword is a word \n")
    dictionary = dictionary_of(corpus)
    assert any(symbol.startswith("madeupword0") for symbol in dictionary.symbols)
    tokenizer = WordTokenizer(dictionary)
    drawn = "".join(tokenizer.stream(tokenizer.text_tokens()))
    assert "madeupword0" not in drawn
    assert {"madeupword", "<unk>", "Section"} <= set(drawn.split())


def dictionary_of(corpus):
    return Dictionary.load(str(corpus.folder / "dict.txt"))


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    source = write(tmp_path / "raw", " no title \n")
    with pytest.raises(SystemExit):
        main(["prepare", "lm/wikitext103", str(source), str(tmp_path / "out"), "--workers", "1"])
    assert "megalodon prepare lm/text" in capsys.readouterr().err
