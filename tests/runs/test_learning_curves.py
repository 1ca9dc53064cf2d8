"""Learning curves of several models over their seeds."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from megalodon_tasks.runs.learning_curves import (
    curves_of,
    draw_learning_curves,
    draw_sweep,
    mean_and_range,
    seconds_at,
)
from megalodon_tasks.runs.record import append, read_run
from megalodon_tasks.runs.sweep import enter_sweep
from tests.runs.records import result, write_record
from tests.runs.toy_sweep import toy_sweep


def record(folder, losses, wall=2.0, **more):
    """A run with a validation every 10 updates, which take ``wall`` seconds each."""
    steps = range(10, 10 * len(losses) + 1, 10)
    valid = [{"step": s, "loss": loss, **more} for s, loss in zip(steps, losses, strict=True)]
    inner = [{"step": s + 2, "wall": wall * (s + 2), "wps": 100.0 * wall} for s in steps]
    config = {"checkpoint": {"best_checkpoint_metric": "loss"}}
    return write_record(folder, [result()], config, valid=valid, train_inner=inner)


def test_seconds_are_those_at_the_validations(tmp_path):
    run = read_run(record(tmp_path / "run", [3.0, 2.0]))
    assert seconds_at(run, [5, 10, 20, 22]) == pytest.approx([10.0, 20.0, 40.0, 44.0])


def test_mean_and_range_are_over_points_that_all_runs_have(tmp_path):
    runs = [
        read_run(record(tmp_path / str(n), losses, wall))
        for n, (losses, wall) in enumerate([([3.0, 2.0, 1.0], 1.0), ([5.0, 2.5], 3.0)])
    ]
    steps, seconds, values = mean_and_range(runs, "loss")
    assert steps.tolist() == [10, 20]
    assert seconds == pytest.approx([20.0, 40.0])
    np.testing.assert_allclose(values, [[3.0, 2.0], [5.0, 2.5]])
    assert not len(mean_and_range(runs, "accuracy")[0])


def test_a_curve_is_the_mean_of_its_seeds_in_a_band(tmp_path, monkeypatch):
    drawn, bands = [], []
    plot, fill = Axes.plot, Axes.fill_between
    monkeypatch.setattr(
        Axes,
        "plot",
        lambda axes, x, y, **k: drawn.append((list(x), list(y))) or plot(axes, x, y, **k),
    )
    monkeypatch.setattr(
        Axes,
        "fill_between",
        lambda axes, x, low, high, **k: (
            bands.append((list(low), list(high))) or fill(axes, x, low, high, **k)
        ),
    )
    curves = {
        "one": [read_run(record(tmp_path / f"one{n}", [3.0 + n, 2.0])) for n in range(3)],
        "other": [read_run(record(tmp_path / "other", [2.0, 1.5]))],
    }
    draw_learning_curves(curves, "loss", "toy", tmp_path / "curves.png")
    assert drawn[0] == ([10, 20], pytest.approx([4.0, 2.0]))
    assert drawn[1] == (pytest.approx([20.0, 40.0]), pytest.approx([4.0, 2.0]))
    assert bands[0] == ([3.0, 2.0], [5.0, 2.0])
    assert drawn[2] == ([10, 20], [2.0, 1.5])
    assert imread(tmp_path / "curves.png").std() > 0


def test_a_sweep_has_a_curve_for_each_setting_but_the_seed(tmp_path):
    sweep = enter_sweep(toy_sweep(tmp_path))
    assert draw_sweep(sweep) is None
    for number, run in enumerate(sweep.runs[:3]):
        record(run.folder, [3.0 - number, 2.0])
        append(run.attempts_file, {"status": 0, "seconds": 1.0})
    found = curves_of(sweep)
    assert {label: len(runs) for label, runs in found.items()} == {
        "chunk_size 64": 2, "chunk_size full": 1,
    }  # fmt: skip
    assert draw_sweep(sweep) == sweep.folder / "learning_curves.png"
    assert imread(sweep.folder / "learning_curves.png").std() > 0
