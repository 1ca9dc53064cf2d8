"""What is found in a folder of data, for each task of the Long Range Arena, and what is refused."""

import pytest

from megalodon_tasks.cli import prepare
from megalodon_tasks.data.manifest import Manifest
from tests.recipes.image_files import write_tree
from tests.recipes.speech_files import write_release as write_speech
from tests.recipes.speech_files import write_tensors
from tests.recipes.test_image import write_mega, write_release
from tests.recipes.test_listops import write_files
from tests.recipes.test_mega_files import write_listops, write_retrieval, write_text
from tests.recipes.test_pathfinder_preparation import write_images
from tests.recipes.test_retrieval import write_pairs
from tests.recipes.test_text import write_reviews


def two_classes(folder):
    """Mega's image files with the classes 0 and 1."""
    write_mega(folder)
    for path in (folder / "label").iterdir():
        path.write_text("0\n1\n" * 15)
    return folder


LITTLE = ["--workers", "1"]


def write_wikitext(folder):
    folder.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (folder / f"wiki.{split}.tokens").write_text(" \n = One = \n \n some words \n", "utf-8")


def write_speech_tensors(folder):
    write_tensors(folder)
    return folder


# recipe -> how its release is written, and further options
RELEASES = {
    "lra/listops": (write_files, []),
    "lra/text": (write_reviews, ["--subset"]),
    "lra/retrieval": (write_pairs, []),
    "lra/image": (write_release, []),
    "lra/pathfinder": (write_images, LITTLE),
    "lra/pathx": (
        lambda folder: write_images(folder, "pathfinder128/curv_contour_length_14", side=128),
        LITTLE,
    ),
    "speech/sc_raw": (lambda folder: write_speech(folder, per_word=7), LITTLE),
    "imagenet/imagenet": (lambda folder: write_tree(folder, 2, 1), LITTLE),
    "lm/wikitext103": (write_wikitext, LITTLE),
}
MEGA = {
    "lra/listops": (write_listops, "listops", []),
    "lra/text": (write_text, "imdb-4000", []),
    "lra/retrieval": (write_retrieval, "aan", []),
    "lra/image": (write_mega, "cifar10", ["--side", "4"]),
    "lra/pathfinder": (two_classes, "pathfinder", ["--side", "4"]),
    "lra/pathx": (two_classes, "path-x", ["--side", "4"]),
    "speech/sc_raw": (write_speech_tensors, "raw", []),
}


def refused(capsys, recipe, source, *options):
    """What the preparation says where it ends with an error and writes nothing."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        prepare.main([recipe, str(source), str(source.parent / "out"), *options])
    assert sorted(source.parent.rglob("*")) == before
    return capsys.readouterr().err


@pytest.mark.parametrize("recipe", RELEASES)
def test_a_release_is_found_deeper_and_behind_links(tmp_path, recipe):
    write, options = RELEASES[recipe]
    write(tmp_path / "disk" / "unpacked here")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "lra_release").symlink_to(tmp_path / "disk")
    (tmp_path / "data").symlink_to(tmp_path / "raw")
    prepare.main([recipe, str(tmp_path / "data"), str(tmp_path / "out"), *options])
    assert Manifest.read(tmp_path / "out").source["origin"] == "release"


@pytest.mark.parametrize("recipe", MEGA)
def test_megas_folder_is_found_by_its_name_beside_those_of_other_tasks(tmp_path, capsys, recipe):
    write, name, options = MEGA[recipe]
    folder = write(tmp_path / "lra" / name)
    prepare.main([recipe, str(tmp_path), str(tmp_path / "out"), *options])
    assert Manifest.read(tmp_path / "out").source["origin"] == "mega"
    folder.rename(folder.with_name("another-task"))
    assert "holds no data that is recognised" in refused(capsys, recipe, tmp_path / "lra", *options)


@pytest.mark.parametrize("recipe", RELEASES)
def test_a_folder_that_is_not_recognised_is_refused(tmp_path, capsys, recipe):
    source = tmp_path / "data"
    assert f"{source} is not a folder" in refused(capsys, recipe, source)
    source.mkdir()
    assert f"{source} is empty: looked there and 5 levels below" in refused(capsys, recipe, source)
    (source / "renamed.tar.gz").touch()
    message = refused(capsys, recipe, source)
    assert f"unpack {source / 'renamed.tar.gz'} first (tar -xzf renamed.tar.gz)" in message
    assert ("--generate" in message) == (recipe in ("lra/listops", "lra/pathfinder", "lra/pathx"))
    assert "is an archive; unpack it" in refused(capsys, recipe, source / "renamed.tar.gz")
