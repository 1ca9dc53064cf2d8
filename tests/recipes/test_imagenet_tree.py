"""The ImageFolder tree: its index, its checks, and the command that prepares it."""

import json
import os
import pickle
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torchvision

from megalodon_tasks.data.manifest import MANIFEST, sha256_of
from megalodon_tasks.recipes.imagenet import prepare_imagenet
from megalodon_tasks.recipes.imagenet.image_tree import IMG_EXTENSIONS, ImageTree, index_of
from tests.recipes.image_files import CLASSES, build_index, damaged_images, odd_images, write_tree


@pytest.fixture
def images(tmp_path):
    return write_tree(tmp_path / "my images")


def run(*arguments):
    prepare_imagenet.main([str(a) for a in arguments])


def test_the_same_images_and_labels_as_torchvision(images, tmp_path):
    (images / "train" / CLASSES[0] / "deeper").mkdir()
    source = images / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    shutil.copy(source, images / "train" / CLASSES[0] / "deeper" / "ümlaut a.jpg")
    (images / "train" / CLASSES[1] / "notes.txt").write_text("no image")
    theirs = {
        name: dict(torchvision.datasets.ImageFolder(images / folder).samples)
        for name, folder in (("train", "train"), ("valid", "val"))
    }
    (images / "train" / ".cache").mkdir()
    tree = build_index(images, tmp_path / "index")
    assert tree.classes == CLASSES
    for name, samples in theirs.items():
        split = pickle.loads(pickle.dumps(tree.split(name)))
        assert {str(split.path(i)): int(split.labels[i]) for i in range(len(split))} == samples
    assert tree.split("train").info.ignored == 1
    assert torchvision.datasets.folder.IMG_EXTENSIONS == IMG_EXTENSIONS


def test_test_stands_for_validation_without_a_folder_of_its_own(images, tmp_path):
    tree = build_index(images, tmp_path / "index")
    assert tree.split("test").info.folder == "val"
    shutil.copytree(images / "val", images / "test")
    assert build_index(images, tmp_path / "index").split("test").info.folder == "test"
    with pytest.raises(ValueError, match="no split 'dev'; it has train, valid"):
        tree.split("dev")


def test_the_index_moves_with_its_images(images, tmp_path):
    build_index(images, images / "prepared")
    moved = shutil.move(images, tmp_path / "elsewhere")
    split = ImageTree(moved / "prepared").split("train")
    assert split.path(0).is_file()
    shutil.rmtree(moved / "val")
    with pytest.raises(ValueError, match="elsewhere/val is not there any more"):
        ImageTree(moved / "prepared")


def test_preparing_again_reads_only_what_changed(images, capsys):
    out = images / "prepared"
    run(images, out, "--workers", 1)
    first = capsys.readouterr().out
    assert "3 classes (ImageNet-1K has 1000)" in first
    assert "train: 24 images (ImageNet-1K has 1,281,167), 8 to 8 in a class" in first
    assert "val: 6 images decoded: 6 RGB" in first
    assert first.startswith(f"{out}: prepared\n")
    written = (out / "train.paths").stat().st_mtime_ns
    run(images, out, "--workers", 1)
    again = capsys.readouterr().out
    assert "decoded" not in again
    assert "prepared already from the same files" in again
    assert (out / "train.paths").stat().st_mtime_ns == written

    os.remove(next((images / "train" / CLASSES[2]).iterdir()))
    run(images, out, "--workers", 1)
    assert "train: 23 images" in capsys.readouterr().out
    assert len(ImageTree(out).split("train")) == 23
    shutil.copytree(images / "val", images / "test")
    run(images, out, "--workers", 1)
    assert len(ImageTree(out).split("test")) == 6


def test_odd_images_are_counted_and_listed(images, capsys):
    odd_images(images / "val" / CLASSES[0])
    run(images, images / "prepared", "--workers", 1)
    assert "val: 16 images decoded: 7 RGB, 3 P" in capsys.readouterr().out
    listed = (images / "prepared" / "valid.unusual.tsv").read_text().splitlines()
    modes = {os.path.basename(line.split("\t")[0]): line.split("\t")[1] for line in listed}
    assert modes["cmyk.jpg"] == "CMYK"
    assert modes["bits16.png"] == "I;16"
    assert "grey.jpg" not in modes


@pytest.mark.parametrize("workers", [1, 3])
def test_damaged_images_are_named_where_they_are_evaluated_or_looked_for(images, capsys, workers):
    damaged = damaged_images(images / "train" / CLASSES[1])
    on_disk = [path for path, _ in damaged.values() if path.exists()]
    out = images / "prepared"
    run(images, out)
    assert "left out" not in capsys.readouterr().out
    run(images, out, "--decode", "all", "--workers", workers)
    printed = capsys.readouterr().out
    assert f"left out as damaged: {len(on_disk)}" in printed
    for path in on_disk:
        assert f"  {path} " in printed
    assert not ImageTree(out).split("train").info.verified

    shutil.copy(on_disk[0], images / "val" / CLASSES[0] / "bad.jpg")
    with pytest.raises(SystemExit) as caught:
        run(images, out, "--workers", workers)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert f"{images / 'val'}: evaluation takes no damaged image" in message
    assert f"{images / 'val' / CLASSES[0] / 'bad.jpg'} cannot be decoded" in message


def copy_into(images, *splits):
    """Copy a training image into these splits under another name."""
    first = sorted((images / "train").glob("*/*"))[0]
    for split in splits:
        shutil.copy(first, images / split / CLASSES[1] / f"copy in {split}.JPEG")


@pytest.mark.parametrize("order", [("val", "all"), ("all", "val"), ("all", "none")])
def test_duplicates_are_found_among_splits_decoded_in_other_calls(images, capsys, order):
    copy_into(images, "val", "train")
    for which in order:
        run(images, images / "out", "--decode", which)
    last = capsys.readouterr().out.rpartition("out: ")[2]
    assert "duplicates: train has 1 items that it has already" in last
    assert "duplicates: train and valid share 1 items" in last


def test_duplicates_that_were_removed_are_forgotten(images, capsys):
    copy_into(images, "val")
    run(images, images / "out", "--decode", "all")
    assert "train and valid share 1 items" in capsys.readouterr().out
    (images / "val" / CLASSES[1] / "copy in val.JPEG").unlink()
    run(images, images / "out")
    assert "duplicates:" not in capsys.readouterr().out


def remove_val(images):
    shutil.rmtree(images / "val")
    return "has no folder val/"


def flatten_val(images):
    for path in list((images / "val").rglob("*.JPEG")):
        # the names repeat in each class here
        path.rename(images / "val" / f"{path.parent.name}_{path.name}")
    for name in CLASSES:
        (images / "val" / name).rmdir()
    return "val holds 6 images and no class folders; the images must lie in"


def empty_class(images):
    for path in (images / "train" / CLASSES[1]).iterdir():
        path.unlink()
    return f"1 class folders hold no image .*train/{CLASSES[1]}"


def class_in_train_alone(images):
    shutil.rmtree(images / "val" / CLASSES[2])
    return f"train and val have different classes: val lacks {CLASSES[2]}"


def class_in_val_alone(images):
    shutil.copytree(images / "val" / CLASSES[2], images / "val" / "n99")
    return "only val has n99"


def no_folder(images):
    shutil.rmtree(images)
    return "is not a folder"


def line_break(images):
    folder = images / "train" / CLASSES[0]
    next(folder.iterdir()).rename(folder / "a\nb.jpg")
    return "has a line break in its name"


@pytest.mark.parametrize(
    "spoil",
    [
        remove_val, flatten_val, empty_class, class_in_train_alone, class_in_val_alone, no_folder,
        line_break,
    ],
)  # fmt: skip
def test_a_bad_tree_is_refused_and_nothing_is_written(images, tmp_path, capsys, spoil):
    message = spoil(images)
    with pytest.raises(SystemExit) as caught:
        run(images, tmp_path / "index")
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert not (tmp_path / "index" / MANIFEST).exists()


def truncate_paths(folder):
    path = folder / "train.paths"
    path.write_bytes(path.read_bytes()[:-5])
    return "train.paths has .* bytes, expected"


def remove_paths(folder):
    (folder / "valid.paths").unlink()
    return "valid.paths is missing"


def other_fields(folder):
    content = json.loads((folder / MANIFEST).read_text())
    del content["form"]["root"]
    (folder / MANIFEST).write_text(json.dumps(content))
    return "is damaged .KeyError: 'root'"


@pytest.mark.parametrize("spoil", [truncate_paths, remove_paths, other_fields])
def test_a_damaged_index_is_named_and_prepared_again(images, tmp_path, spoil):
    index = tmp_path / "index"
    build_index(images, index)
    message = spoil(index)
    with pytest.raises(ValueError, match=message):
        ImageTree(index)
    assert index_of(images, index).write(index)
    assert len(ImageTree(index).split("train")) == 24


def test_paths_in_an_index_stay_in_the_class_folders(images):
    index, split = images / "prepared", build_index(images, images / "prepared").split("train")
    first = split.path(0).relative_to(images / "train")
    path = index / "train.paths"
    bad = ("../" * 9)[: len(str(first))].encode()
    path.write_bytes(
        path.read_bytes().replace(str(first).encode(), bad.ljust(len(str(first)), b"x"))
    )
    content = json.loads((index / MANIFEST).read_text())
    content["files"]["train.paths"]["sha256"] = sha256_of(path)
    (index / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train.paths, line 1 names '\.\./.*leads out of"):
        ImageTree(index).split("train").path(0)
    content = json.loads((index / MANIFEST).read_text())
    content["splits"]["train"]["folder"] = "../../etc"
    (index / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="names '../../etc', which leads out of"):
        ImageTree(index)


def test_an_interrupted_index_continues_with_the_next_class(images, tmp_path):
    index, listed = tmp_path / "index", []

    def stopped(read, stop_at):
        def read_from(first, on_bytes):
            for number, folder in enumerate(read(first, on_bytes), first):
                if number == stop_at:
                    raise KeyboardInterrupt
                listed.append(f"{folder.parent.name}/{folder.name}")
                yield folder

        return read_from

    for stop_at in (2, None):
        preparation = index_of(images, index)
        splits = {name: stopped(read, stop_at) for name, read in preparation.splits.items()}
        with pytest.raises(KeyboardInterrupt) if stop_at else nullcontext():
            replace(preparation, splits=splits).write(index)
    assert listed == [f"{split}/{name}" for split in ("train", "val") for name in CLASSES]
    assert (
        build_index(images, tmp_path / "whole").split("train").info
        == ImageTree(index).split("train").info
    )
