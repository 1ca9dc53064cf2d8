"""Preparations: not again from the same files, continued when stopped, and how their commands end."""

import hashlib

import numpy as np
import pytest

from megalodon_tasks.data import preparing
from megalodon_tasks.data.manifest import Manifest
from megalodon_tasks.data.sequences import PreparedDataset, ValueScale
from megalodon_tasks.data.sources import Origin, Rejects
from tests.data.prepared import spec_of


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{'x' * length}\n" for length in (1, 2, 3, 4)))
    return path


def read_lengths(origin, stop_at, on_bytes):
    for number, line in enumerate(origin.lines(on_bytes)):
        if number == stop_at:
            raise KeyboardInterrupt
        yield number % 3, {"inputs": np.arange(1, len(line))}


def preparation(source, stop_at=None, benchmark="listops", rejects=None, complete=None, **settings):
    origin = Origin.of_file(source)
    form = spec_of(benchmark=benchmark, source={"origin": "release", "settings": settings})
    if complete is not None:
        form = spec_of(vocabulary=(), kind="pixels", source={"settings": settings})
    read = preparing.from_the_start(read_lengths, origin, stop_at)
    return preparing.Preparation(
        "Words",
        form,
        {"words": origin},
        {"train": read},
        Rejects() if rejects is None else rejects,
        complete,
    )


def write(out, source, **options):
    return preparation(source, **options).write(out)


def test_the_source_is_recorded(tmp_path, source):
    assert write(tmp_path / "out", source, side=3)
    found = Manifest.read(tmp_path / "out").source
    assert (found["origin"], found["settings"], found["left_out"]) == ("release", {"side": 3}, {})
    assert found["files"]["words"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()


def test_the_same_files_in_the_same_way_are_not_prepared_again(tmp_path, source):
    assert write(tmp_path / "out", source, side=3)
    assert not write(tmp_path / "out", source, side=3)
    assert write(tmp_path / "out", source, side=4)
    text = source.read_text()
    source.write_text(text)
    assert not write(tmp_path / "out", source, side=4), "the contents are the same"
    source.write_text(text.replace("xx\n", "xy\n"))
    assert write(tmp_path / "out", source, side=4)
    (tmp_path / "out" / "train.labels.bin").unlink()
    assert write(tmp_path / "out", source, side=4)


def test_data_of_another_benchmark_is_not_replaced(tmp_path, source):
    write(tmp_path / "out", source)
    with pytest.raises(ValueError, match="out holds prepared data of 'listops'; choose another"):
        write(tmp_path / "out", source, benchmark="text")


def test_an_interruption_keeps_what_is_done_and_an_error_does_not(tmp_path, source):
    for options in ({}, {"side": 3}):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out", source, stop_at=2)
        assert write(tmp_path / "out", source, **options)
        found = PreparedDataset(tmp_path / "out").split("train")
        assert found.lengths("inputs").tolist() == [1, 2, 3, 4]
        found.folder.joinpath("manifest.json").unlink()
    source.write_text("\n")
    with pytest.raises(ValueError, match="item 0, inputs: shape"):
        write(tmp_path / "new", source)
    assert not (tmp_path / "new").exists()


def test_what_depends_on_the_data_is_measured_once(tmp_path, source):
    measured = []

    def complete(spec, inside):
        measured.append(inside)
        return spec_of(
            vocabulary=(), kind="pixels", source=spec.source, scale=ValueScale(1.0, 2.0, 3.0)
        )

    assert write(tmp_path / "out", source, complete=complete)
    assert PreparedDataset(tmp_path / "out").spec.scale == ValueScale(1.0, 2.0, 3.0)
    assert not write(tmp_path / "out", source, complete=complete)
    assert len(measured) == 1


def test_strict_prepares_again_what_was_prepared_without(tmp_path, source):
    rejects = Rejects()
    rejects.add("word 9", "is empty")
    write(tmp_path / "out", source, rejects=rejects)
    assert not write(tmp_path / "out", source)
    assert write(tmp_path / "out", source, rejects=Rejects(strict=True))


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("words.txt is empty"), 2, "error: words.txt is empty\n"),
        (OSError("no space"), 2, "error: no space\n"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted; the same command continues where it was stopped\n",
        ),
    ],
)
def test_commands_end_with_one_message(capsys, error, status, message):
    parser = preparing.command_line("lra/listops", "Prepare ListOps.", "a folder")
    with pytest.raises(SystemExit) as end, preparing.ending_with_messages(parser):
        raise error
    assert end.value.code == status
    assert capsys.readouterr().err == message


def test_commands_verify_and_report(tmp_path, source, capsys):
    parser = preparing.command_line("lra/listops", "Prepare ListOps.", "a folder")
    out = tmp_path / "out"
    options = parser.parse_args([str(source), str(out), "--verify"])

    def run():
        preparing.run(
            parser,
            options,
            lambda: write(out, source),
            lambda dataset: preparing.describe_splits(dataset, "words", {"train": 5}),
        )

    run()
    expected = "train: 4 words (the released benchmark has 5), lengths 1 to 4, labels one:50.0%"
    assert f"{out}: prepared\n{expected}" in capsys.readouterr().out
    content = (out / "train.inputs.bin").read_bytes()
    damaged = bytes([content[0] ^ 1]) + content[1:]
    (out / "train.inputs.bin").write_bytes(damaged)
    run()  # prepares again
    assert f"{out}: prepared\n{expected}" in capsys.readouterr().out
    assert (out / "train.inputs.bin").read_bytes() == content
    (out / "train.inputs.bin").write_bytes(damaged)
    options.if_missing = True
    with pytest.raises(SystemExit):
        run()
    assert "train.inputs.bin is damaged" in capsys.readouterr().err
