"""The Pathfinder generator: presets, files in the layout of the release, command line."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

from megalodon_tasks.recipes.lra.pathfinder import generator as pathfinder_generator
from megalodon_tasks.recipes.lra.pathfinder.drawing import PathfinderPainter
from megalodon_tasks.recipes.lra.pathfinder.generator import RECORD, image_rng, write_images
from megalodon_tasks.recipes.lra.pathfinder.prepare import main
from megalodon_tasks.recipes.lra.pathfinder.settings import PathfinderSettings, settings_for

EASY = settings_for(32, "easy")

# Settings

TABLE = {  # resolution: length, thickness, margins, padding, seed distance, radius, continuity,
    # distractors, snake contrast, paddle contrast
    32: (2, 0.5, (1,), 1, 7, 1.5, 1.0, 5, (2.0,), (0.75,)),
    64: (5, 1.0, (1,), 1, 12, 2.5, 1.8, 5, (0.8,), (1.0,)),
    128: (5, 1.5, (2, 3), 1, 20, 3.0, 1.8, 8, (0.9,), (1.0,)),
    256: (5, 2.0, (3,), 22, 27, 5.0, 1.8, 7, (1.0,), (1.0,)),
}


@pytest.mark.parametrize("resolution", TABLE)
def test_presets_are_those_of_long_range_arena(resolution):
    settings = settings_for(resolution)
    assert (
        settings.paddle_length,
        settings.paddle_thickness,
        settings.margins,
        settings.padding,
        settings.seed_distance,
        settings.marker_radius,
        settings.continuity,
        settings.num_distractors,
        settings.snake_contrast,
        settings.paddle_contrast,
    ) == TABLE[resolution]
    assert (settings.contour_length, settings.distractor_length) == (14, 4)
    assert settings.antialias_scale == 2
    assert settings.folder == f"pathfinder{resolution}/curv_contour_length_14"


def test_difficulties():
    easy, medium = settings_for(128, "easy"), settings_for(128, "medium")
    assert (easy.contour_length, easy.distractor_length, easy.num_distractors) == (6, 2, 17)
    assert easy.folder == "pathfinder128/curv_baseline"
    assert (medium.contour_length, medium.distractor_length, medium.num_distractors) == (9, 3, 11)
    assert medium.folder == "pathfinder128/curv_contour_length_9"


def test_other_resolutions_take_the_next_smaller_preset():
    settings = settings_for(100)
    assert settings.resolution == 100
    assert replace(settings, resolution=64) == settings_for(64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"paddle_thickness": 0.7}, "paddle_thickness=0.7 times antialias_scale=2"),
        ({"seed_distance": 40}, "seed_distance=40 leaves no place"),
        ({"paddle_length": 60}, "no room for two paddles in a row: paddle_length=60"),
        ({"padding": 64}, "no room for two paddles in a row: .* padding=64"),
        ({"marker_radius": float("inf")}, "marker_radius=inf must be above 0 and finite"),
        ({"continuity": float("nan")}, "continuity=nan must be at least 0"),
        ({"contour_length": 1}, "contour_length=1 must be at least 2"),
        ({"padding": 0}, "padding=0 must be at least 1"),
        ({"margins": ()}, "margins is empty"),
        ({"margins": (2, 0)}, "must be at least 1"),
        ({"snake_contrast": (0.9, 0.0)}, "must be above 0"),
        ({"continuity": -1.0}, "continuity=-1.0 must be at least 0"),
        ({"difficulty": "absurd"}, "difficulty='absurd' is none of easy, medium, hard"),
        ({"resolution": 16}, "seed_distance=7 leaves no place"),
        ({"paddle_width": 3}, "no parameter named paddle_width"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        settings_for(**{"resolution": 128, **values})


def test_snakes_that_do_not_fit_are_given_up():
    settings = settings_for(32, contour_length=80, max_restarts=99)
    painter = PathfinderPainter(settings)
    with pytest.raises(ValueError, match=r"resolution=32: .*contour_length=80 .*in 100 attempts"):
        painter.paint(image_rng(0, 0, 0))


# Files


def contents(folder):
    """Bytes of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(pathfinder_generator, "BATCH", 25)


def test_files_have_the_layout_of_the_release(tmp_path, small_batches):
    painter = PathfinderPainter(EASY)
    folder = write_images(tmp_path, EASY, 30, seed=8)
    assert folder == tmp_path / "pathfinder32" / "curv_baseline"
    assert sorted(path.name for path in folder.iterdir()) == ["imgs", "metadata", RECORD]
    assert sorted(path.name for path in folder.glob("metadata/*")) == ["0.npy", "1.npy"]
    for batch, size in ((0, 25), (1, 5)):
        lines = (folder / "metadata" / f"{batch}.npy").read_text().splitlines()
        assert len(lines) == size
        for index, line in enumerate(lines):
            image = painter.paint(image_rng(8, batch, index))
            assert line == (
                f"imgs/{batch} sample_{index}.png {index} {image.label} 1.0 6 2 2 0.5 1 1"
            )
            path = folder / f"imgs/{batch}/sample_{index}.png"
            with Image.open(path) as picture:
                assert (picture.mode, picture.size) == ("L", (32, 32))
                np.testing.assert_array_equal(np.asarray(picture), image.pixels)
        assert len(list((folder / f"imgs/{batch}").iterdir())) == size


def test_the_number_of_processes_changes_nothing(tmp_path, small_batches):
    one = write_images(tmp_path / "one", EASY, 60, seed=9, workers=1)
    two = write_images(tmp_path / "two", EASY, 60, seed=9, workers=2)
    assert contents(one) == contents(two)
    other = write_images(tmp_path / "other", EASY, 60, seed=10)
    assert contents(other) != contents(one)


def test_an_interruption_leaves_whole_batches_and_can_be_continued(
    tmp_path, small_batches, monkeypatch
):
    whole = contents(write_images(tmp_path / "whole", EASY, 60, seed=11))
    paint, painted = PathfinderPainter.paint, []

    def interrupted(self, rng):
        painted.append(rng)
        if len(painted) == 47:
            raise KeyboardInterrupt
        return paint(self, rng)

    monkeypatch.setattr(PathfinderPainter, "paint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_images(tmp_path / "cut", EASY, 60, seed=11)
    folder = tmp_path / "cut" / EASY.folder
    left = contents(folder)
    assert left == {name: data for name, data in whole.items() if name in left}
    assert [name for name in left if name.startswith("metadata")] == ["metadata/0.npy"]
    assert sorted(path.name for path in folder.glob("imgs/*")) == ["0"]
    # As if the process had been killed: parts of a batch under its temporary name.
    (folder / "imgs" / "1.unfinished").mkdir()
    (folder / "imgs" / "1.unfinished" / "sample_77.png").write_bytes(b"")
    write_images(tmp_path / "cut", EASY, 60, seed=11)
    assert contents(folder) == whole
    # 47 and the 35 of the batches that were missing, none of the finished one.
    assert len(painted) == 47 + 35


def test_a_batch_without_its_metadata_or_images_is_drawn_again(tmp_path, small_batches):
    folder = write_images(tmp_path, EASY, 60, seed=12)
    whole = contents(folder)
    (folder / "metadata" / "1.npy").unlink()
    (folder / "imgs" / "0" / "sample_3.png").unlink()
    write_images(tmp_path, EASY, 60, seed=12)
    assert contents(folder) == whole


def test_more_images_can_be_added(tmp_path, small_batches):
    whole = contents(write_images(tmp_path / "whole", EASY, 60, seed=13))
    folder = write_images(tmp_path / "grown", EASY, 30, seed=13)
    write_images(tmp_path / "grown", EASY, 60, seed=13)
    assert contents(folder) == whole
    with pytest.raises(ValueError, match=r"1\.npy has 25 images, where 30 in all"):
        write_images(tmp_path / "grown", EASY, 30, seed=13)


def test_images_of_another_origin_are_left_alone(tmp_path, small_batches):
    folder = write_images(tmp_path, EASY, 3, seed=14)
    before = contents(folder)
    with pytest.raises(ValueError, match="made with seed=14, not 15"):
        write_images(tmp_path, EASY, 3, seed=15)
    with pytest.raises(ValueError, match=r"made with continuity=1\.0, not 1\.5"):
        write_images(tmp_path, replace(EASY, continuity=1.5), 3, seed=14)
    assert contents(folder) == before
    (folder / RECORD).unlink()
    with pytest.raises(ValueError, match="not generated here"):
        write_images(tmp_path, EASY, 3, seed=14)


@pytest.mark.parametrize(
    "values", [{"images": 0}, {"images": 3, "workers": 0}, {"images": 3, "seed": -1}]
)
def test_numbers_out_of_range_are_refused(tmp_path, values):
    with pytest.raises(ValueError, match="must be at least"):
        write_images(tmp_path, EASY, **values)
    assert not list(tmp_path.iterdir())


# Command line


def test_command_writes_images_and_a_contact_sheet(tmp_path, capsys):
    sheet = tmp_path / "sheets" / "examples.png"
    words = f"""{tmp_path} {tmp_path / "out"} --generate --side 32 --difficulty easy --count 12
        --workers 1 --seed 3 --snake-contrast 1.5 1.0 --margins 1 --contour-length 7"""
    assert main([*words.split(), "--contact-sheet", str(sheet)]) == tmp_path / "out"
    folder = tmp_path / "pathfinder32" / "curv_contour_length_7"
    record = json.loads((folder / RECORD).read_text())
    assert record["seed"] == 3
    assert record["snake_contrast"] == [1.5, 1.0]
    assert (record["contour_length"], record["distractor_length"]) == (7, 2)
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500


def test_every_parameter_has_an_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for entry in fields(PathfinderSettings):
        if entry.name != "resolution":  # that is --side
            assert f"--{entry.name.replace('_', '-')} " in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--generate", "--paddle-thickness", "0.3"], "not a whole number"),
        (["--generate", "--count", "0"], "images=0"),
        (["--generate", "--contour-length", "90", "--max-restarts", "20"], "in 21 attempts"),
        (["--count", "20"], "--count: an option of synthetic data, which needs --generate"),
        (["--margins", "2"], "--margins: an option of synthetic data"),
    ],
)
def test_command_explains_what_is_wrong(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "raw"), str(tmp_path / "out"), "--workers", "1", *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
