"""A dict.txt that is wrong is named with its line."""

import pytest

from megalodon_tasks.data.dictionary import read_dictionary


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"the 3\nof 2\nthe 1\n", "line 3 repeats the symbol 'the' of line 1"),
        (b"the 3\n<pad> 1\n", "line 2 repeats the symbol '<pad>' that every dictionary has"),
        (b"the 3\n\nof 2\n", "line 2 is blank: remove it"),
        (b"the 3\nof 2\n  \n", "line 3 is blank"),
        (b"the 3\nof\n", "line 2 is not a symbol and its count: 'of'"),
        (b"the 3\nof two\n", "line 2 is not a symbol and its count: 'of two'"),
        (b"\xff\xfe 3\n", "is not UTF-8 .byte 0."),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "dict.txt"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"{path}.* {message}"):
        read_dictionary(path)


def test_a_good_one_is_read_with_its_flags(tmp_path):
    (tmp_path / "dict.txt").write_text("the 3\na b 2\n<unk> 1 #fairseq:overwrite\n")
    dictionary = read_dictionary(tmp_path / "dict.txt")
    assert dictionary.symbols[4:] == ["the", "a b", "<unk>"]
