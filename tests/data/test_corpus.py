"""Corpora of text: written in fairseq's form, read piece by piece, refused when damaged."""

import numpy as np
import pytest
import sentencepiece
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

from megalodon_tasks.data.corpus import CorpusForm, Document, read_corpus, write_index
from megalodon_tasks.data.manifest import MANIFEST
from megalodon_tasks.data.tokenizers import (
    ByteTokenizer,
    SentencePieceTokenizer,
    WordTokenizer,
    tokenizer_of,
    with_tokenizer,
)
from tests.data.prepared import killed_at, reader_of, write_form

TEXTS = ["first", "second document", "dritter: Ü\n", "fourth"]
SPLITS = ("train", "valid", "test")


def documents(texts):
    for text in texts:
        tokens = ByteTokenizer().encode(text)
        yield Document(text, (tokens[:3], tokens[3:]), 1, len(text), len(text.encode()))


def write(folder, splits=None, **settings):
    form = CorpusForm("c", {}, "counted", one_item_each=False, **settings)
    read = {
        name: reader_of([*documents(texts)])
        for name, texts in (splits or dict.fromkeys(SPLITS, TEXTS)).items()
    }
    write_form(folder, lambda inside: with_tokenizer(form, ByteTokenizer(), inside), read)


def text_of(split, document):
    tokens = split.tokens(*split.offsets[document : document + 2])
    return "".join(ByteTokenizer().stream(tokens.tolist()))


def test_documents_are_read_back_whole_and_in_pieces(tmp_path):
    write(tmp_path)
    corpus = read_corpus(tmp_path)
    assert (corpus.name, corpus.tokenizer) == ("c", {"kind": "bytes"})
    split = corpus.split("test")
    assert [text_of(split, i) for i in range(len(split))] == TEXTS
    assert split.tokens(4, 9).tolist() == list(split.tokens(0, 9))[4:]
    assert split.tokens(0, 10**9).shape == (split.info.tokens,)
    assert (split.info.documents, split.info.words) == (4, 4)
    assert split.info.bytes == split.info.characters + 1
    fairseq = MMapIndexedDataset(str(tmp_path / "test"))
    assert [len(fairseq[i]) for i in range(len(fairseq))][:2] == [3, 2]
    assert len(Dictionary.load(str(tmp_path / "dict.txt"))) == 260
    data = {f"{s}.{end}" for s in SPLITS for end in ("bin", "idx")}
    assert {path.name for path in tmp_path.iterdir()} == {"dict.txt", MANIFEST, *data}


def test_published_words_are_taken_for_the_published_number_of_documents(tmp_path):
    published = {"train": (4, 99), "test": (5, 99)}
    write(tmp_path, published_words=published, published_in="a paper")
    corpus = read_corpus(tmp_path)
    assert [corpus.info(split).words for split in SPLITS] == [99, 4, 4]
    assert corpus.info("train").words_rule == "published by a paper; 4 counted"


def test_a_split_without_documents_is_refused(tmp_path):
    with pytest.raises(ValueError, match="split 'train' has no document with text"):
        write(tmp_path / "none", {"train": []})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "test.bin").write_bytes(b"ab"), r"test.bin has 2 bytes, its index expects"),
        (lambda f: (f / "test.bin").unlink(), "test.bin is missing"),
        (lambda f: (f / "test.idx").write_bytes(b"nonsense" * 9), "not an index of fairseq's mmap"),
    ],
)
def test_damaged_data_of_fairseq_are_refused(tmp_path, damage, message):
    write(tmp_path)
    (tmp_path / MANIFEST).unlink()
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_corpus(tmp_path).split("test")


def test_an_empty_split_is_refused(tmp_path):
    write(tmp_path)
    write_index(tmp_path / "test", np.dtype(np.uint16), np.zeros(0, np.int64))
    (tmp_path / "test.bin").write_bytes(b"")
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ValueError, match="the split 'test' has no tokens"):
        read_corpus(tmp_path).split("test")


@pytest.mark.parametrize("step", range(1, 9))
def test_a_kill_while_files_are_published_leaves_nothing_that_is_read(tmp_path, monkeypatch, step):
    with killed_at(monkeypatch, step):
        write(tmp_path)
    with pytest.raises(ValueError, match="was stopped before it was complete; start the same"):
        read_corpus(tmp_path)
    write(tmp_path)
    assert len(read_corpus(tmp_path).split("test")) == 4


def test_an_unknown_split_is_named(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, valid, test"):
        read_corpus(tmp_path).split("dev")


def test_plain_data_of_fairseq_is_one_document(tmp_path):
    write(tmp_path)
    (tmp_path / MANIFEST).unlink()
    split = read_corpus(tmp_path).split("test")
    assert len(split) == 1
    assert split.offsets.tolist() == [0, sum(len(text.encode()) for text in TEXTS)]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.model"
    lines = [f"the {a} of {b}" for a in ("house", "horse", "hill") for b in ("stone", "snow")] * 20
    with open(path, "wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=stream, vocab_size=300, byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, bos_id=-1,
            add_dummy_prefix=False, hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    return SentencePieceTokenizer(path)


TEXT = "the house of snow\n\n  Ünicode \U0001f600 of the hill\tand more " * 30


def test_bytes_and_pieces_keep_every_text(pieces):
    for tokenizer in (ByteTokenizer(), pieces):
        tokens = tokenizer.encode(TEXT).tolist()
        assert set(tokens) <= set(tokenizer.text_tokens())
        assert "".join(tokenizer.stream(tokens)) == TEXT
    assert pieces.processor.decode(pieces.processor.encode("a\nb")) == "a\nb"
    assert len(pieces.encode(TEXT)) < len(TEXT)


def test_pieces_fill_up_the_vocabulary(pieces):
    dictionary = pieces.dictionary()
    assert len(dictionary) % 128 == 0
    token = int(pieces.encode("house")[0])
    assert dictionary[token] in "house"


def test_broken_bytes_become_replacement_characters():
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode_bytes(b"a\xffb\xe2\x82").tolist()
    assert "".join(tokenizer.stream(tokens)) == "a\ufffdb\ufffd"


def test_words_are_those_of_fairseq():
    dictionary = Dictionary()
    for word in ("one", "two"):
        dictionary.add_symbol(word)
    tokenizer = WordTokenizer(dictionary)
    tokens = tokenizer.encode("one two\n\ntwo x")
    assert tokens.tolist() == [4, 5, 2, 2, 5, 3]
    assert "".join(tokenizer.stream(tokens.tolist())) == "one two \n\ntwo <unk> "


def test_a_dictionary_of_another_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not the dictionary of the corpus's bytes"):
        tokenizer_of(tmp_path, {"kind": "bytes"}, Dictionary())
    with pytest.raises(ValueError, match="tokenizer kind 'runes' is unknown"):
        tokenizer_of(tmp_path, {"kind": "runes"}, Dictionary())
    (tmp_path / "m.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "m.model")
    with pytest.raises(ValueError, match="there is no SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "n.model")
