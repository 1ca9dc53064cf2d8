"""Corpora of text: written whole or not at all, resumed, read piece by piece, refused when damaged."""

import json

import numpy as np
import pytest
import sentencepiece
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

from megalodon_tasks.data import corpus_writer
from megalodon_tasks.data.corpus import DESCRIPTION, read_corpus
from megalodon_tasks.data.corpus_writer import CorpusPlan, Document, is_current, write_corpus
from megalodon_tasks.data.rejects import Rejects
from megalodon_tasks.data.tokenizers import (
    ByteTokenizer,
    SentencePieceTokenizer,
    WordTokenizer,
    tokenizer_of,
)

TEXTS = ["first", "second document", "dritter: Ü\n", "fourth"]


def documents(texts, seen=None, stop_at=None):
    def read(first):
        for number, text in enumerate(texts[first:], first):
            if number == stop_at:
                raise KeyboardInterrupt
            if seen is not None:
                seen.append(number)
            tokens = ByteTokenizer().encode(text)
            yield Document(text, (tokens[:3], tokens[3:]), 1, len(text), len(text.encode()))

    return read


def write(folder, name="c", splits=None, one_item_each=False, rejects=None):
    tokenizer = ByteTokenizer()
    plan = CorpusPlan(
        tokenizer.description(),
        tokenizer.dictionary(),
        splits or {s: documents(TEXTS) for s in ("train", "valid", "test")},
        "counted",
        one_item_each,
        rejects=Rejects() if rejects is None else rejects,
    )
    identity = {"name": name, "settings": {"a": [1, 2]}}
    write_corpus(folder, identity, lambda inside: plan, lambda count: None)
    return identity


def text_of(split, document):
    tokens = split.tokens(*split.offsets[document : document + 2])
    return "".join(ByteTokenizer().stream(tokens.tolist()))


def test_documents_are_read_back_whole_and_in_pieces(tmp_path):
    identity = write(tmp_path)
    assert is_current(tmp_path, identity)
    assert not is_current(tmp_path, identity | {"settings": {}})
    split = read_corpus(tmp_path).split("test")
    assert [text_of(split, i) for i in range(len(split))] == TEXTS
    assert split.tokens(4, 9).tolist() == list(split.tokens(0, 9))[4:]
    assert split.tokens(0, 10**9).shape == (split.info.tokens,)
    split.verify()
    fairseq = MMapIndexedDataset(str(tmp_path / "test"))
    assert [len(fairseq[i]) for i in range(len(fairseq))][:2] == [3, 2]
    assert len(Dictionary.load(str(tmp_path / "dict.txt"))) == 260
    data = {f"{s}.{end}" for s in ("train", "valid", "test") for end in ("bin", "idx")}
    assert {path.name for path in tmp_path.iterdir()} == {"dict.txt", "corpus.json", *data}


@pytest.mark.parametrize("journal_bytes", [0, 1 << 30])
def test_an_interrupted_writer_goes_on_with_the_next_document(tmp_path, monkeypatch, journal_bytes):
    monkeypatch.setattr(corpus_writer, "_JOURNAL_BYTES", journal_bytes)
    splits = {s: documents(TEXTS) for s in ("train", "valid", "test")}
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", splits=splits | {"valid": documents(TEXTS, stop_at=2)})
    assert not (tmp_path / "a" / DESCRIPTION).exists()
    seen = []
    write(tmp_path / "a", splits=splits | {"valid": documents(TEXTS, seen)})
    assert seen == [2, 3]
    write(tmp_path / "b")
    for path in (tmp_path / "b").iterdir():
        assert (tmp_path / "a" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_killed_writer_leaves_what_is_cut_off_again(tmp_path, monkeypatch):
    """Files longer than the journal says, as a kill between the two leaves them."""
    monkeypatch.setattr(corpus_writer, "_JOURNAL_BYTES", 0)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", splits={"train": documents(TEXTS, stop_at=2)})
    unfinished = tmp_path / "a" / ".corpus.unfinished"
    for name in ("train.bin", "train.sizes"):
        with open(unfinished / name, "ab") as stream:
            stream.write(b"half a docu")
    write(tmp_path / "a", splits={"train": documents(TEXTS)})
    split = read_corpus(tmp_path / "a").split("train")
    assert [text_of(split, i) for i in range(4)] == TEXTS


def test_another_plan_starts_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "old", {"train": documents(TEXTS, stop_at=2)})
    seen = []
    write(tmp_path, "new", {"train": documents(TEXTS, seen)})
    assert seen == [0, 1, 2, 3]


def test_an_error_leaves_what_was_there_before(tmp_path):
    write(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}

    def broken(first):
        yield Document("x", (np.ones(3),), 1, 1, 1)
        raise ValueError("cannot read y")

    with pytest.raises(ValueError, match="cannot read y"):
        write(tmp_path, "other", {"train": broken})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_damaged_documents_are_counted_or_refused(tmp_path):
    def some(first):
        texts = [Document("a.txt", damage="is empty"), *documents(TEXTS)(0)]
        return iter(texts[first:])

    write(tmp_path / "kept", splits={"train": some})
    info = read_corpus(tmp_path / "kept").info("train")
    assert (info.documents, info.skipped) == (4, {"a.txt": "is empty"})
    with pytest.raises(ValueError, match="a.txt is empty; correct or remove it"):
        write(tmp_path / "strict", splits={"train": some}, rejects=Rejects(strict=True))
    only = [Document("a.txt", damage="is empty")]
    with pytest.raises(ValueError, match="split 'train' has no document with text"):
        write(tmp_path / "none", splits={"train": lambda first: iter(only[first:])})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "test.bin").write_bytes(b"ab"), r"test.bin has 2 bytes, its index wants"),
        (lambda f: (f / "test.bin").unlink(), "test.bin is missing"),
        (lambda f: (f / "test.idx").write_bytes(b"nonsense" * 9), "not an index of fairseq's mmap"),
        (lambda f: (f / DESCRIPTION).write_text("{"), "is not JSON"),
        (lambda f: (f / DESCRIPTION).write_text('{"version": 9}'), "this version reads"),
    ],
)
def test_damaged_corpora_are_refused(tmp_path, damage, message):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_corpus(tmp_path).split("test")


def test_an_empty_split_is_refused(tmp_path):
    write(tmp_path)
    corpus_writer.write_index(tmp_path / "test", np.dtype(np.uint16), np.zeros(0, np.int64))
    (tmp_path / "test.bin").write_bytes(b"")
    (tmp_path / DESCRIPTION).unlink()
    with pytest.raises(ValueError, match="the split 'test' has no tokens"):
        read_corpus(tmp_path).split("test")


def test_changed_contents_are_found(tmp_path):
    write(tmp_path)
    data = bytearray((tmp_path / "test.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "test.bin").write_bytes(data)
    with pytest.raises(ValueError, match="test.bin is damaged"):
        read_corpus(tmp_path).split("test").verify()


def test_an_index_of_other_data_is_refused(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", splits={"test": documents(TEXTS[:2])})
    for end in ("bin", "idx"):
        (tmp_path / "b" / f"test.{end}").rename(tmp_path / "a" / f"test.{end}")
    with pytest.raises(ValueError, match="prepare the data again"):
        read_corpus(tmp_path / "a").split("test")


def test_folders_without_a_corpus_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_corpus(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither corpus.json nor dict.txt"):
        read_corpus(tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, valid, test"):
        read_corpus(tmp_path).split("dev")


def test_plain_data_of_fairseq_is_one_document(tmp_path):
    write(tmp_path)
    (tmp_path / DESCRIPTION).unlink()
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
    assert pieces.keeps_line_breaks
    assert len(pieces.encode(TEXT)) < len(TEXT)


def test_pieces_fill_up_the_vocabulary(pieces):
    dictionary = pieces.dictionary()
    assert len(dictionary) % 128 == 0
    assert dictionary.index(pieces.processor.id_to_piece(10)) == pieces._ids[10]


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


def test_descriptions_are_json(tmp_path):
    write(tmp_path)
    assert json.loads((tmp_path / DESCRIPTION).read_text())["tokenizer"] == {"kind": "bytes"}
