"""The official lists of Speech Commands: each entry counts, whatever wrote the file."""

import pytest

from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.recipes.speech import prepare_speech_commands
from megalodon_tasks.recipes.speech.prepare_speech_commands import Options
from megalodon_tasks.recipes.speech.speech_commands import LISTS
from tests.recipes.speech_files import write_release

COUNTS = {"train": 140, "valid": 30, "test": 30}
WRITTEN = {
    "as released": lambda text: text.encode(),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "leading ./": lambda text: "".join(f"./{line}\n" for line in text.splitlines()).encode(),
    "both": lambda text: b"\xef\xbb\xbf./" + text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "backslashes": lambda text: text.replace("/", "\\").encode(),
    "empty lines": lambda text: f"\n{text}\n\n".encode(),
    "capitals": lambda text: text.upper().encode(),
}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = write_release(tmp_path_factory.mktemp("speech"))
    return folder, {name: (folder / name).read_text() for name in LISTS.values()}


def prepare(folder, out):
    options = Options(splits="official")
    prepare_speech_commands.prepare(folder, out, options)
    return PreparedDataset(out)


@pytest.fixture
def lists(release):
    """A function that rewrites both lists; they are as released again afterwards."""
    folder, texts = release

    def rewrite(form):
        for name, text in texts.items():
            (folder / name).write_bytes(form(text))
        return folder

    yield rewrite
    rewrite(str.encode)


@pytest.mark.parametrize("form", WRITTEN)
def test_no_held_out_clip_moves_into_training(lists, tmp_path, form):
    prepared = prepare(lists(WRITTEN[form]), tmp_path / "out")
    assert {name: split.info.items for name, split in prepared.splits.items()} == COUNTS


@pytest.mark.parametrize(
    "entry",
    ["yes/00000063_nohash_9.wav", "../yes/00000001_nohash_0.wav", "00000001_nohash_0.wav", "#yes"],
)
def test_an_entry_without_a_clip_is_an_error_with_its_line(lists, tmp_path, entry):
    folder = lists(lambda text: f"{text}{entry}\n".encode())
    with pytest.raises(ValueError, match=r"validation_list.txt, line 32: .* matches no clip"):
        prepare(folder, tmp_path / "out")
