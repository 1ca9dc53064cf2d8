"""Tokens of a split end to end: reading anywhere, documents, damaged data."""

import numpy as np
import pytest
from fairseq.data import Dictionary

from megalodon_tasks.data.token_stream import TokenStream, open_stream
from tests.recipes.lm_data import preprocess

EOS = 2
# Two documents of two lines, divided by a line that is EOS alone.
LINES = [[4, 5, EOS], [6, EOS], [EOS], [7, 8, 9, EOS], [4, EOS]]
TOKENS = sum(LINES, [])


class Part:
    """The parts of a corpus's split that a stream uses, with tokens in memory."""

    def __init__(self, lines):
        self.sizes = np.array([len(line) for line in lines])
        self._tokens = np.concatenate(lines)

    def tokens(self, start, stop):
        return self._tokens[start:stop].astype(np.int64)


def make_dictionary(words=6):
    dictionary = Dictionary()
    for word in range(words):
        dictionary.add_symbol(f"w{word}")
    return dictionary


def make_stream(lines=LINES, documents="none", words=6):
    return TokenStream([Part(lines)], make_dictionary(words), documents=documents)


def test_every_stretch_reads_what_stands_there():
    stream = make_stream()
    assert len(stream) == len(TOKENS)
    for start in range(len(TOKENS)):
        for stop in range(start, len(TOKENS) + 1):
            assert stream.read(start, stop).tolist() == TOKENS[start:stop]


def test_source_is_what_stands_before():
    source, target = make_stream().source_and_target(0, 4)
    assert (source.tolist(), target.tolist()) == ([EOS, 4, 5, EOS], [4, 5, EOS, 6])
    source, target = make_stream().source_and_target(8, 10)
    assert (source.tolist(), target.tolist()) == ([8, 9], TOKENS[8:10])


@pytest.mark.parametrize(
    ("documents", "starts"), [("none", []), ("line", [0, 3, 5, 6, 10]), ("blank", [0, 6])]
)
def test_documents(documents, starts):
    stream = make_stream(documents=documents)
    assert stream.document_starts.tolist() == starts
    assert stream.starts_between(3, 7).tolist() == [s - 3 for s in starts if 3 <= s < 7]


def test_documents_without_end_token_start_after_one_all_the_same():
    stream = make_stream([[4, 5], [6, 7]], documents="line")
    assert stream.source_and_target(0, 4)[0].tolist() == [EOS, 4, EOS, 6]
    assert make_stream([[4, 5], [6, 7]]).source_and_target(0, 4)[0].tolist() == [EOS, 4, 5, 6]


def test_unknown_kind_of_documents_is_named():
    with pytest.raises(ValueError, match="task.documents='book' is unknown; choose one of none"):
        make_stream(documents="book")


def test_token_out_of_range_is_named_with_its_place():
    stream = make_stream(words=4)
    assert stream.read(0, 6).tolist() == TOKENS[:6]
    with pytest.raises(
        ValueError, match="token id 8 at position 7 is out of range: dict.txt has 8"
    ):
        stream.read(5, 10)


def test_parts_are_read_as_one():
    stream = TokenStream([Part(LINES[:2]), Part(LINES[2:])], make_dictionary(), documents="line")
    for start in range(len(TOKENS)):
        for stop in range(start, len(TOKENS) + 1):
            assert stream.read(start, stop).tolist() == TOKENS[start:stop]
    assert stream.document_starts.tolist() == [0, 3, 5, 6, 10]


@pytest.fixture
def folder(tmp_path):
    return preprocess(tmp_path)


def open_test(folder, **settings):
    return open_stream(folder, "test", Dictionary.load(str(folder / "dict.txt")), **settings)


def test_opens_what_fairseq_preprocess_wrote(folder):
    stream = open_test(folder, documents="line")
    words = (folder.parent / "raw" / "test").read_text().splitlines()
    assert len(stream) == sum(len(line.split()) + 1 for line in words)
    assert len(stream.document_starts) == len(words)


def test_missing_split_is_named_with_those_there(folder):
    (folder / "test.idx").rename(folder / "other.idx")
    with pytest.raises(
        ValueError, match="has no complete split 'test'; it has other, train, valid"
    ):
        open_test(folder)


def test_documents_of_a_corpus_need_its_description(folder):
    with pytest.raises(ValueError, match="has no manifest.json, which says where documents begin"):
        open_test(folder, documents="corpus")


def test_further_parts_are_read_where_asked(folder):
    for end in ("bin", "idx"):
        (folder / f"test1.{end}").write_bytes((folder / f"train.{end}").read_bytes())
    plain, combined = open_test(folder), open_test(folder, combine=True)
    train = open_stream(folder, "train", Dictionary.load(str(folder / "dict.txt")))
    assert len(combined) == len(plain) + len(train)
    assert combined.read(len(plain), len(combined)).tolist() == train.read(0, len(train)).tolist()


def test_truncated_split_is_named(folder):
    path = folder / "test.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="test.bin has .* bytes, its index expects"):
        open_test(folder)
