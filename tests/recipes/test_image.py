"""Image: CIFAR-10 in its released layout and in Mega's, what is damaged in them, and the splits."""

import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.transforms.functional import rgb_to_grayscale

from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.recipes.lra.image import demo_images
from megalodon_tasks.recipes.lra.image import prepare as prepare_image
from megalodon_tasks.recipes.lra.image.cifar import CLASSES

PER_FILE = 20
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def batch(number, images=PER_FILE):
    rng = np.random.default_rng(number)
    return {
        b"batch_label": b"some batch",
        b"data": rng.integers(0, 256, (images, 3072), dtype=np.uint8),
        b"labels": rng.integers(0, 10, images).tolist(),
        b"filenames": [f"image_{n}.png".encode() for n in range(images)],
    }


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes alike as the byte strings of Python 2, which made the release."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_text(self, value):
        data = value if isinstance(value, bytes) else value.encode("latin-1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_text


def as_python_2(value):
    stream = io.BytesIO()
    Python2Pickler(stream, 2).dump(value)
    # the name of the module in the numpy of that time
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_release(folder):
    """The layout of cifar-10-python.tar.gz, with fewer images."""
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(as_python_2(batch(number)))
    (folder / "batches.meta").write_bytes(as_python_2({b"label_names": list(CLASSES)}))
    return folder


def write_mega(folder, side=4, count=30):
    rng = np.random.default_rng(0)
    for below in ("input", "label"):
        (folder / below).mkdir(parents=True)
    for split in ("train", "valid", "test"):
        images = rng.integers(0, 256, (count, side * side))
        lines = [" ".join(map(str, image)) + "\n" for image in images]
        (folder / "input" / f"{split}.src").write_text("".join(lines))
        labels = "".join(f"{n % 10}\n" for n in range(count))
        (folder / "label" / f"{split}.label").write_text(labels)
    return folder


def images_of(split):
    return [
        (int(label), split.sequence("inputs", place).tolist())
        for place, label in enumerate(split.labels)
    ]


def grey(data):
    """By torchvision's formula, to a level."""
    planes = torch.from_numpy(data).view(-1, 3, 32, 32)
    return rgb_to_grayscale(planes).view(len(data), -1).numpy().astype(int)


def training_images():
    batches = [batch(number) for number in range(5)]
    labels = sum((part[b"labels"] for part in batches), [])
    return labels, grey(np.concatenate([part[b"data"] for part in batches]))


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py", "cifar10/cifar-10-batches-py"])
def test_the_release_is_found_and_becomes_grey_pixels(tmp_path, below):
    write_release(tmp_path / "raw" / below)
    assert prepare_image.prepare(tmp_path / "raw", tmp_path / "out")
    prepared = PreparedDataset(tmp_path / "out")
    assert prepared.spec.classes == CLASSES
    assert prepared.spec.kind == "pixels"
    counts = {name: len(split) for name, split in prepared.splits.items()}
    assert counts == {"train": 90, "valid": 10, "test": 20}
    found = images_of(prepared.split("test"))
    wanted = batch(5)
    assert [label for label, _ in found] == wanted[b"labels"]
    difference = np.abs(np.array([pixels for _, pixels in found]) - grey(wanted[b"data"]))
    assert difference.max() <= 1


@pytest.mark.parametrize("protocol", [2, 4])
def test_batches_that_were_pickled_anew_are_read(tmp_path, protocol):
    folder = write_release(tmp_path / "raw")
    (folder / "test_batch").write_bytes(pickle.dumps(batch(5), protocol=protocol))
    prepare_image.prepare(folder, tmp_path / "out")
    assert PreparedDataset(tmp_path / "out").split("test").labels.tolist() == batch(5)[b"labels"]


def test_the_random_split_is_that_of_torch_with_seed_42(tmp_path):
    write_release(tmp_path / "raw")
    prepare_image.prepare(tmp_path / "raw", tmp_path / "out")
    train, valid = torch.utils.data.random_split(
        range(100), [90, 10], torch.Generator().manual_seed(42)
    )
    labels, _ = training_images()
    prepared = PreparedDataset(tmp_path / "out")
    for name, part in (("train", train), ("valid", valid)):
        wanted = [labels[place] for place in sorted(part.indices)]
        assert prepared.split(name).labels.tolist() == wanted


def test_the_last_tenth_can_be_for_validation(tmp_path):
    write_release(tmp_path / "raw")
    prepare_image.prepare(tmp_path / "raw", tmp_path / "out", validation="last")
    labels, _ = training_images()
    prepared = PreparedDataset(tmp_path / "out")
    assert prepared.split("train").labels.tolist() == labels[:90]
    assert prepared.split("valid").labels.tolist() == labels[90:]


def test_preparing_again_does_nothing_unless_asked_for_something_else(tmp_path):
    write_release(tmp_path / "raw")
    source, out = tmp_path / "raw", tmp_path / "out"
    assert prepare_image.prepare(source, out)
    assert not prepare_image.prepare(source, out)
    assert prepare_image.prepare(source, out, validation="last")


class Evil:
    def __reduce__(self):
        return os.system, ("touch here",)


def truncated(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "is no batch of CIFAR-10"),
        (truncated, "is no batch of CIFAR-10"),
        (lambda data: b"<html>not found</html>", "is no batch of CIFAR-10"),
        (lambda data: pickle.dumps(Evil()), "which is no array"),
        (lambda data: pickle.dumps({b"data": np.zeros((2, 3072))}), "KeyError"),
        (
            lambda data: pickle.dumps({b"data": np.zeros((2, 99), np.uint8), b"labels": [1, 2]}),
            r"images uint8 \(2, 99\), expected uint8 \(2, 3072\)",
        ),
        (
            lambda data: pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}),
            "labels from 10 to 10, expected 0 to 9",
        ),
        (
            lambda data: pickle.dumps({b"data": np.zeros((0, 3072), np.uint8), b"labels": []}),
            r"labels float64 \(0,\), expected whole numbers",
        ),
    ],
)
def test_a_damaged_batch_is_refused_by_name(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    folder = write_release(tmp_path / "raw")
    path = folder / "data_batch_3"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        prepare_image.prepare(folder, tmp_path / "out")
    assert "data_batch_3" in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "here").exists()


def test_a_missing_batch_and_an_empty_folder_are_named(tmp_path):
    folder = write_release(tmp_path / "raw")
    (folder / "data_batch_5").unlink()
    with pytest.raises(ValueError, match="data_batch_5 is missing"):
        prepare_image.prepare(folder, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is empty.*get cifar-10-python.tar.gz"):
        prepare_image.prepare(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty" / "cifar-10-python.tar.gz").touch()
    with pytest.raises(ValueError, match="unpack .*cifar-10-python.tar.gz first"):
        prepare_image.prepare(tmp_path / "empty", tmp_path / "out")


@pytest.mark.parametrize("below", ["", "cifar10", "lra/cifar10"])
def test_megas_files_are_read(tmp_path, below):
    folder = write_mega(tmp_path / "raw" / below)
    prepare_image.prepare(tmp_path / "raw", tmp_path / "out", side=4)
    prepared = PreparedDataset(tmp_path / "out")
    for split in ("train", "valid", "test"):
        lines = (folder / "input" / f"{split}.src").read_text().splitlines()
        wanted = [(n % 10, [int(word) for word in line.split()]) for n, line in enumerate(lines)]
        assert images_of(prepared.split(split)) == wanted


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("input/train.src", "1 2 3", "has 3 pixels, expected 16"),
        ("input/train.src", "", "has 0 pixels, expected 16"),
        ("input/train.src", " ".join(["256"] * 16), "has pixels from 256 to 256"),
        ("input/train.src", " ".join(["-1"] * 16), "has pixels from -1 to -1"),
        ("input/train.src", " ".join(["0.5"] * 16), "holds something else than whole numbers"),
        ("label/train.label", "10", "has the label '10', expected 0 to 9"),
        ("label/train.label", "cat", "has the label 'cat', expected 0 to 9"),
    ],
)
def test_a_damaged_line_is_left_out_and_named(tmp_path, name, line, reason):
    folder = write_mega(tmp_path / "raw")
    lines = (folder / name).read_text().splitlines()
    lines[7] = line
    (folder / name).write_text("\n".join(lines) + "\n")
    rejects = Rejects()
    prepare_image.prepare(folder, tmp_path / "out", side=4, rejects=rejects)
    prepared = PreparedDataset(tmp_path / "out")
    assert len(prepared.split("train")) == 29
    ((place, said),) = prepared.spec.source["left_out"].items()
    assert place.endswith(f"{name}, line 8")
    assert reason in said
    with pytest.raises(ValueError, match="without --strict"):
        prepare_image.prepare(folder, tmp_path / "other", side=4, rejects=Rejects(strict=True))


@pytest.mark.parametrize("name", ["input/valid.src", "label/valid.label"])
def test_files_of_different_length_are_refused(tmp_path, name):
    folder = write_mega(tmp_path / "raw")
    lines = (folder / name).read_text().splitlines()
    (folder / name).write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match="was cut short"):
        prepare_image.prepare(folder, tmp_path / "out", side=4)


def test_the_demo_has_every_digit_once(tmp_path, capsys):
    demo_images.main([str(tmp_path / "raw")])
    prepare_image.main([str(tmp_path / "raw"), str(tmp_path / "out"), "--side", "8"])
    prepared = PreparedDataset(tmp_path / "out")
    found = sorted(
        tuple(pixels) for split in prepared.splits.values() for _, pixels in images_of(split)
    )
    images = np.rint(load_digits().images.reshape(-1, 64) * 255 / 16).astype(int)
    assert found == sorted(map(tuple, images.tolist()))
    assert "test: 297 images (the released benchmark has 10000)" in capsys.readouterr().out
