"""Pathfinder and Path-X: the released layout and Mega's, what is damaged in them, and the splits."""

import numpy as np
import pytest
import torch
from PIL import Image

from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.recipes.lra.pathfinder import prepare as prepare_pathfinder
from megalodon_tasks.recipes.lra.pathfinder.prepare import Options
from tests.recipes.test_image import images_of

HARD = "pathfinder32/curv_contour_length_14"
FIELDS = "1.0 14 4 2 0.5 1 1"


def write_images(root, folder=HARD, batches=3, per_batch=20, side=32):
    """The layout of the release; the grey level of an image tells its place among all."""
    place = root / folder
    (place / "metadata").mkdir(parents=True)
    # 10 after 2: files are to be taken by number
    for batch, number in enumerate((1, 2, 10)[:batches]):
        (place / "imgs" / str(number)).mkdir(parents=True)
        lines = []
        for index in range(per_batch):
            level = batch * per_batch + index
            image = Image.fromarray(np.full((side, side), level, np.uint8))
            image.save(place / "imgs" / str(number) / f"sample_{index}.png")
            lines.append(f"imgs/{number} sample_{index}.png {index} {level % 2} {FIELDS}\n")
        (place / "metadata" / f"{number}.npy").write_text("".join(lines))
    return place


def prepare(source, out, rejects=None, workers=1, **options):
    return prepare_pathfinder.prepare(
        source, out, Options(**options), workers=workers, rejects=rejects
    )


def levels(split):
    return [pixels[0] for _, pixels in images_of(split)]


@pytest.mark.parametrize("workers", [1, 2])
def test_images_are_split_as_s4_does(tmp_path, workers):
    write_images(tmp_path / "raw")
    assert prepare(tmp_path / "raw", tmp_path / "out", workers=workers)
    prepared = PreparedDataset(tmp_path / "out")
    assert prepared.spec.benchmark == "pathfinder"
    parts = torch.utils.data.random_split(range(60), [48, 6, 6], torch.Generator().manual_seed(42))
    for name, part in zip(("train", "valid", "test"), parts, strict=True):
        split = prepared.split(name)
        assert levels(split) == sorted(part.indices)
        for label, pixels in images_of(split):
            assert pixels == [pixels[0]] * 1024
            assert label == pixels[0] % 2


def test_images_are_split_in_their_order(tmp_path):
    write_images(tmp_path / "raw")
    prepare(tmp_path / "raw", tmp_path / "out", splits="in-order")
    prepared = PreparedDataset(tmp_path / "out")
    assert levels(prepared.split("train")) == list(range(48))
    assert levels(prepared.split("valid")) == list(range(48, 54))
    assert levels(prepared.split("test")) == list(range(54, 60))


@pytest.mark.parametrize("splits", ["random", "in-order"])
def test_distinct_images_are_prepared_once(tmp_path, splits):
    place = write_images(tmp_path / "raw")
    for copy, original in (
        ("1/sample_9", "1/sample_3"),
        ("10/sample_0", "1/sample_3"),
        ("10/sample_7", "2/sample_5"),
    ):
        (place / f"imgs/{copy}.png").write_bytes((place / f"imgs/{original}.png").read_bytes())
    prepare(tmp_path / "raw", tmp_path / "out", splits=splits, distinct=True)
    prepared = PreparedDataset(tmp_path / "out")
    found = [levels(prepared.split(name)) for name in ("train", "valid", "test")]
    assert sorted(sum(found, [])) == sorted(set(range(60)) - {9, 40, 47})
    assert [len(split) for split in found] == [47, 5, 5]
    assert "of distinct images" in prepared.spec.source["split_rule"]
    assert not prepared.spec.source["duplicates"]


@pytest.mark.parametrize(
    "start", ["", "lra_release", "lra_release/inner", "lra_release/inner/pathfinder32", HARD]
)
def test_the_release_is_found_from_any_folder_of_it(tmp_path, start):
    inner = tmp_path / "lra_release" / "inner"
    write_images(inner)
    assert prepare(inner / start if start == HARD else tmp_path / start, tmp_path / "out")


def test_a_folder_of_another_resolution_is_not_taken(tmp_path):
    write_images(tmp_path, "pathfinder64/curv_contour_length_14", side=64)
    with pytest.raises(ValueError, match="looked there .* for pathfinder32/curv_contour_length_14"):
        prepare(tmp_path, tmp_path / "out")


def test_of_two_folders_the_inner_one_is_taken_unless_the_other_is_named(tmp_path, capsys):
    outer = write_images(tmp_path / "lra_release", per_batch=7)
    inner = write_images(tmp_path / "lra_release" / "lra_release", per_batch=20)
    out = tmp_path / "out"
    prepare_pathfinder.main([str(tmp_path), str(out), "--workers", "1"])
    assert len(PreparedDataset(out).split("train")) == 48
    assert f"taken: {inner}, the deepest of several; not taken: {outer}" in capsys.readouterr().out
    prepare_pathfinder.main([str(outer.parent), str(out), "--workers", "1"])
    assert len(PreparedDataset(out).split("train")) == 17
    assert "not taken" not in capsys.readouterr().out


def test_path_x_has_larger_images(tmp_path):
    write_images(tmp_path, "pathfinder128/curv_contour_length_14", batches=1, side=128)
    prepare(tmp_path, tmp_path / "out", benchmark="pathx")
    prepared = PreparedDataset(tmp_path / "out")
    assert prepared.spec.benchmark == "pathx"
    assert len(prepared.split("test").sequence("inputs", 0)) == 16384
    assert (tmp_path / "out" / "train.inputs.bin").stat().st_size == 16 * 16384


def damage(place, kind):
    image = place / "imgs" / "2" / "sample_4.png"
    metadata = place / "metadata" / "2.npy"
    lines = metadata.read_text().splitlines()
    if kind == "empty":
        image.write_bytes(b"")
    elif kind == "cut":
        image.write_bytes(image.read_bytes()[:40])
    elif kind == "missing":
        image.unlink()
    elif kind == "other size":
        Image.fromarray(np.zeros((32, 31), np.uint8)).save(image)
    elif kind == "colour":
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    elif kind == "text":
        image.write_text("not found")
    elif kind == "short line":
        lines[4] = "imgs/2 sample_4.png 4"
    elif kind == "label":
        lines[4] = lines[4].replace("png 4 0", "png 4 2")
    metadata.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "is empty"),
        ("cut", "is no readable image"),
        ("missing", "is missing"),
        ("other size", "is 31x32, expected 32x32"),
        ("colour", "has the mode 'RGB', expected 8-bit grey"),
        ("text", "is no readable image"),
        ("short line", "has 3 fields, expected at least 4"),
        ("label", "has the label '2', expected 0 or 1"),
    ],
)
def test_a_damaged_image_is_left_out_and_moves_no_other(tmp_path, kind, reason):
    place = write_images(tmp_path / "raw")
    prepare(tmp_path / "raw", tmp_path / "whole")
    damage(place, kind)
    rejects = Rejects()
    prepare(tmp_path / "raw", tmp_path / "out", rejects)
    whole, rest = (PreparedDataset(tmp_path / name) for name in ("whole", "out"))
    for name in ("train", "valid", "test"):
        kept = [level for level in levels(whole.split(name)) if level != 24]
        assert levels(rest.split(name)) == kept
    ((where, said),) = rest.spec.source["left_out"].items()
    assert reason in said
    assert ("2.npy, line 5" if kind in ("short line", "label") else "sample_4.png") in where
    with pytest.raises(ValueError, match="without --strict"):
        prepare(tmp_path / "raw", tmp_path / "strict", Rejects(strict=True))
    assert not (tmp_path / "strict" / "manifest.json").exists()


def test_a_mended_image_is_prepared_again(tmp_path):
    place = write_images(tmp_path / "raw")
    image = place / "imgs" / "2" / "sample_4.png"
    whole = image.read_bytes()
    image.write_bytes(b"")
    assert prepare(tmp_path / "raw", tmp_path / "out", Rejects())
    with pytest.raises(ValueError, match="without --strict"):
        prepare(tmp_path / "raw", tmp_path / "out", Rejects(strict=True))
    image.write_bytes(whole)
    assert prepare(tmp_path / "raw", tmp_path / "out", Rejects())
    assert not prepare(tmp_path / "raw", tmp_path / "out", Rejects())
    assert PreparedDataset(tmp_path / "out").spec.source["left_out"] == {}


def test_the_report_counts_labels_and_names_what_was_left_out(tmp_path, capsys):
    place = write_images(tmp_path / "raw")
    damage(place, "empty")
    prepare_pathfinder.main([str(tmp_path / "raw"), str(tmp_path / "out"), "--workers", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "left out as damaged: 1"
    assert lines[-1].endswith("imgs/2/sample_4.png is empty")
    (train,) = [line for line in lines if line.startswith("train: ")]
    assert "(the released benchmark has 160000), lengths 1024 to 1024, labels not joined:" in train


def test_too_much_damage_is_refused(tmp_path):
    place = write_images(tmp_path / "raw")
    for path in place.glob("imgs/*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="more than 5 items are damaged"):
        prepare(tmp_path / "raw", tmp_path / "out", Rejects(limit=5))


def test_what_is_no_release_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        prepare(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match="looked there .* for pathfinder32/curv_contour_length_14"):
        prepare(tmp_path, tmp_path / "out")
    place = write_images(tmp_path)
    (place / "metadata" / "2.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(ValueError, match="is a binary array"):
        prepare(tmp_path, tmp_path / "out")
    (place / "metadata" / "2.npy").rename(place / "metadata" / "two.npy")
    with pytest.raises(ValueError, match="two.npy is not named by a number"):
        prepare(tmp_path, tmp_path / "out")


def test_generated_images_are_read(tmp_path):
    words = [str(tmp_path), str(tmp_path / "out"), "--workers", "1", "--generate", "--count", "12"]
    assert prepare_pathfinder.main(words) == tmp_path / "out"
    prepared = PreparedDataset(tmp_path / "out")
    assert prepared.spec.source["origin"] == "generated"
    assert prepared.spec.source["settings"]["generated"]["seed"] == 0
    assert {name: len(split) for name, split in prepared.splits.items()} == {
        "train": 10, "valid": 1, "test": 1,
    }  # fmt: skip
    assert not prepare(tmp_path, tmp_path / "out")
    assert prepare(tmp_path, tmp_path / "out", splits="in-order")


def test_megas_files_are_read(tmp_path):
    for below in ("input", "label"):
        (tmp_path / "pathfinder" / below).mkdir(parents=True)
    for split in ("train", "valid", "test"):
        image = " ".join(str(n % 256) for n in range(1024))
        (tmp_path / "pathfinder" / "input" / f"{split}.src").write_text(f"{image}\n{image}\n")
        (tmp_path / "pathfinder" / "label" / f"{split}.label").write_text("1\n0\n")
    prepare(tmp_path, tmp_path / "out")
    prepared = PreparedDataset(tmp_path / "out")
    assert images_of(prepared.split("valid")) == [
        (1, [n % 256 for n in range(1024)]), (0, [n % 256 for n in range(1024)]),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="--distinct: .*Mega's files, which are split already"):
        prepare(tmp_path, tmp_path / "distinct", distinct=True)
