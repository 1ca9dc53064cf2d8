"""Preparing Speech Commands from its release: splits, scale, lengths, and what is damaged in it."""

import itertools
import os

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from torchaudio.functional import resample

from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.recipes.speech import prepare_speech_commands, wav_clips
from megalodon_tasks.recipes.speech.prepare_speech_commands import Options, prepare
from megalodon_tasks.recipes.speech.speech_commands import ALL_WORDS, TEN_WORDS
from tests.recipes.speech_files import (
    PER_WORD,
    RATE,
    clip_name,
    samples,
    write_clip,
    write_release,
)

LITERATURE, OFFICIAL = Options(), Options(splits="official")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("data") / "speech_commands_v0.02")


@pytest.fixture
def copy(release, tmp_path):
    """A copy of the release that may be damaged; its files are links until they are replaced."""
    folder = tmp_path / "copy"
    for path in release.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(release)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    return folder


def replace(folder, name, data):
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def prepared(source, out, options=LITERATURE, **others):
    assert prepare(source, out, options, **others)
    return PreparedDataset(out)


def clips_of(split):
    """{samples as bytes: label} of a split."""
    return {split.sequence("inputs", i).tobytes(): int(split.labels[i]) for i in range(len(split))}


def wanted(numbers, words=TEN_WORDS):
    return {samples(w, n).tobytes(): label for label, w in enumerate(words) for n in numbers}


@pytest.mark.parametrize("above", ["", "speech_commands_v0.02", "SpeechCommands/x"])
def test_the_release_is_found_and_kept_bit_for_bit(release, tmp_path, above):
    source = release
    if above:
        link = tmp_path / "data" / above.replace("/x", "/speech_commands_v0.02")
        link.parent.mkdir(parents=True)
        link.symlink_to(release)
        source = tmp_path / "data"
    dataset = prepared(source, tmp_path / "out", OFFICIAL)
    spec = dataset.spec
    assert (spec.benchmark, spec.kind, spec.classes) == ("sc_raw", "waveform", TEN_WORDS)
    assert (spec.columns["inputs"].dtype, spec.columns["inputs"].length) == ("int16", RATE)
    numbers = {"train": range(14), "valid": range(14, 17), "test": range(17, 20)}
    for name, chosen in numbers.items():
        assert clips_of(dataset.split(name)) == wanted(chosen)


def test_the_stratified_split_is_that_of_the_literature_over_sorted_names(release, tmp_path):
    dataset = prepared(release, tmp_path / "out", workers=2)
    names = [(w, n) for w in TEN_WORDS for n in range(PER_WORD)]
    labels = [TEN_WORDS.index(word) for word, _ in names]
    train, rest, _, rest_labels = train_test_split(
        names, labels, train_size=0.7, random_state=0, shuffle=True, stratify=labels
    )
    valid, test = train_test_split(
        rest, train_size=0.5, random_state=1, shuffle=True, stratify=rest_labels
    )
    for split, chosen in (("train", train), ("valid", valid), ("test", test)):
        expected = {samples(*one).tobytes(): TEN_WORDS.index(one[0]) for one in chosen}
        assert clips_of(dataset.split(split)) == expected


def test_counts_of_the_literature_follow_from_its_calls():
    labels = np.repeat(np.arange(10), 3498)[:34_975]
    train, rest = train_test_split(labels, train_size=0.7, random_state=0, stratify=labels)
    valid, test = train_test_split(rest, train_size=0.5, random_state=1, stratify=rest)
    found = [len(train), len(valid), len(test)]
    assert found == list(prepare_speech_commands.LITERATURE.values())


def test_neither_processes_nor_the_file_system_change_a_bit(release, copy, tmp_path):
    one = prepared(release, tmp_path / "one", workers=1)
    other = prepared(copy, tmp_path / "other", workers=3)
    for name, split in one.splits.items():
        assert len(split) == len(other.split(name))
    assert one.spec.scale == other.spec.scale


def test_an_interrupted_preparation_continues_with_the_next_clip(release, tmp_path, monkeypatch):
    read, calls, stop_at = wav_clips.read_clip, [], [None]

    def interrupted(path, rate):
        calls.append(path)
        if len(calls) == stop_at[0]:
            raise KeyboardInterrupt
        return read(path, rate)

    monkeypatch.setattr(wav_clips, "PORTION", 5)
    monkeypatch.setattr(wav_clips, "read_clip", interrupted)
    whole = prepared(release, tmp_path / "whole")
    clips = len(calls) // 2  # each is read twice
    calls.clear()
    stop_at[0] = clips + 13
    with pytest.raises(KeyboardInterrupt):
        prepared(release, tmp_path / "out")
    calls.clear()
    stop_at[0] = None
    again = prepared(release, tmp_path / "out")
    assert len(calls) == 2 * clips - 10, "two portions were stored"
    assert again.manifest.files == whole.manifest.files


def test_one_mean_and_one_deviation_of_the_training_clips(release, tmp_path):
    dataset = prepared(release, tmp_path / "out", OFFICIAL)
    clips = np.stack([samples(w, n) for w in TEN_WORDS for n in range(14)]) / 32_768
    scale = dataset.spec.scale
    assert scale.divisor == 32_768
    assert scale.mean == pytest.approx(clips.mean(), rel=1e-9)
    assert scale.std == pytest.approx(clips.std(), rel=1e-9)


def test_all_35_words(tmp_path):
    write_release(tmp_path / "raw", ALL_WORDS, length=160)
    options = Options(words=35, splits="official", seconds=0.01)
    dataset = prepared(tmp_path / "raw", tmp_path / "out", options)
    assert dataset.spec.classes == ALL_WORDS
    assert dataset.split("test").info.class_counts == [3] * 35


def test_the_same_files_are_not_prepared_again(release, tmp_path):
    out = tmp_path / "out"
    assert prepare(release, out)
    assert not prepare(release, out)
    assert prepare(release, out, OFFICIAL)
    assert not prepare(release, out, OFFICIAL)


@pytest.mark.parametrize("name", [clip_name("up", 3), "validation_list.txt"])
def test_a_changed_file_is_noticed(copy, tmp_path, name):
    out = tmp_path / "out"
    prepared(copy, out, OFFICIAL)
    if name.endswith(".wav"):
        (copy / name).unlink()
        write_clip(copy / name, samples("up", 77))
    else:
        lines = (copy / name).read_text().splitlines(keepends=True)
        replace(copy, name, "".join(lines[1:]).encode())
    before = PreparedDataset(out).manifest.files
    assert prepare(copy, out, OFFICIAL)
    assert PreparedDataset(out).manifest.files != before


def test_damaged_clips_are_left_out_and_counted(copy, tmp_path, capsys):
    whole = (copy / clip_name("yes", 0)).read_bytes()
    broken = {
        clip_name("yes", 0): b"",
        clip_name("no", 1): whole[:700],
        clip_name("go", 2): b"x" * 99,
    }
    for name, data in broken.items():
        replace(copy, name, data)
    out = tmp_path / "out"
    arguments = [str(copy), str(out), "--splits", "official", "--verify"]
    prepare_speech_commands.main(arguments)
    printed = capsys.readouterr().out
    assert "left out as damaged: 3" in printed
    for name in broken:
        assert str(copy / name) in printed
    assert len(PreparedDataset(out).split("train")) == 137
    # said again where nothing is done
    prepare_speech_commands.main(arguments)
    printed = capsys.readouterr().out
    assert "prepared already" in printed
    assert "left out as damaged: 3" in printed


def test_strict_refuses_the_first_damaged_clip(copy, tmp_path, capsys):
    path = replace(copy, clip_name("off", 5), b"")
    with pytest.raises(SystemExit) as stopped:
        prepare_speech_commands.main([str(copy), str(tmp_path / "out"), "--strict"])
    assert stopped.value.code == 2
    assert f"{path} is empty; correct or remove it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_many_damaged_clips_are_a_damaged_copy(copy, tmp_path):
    for word in ("yes", "no"):
        for number in range(2):
            replace(copy, clip_name(word, number), b"")
    with pytest.raises(ValueError, match="more than 3 items are damaged"):
        prepare(copy, tmp_path / "out", rejects=Rejects(limit=3))


SHORT, LONG = samples("yes", 500, 9_000), samples("yes", 501, 20_000)


@pytest.mark.parametrize("lengths", ["exact", "fit"])
def test_clips_of_other_lengths(copy, tmp_path, capsys, lengths):
    for number, values in ((0, SHORT), (1, LONG)):
        (copy / clip_name("yes", number)).unlink()
        write_clip(copy / clip_name("yes", number), values)
    out = tmp_path / "out"
    prepare_speech_commands.main(
        [str(copy), str(out), "--splits", "official", "--lengths", lengths]
    )
    dataset = PreparedDataset(out)
    other = {clip_name("yes", 0): 9_000, clip_name("yes", 1): 20_000}
    assert dataset.spec.source["other_lengths"] == other
    assert "2 clips have not 16000 samples and were" in capsys.readouterr().out
    train = clips_of(dataset.split("train"))
    fitted = [np.pad(SHORT, (0, 7_000)).tobytes(), LONG[:RATE].tobytes()]
    if lengths == "fit":
        assert len(train) == 140
        assert all(train[one] == 0 for one in fitted)
    else:
        assert len(train) == 138
        assert not train.keys() & set(fitted)


def test_another_rate_and_length(release, tmp_path):
    options = Options(splits="official", lengths="fit", sample_rate=8_000, seconds=0.25)
    dataset = prepared(release, tmp_path / "out", options)
    assert dataset.spec.columns["inputs"].length == 2_000
    assert dataset.spec.source["settings"]["sample_rate"] == 8_000
    expected = resample(torch.from_numpy(samples("yes", 0) / 1.0), RATE, 8_000).numpy()
    np.testing.assert_allclose(
        dataset.split("train").sequence("inputs", 0), expected[:2_000], atol=1.0
    )


def test_of_two_names_that_differ_in_capitals_one_is_taken(copy, tmp_path):
    write_clip(copy / clip_name("go", 10).replace("0000000a", "0000000A"), samples("go", 99))
    rejects = Rejects()
    dataset = prepared(copy, tmp_path / "out", OFFICIAL, rejects=rejects)
    ((path, reason),) = rejects.reasons.items()
    assert os.path.basename(path) == "0000000a_nohash_0.wav"
    assert reason == "has the name of 0000000A_nohash_0.wav, but for capitals"
    assert len(dataset.split("train")) == 140


def test_hidden_and_other_files_are_not_looked_at(copy, tmp_path):
    (copy / "up" / "._00000000_nohash_0.wav").write_bytes(b"resource fork")
    (copy / "up" / "notes.txt").write_text("x")
    rejects = Rejects()
    prepared(copy, tmp_path / "out", rejects=rejects)
    assert len(rejects) == 0


def test_a_listed_clip_that_does_not_exist_is_an_error(copy, tmp_path):
    (copy / clip_name("left", 15)).unlink()
    with pytest.raises(ValueError, match=rf"line 14: '{clip_name('left', 15)}' matches no clip"):
        prepared(copy, tmp_path / "out", OFFICIAL)


def remove_word(folder):
    for path in (folder / "stop").iterdir():
        path.unlink()
    (folder / "stop").rmdir()


def empty_word(folder):
    for path in (folder / "down").iterdir():
        path.unlink()


def list_twice(folder):
    with open(replace(folder, "testing_list.txt", b""), "w") as stream:
        stream.write(f"{clip_name('on', 14)}\n")


MISTAKES = {
    "missing word": (remove_word, r"stop is missing, the folder of a word \(1 of 10 are: stop\)"),
    "empty word": (empty_word, r"down has no \*.wav; unpack the archive again"),
    "missing list": (
        lambda folder: (folder / "testing_list.txt").unlink(),
        "testing_list.txt is missing, which the official splits need",
    ),
    "in both lists": (list_twice, "on/0000000e_nohash_0.wav is in both validation_list.txt and"),
    "empty list": (
        lambda folder: replace(folder, "testing_list.txt", b"\n"),
        "no clip is left for the split 'test'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_incomplete_copy_is_refused(copy, tmp_path, mistake):
    damage, message = MISTAKES[mistake]
    damage(copy)
    with pytest.raises(ValueError, match=message):
        prepare(copy, tmp_path / "out", OFFICIAL)
    assert not (tmp_path / "out").exists()


def test_too_few_clips_for_a_stratified_split(tmp_path):
    write_release(tmp_path / "raw", per_word=1)
    with pytest.raises(ValueError, match="10 clips of 10 words cannot be split in three"):
        prepare(tmp_path / "raw", tmp_path / "out")


def test_silence_is_refused(tmp_path):
    for word, number in itertools.product(TEN_WORDS, range(PER_WORD)):
        write_clip(tmp_path / "raw" / clip_name(word, number), np.zeros(RATE, np.int16))
    with pytest.raises(ValueError, match="the 140 training clips are silent"):
        prepare(tmp_path / "raw", tmp_path / "out")


def test_no_clip_of_the_wanted_length(release, tmp_path):
    with pytest.raises(ValueError, match="no clip of 8000 samples at 16000 Hz; take --lengths fit"):
        prepare(release, tmp_path / "out", Options(seconds=0.5))


def test_nothing_to_prepare_says_where_to_get_it(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "speech_commands_v0.02.tar.gz").touch()
    with pytest.raises(
        ValueError, match="holds no data that is recognised: .* a folder of each word .*unpack"
    ):
        prepare(tmp_path / "raw", tmp_path / "out")
