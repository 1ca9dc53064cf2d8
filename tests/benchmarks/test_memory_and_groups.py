"""The comparison of CEMA's starts and the norm's groups: its sweeps, and the table of made-up runs."""

import csv

import pytest
import torch
from matplotlib.image import imread

from benchmarks import memory_and_groups as comparison
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.stack import MegalodonStack
from megalodon_tasks.runs.record import append
from megalodon_tasks.runs.sweep import Sweep, enter_sweep
from tests.runs.records import result, write_record


@pytest.mark.parametrize("name", comparison.TASKS)
def test_every_point_of_the_sweeps_is_a_model(name):
    dim = comparison.demo(name).model.model_dim
    sizes = set()
    for words in comparison.sweeps(name).values():
        values = dict(word.removeprefix("model.").split("=") for word in words)
        for number in values["norm_num_groups"].split(","):
            for start in values["cema_init"].split(","):
                config = MegalodonConfig(
                    model_dim=dim, z_dim=16, value_dim=dim, ffn_hidden_dim=16, num_layers=1,
                    chunk_size=8, norm_num_groups=int(number), cema_init=start, causal=name == "bytes",
                    cema_memory=int(values["cema_memory"]),
                )  # fmt: skip
                with torch.device("meta"):
                    MegalodonStack(config)
            sizes.add(dim // (int(number) or dim))
    assert sizes == {4, 16, dim} | ({1} if name != "bytes" else set())


def write_sweep(folder, points, fixed, values):
    points = [{**point, "common.seed": str(s)} for point in points for s in (1, 2)]
    sweep = enter_sweep(Sweep(folder, "lra/image", "no.sh", "data", True, fixed, points))
    for run, value in zip(sweep.runs, values, strict=True):
        write_record(run.folder, [result(value=value)])
        append(run.attempts_file, {"status": 0, "seconds": 4.0})


def test_report(tmp_path, capsys):
    save, output = tmp_path / "save", tmp_path / "output"
    write_sweep(
        save / "image" / "starts",
        [{"model.cema_init": "released"}, {"model.cema_init": "spread"}],
        {"model.norm_num_groups": "12"},
        [50.0, 52.0, 60.0, 61.0],
    )
    write_sweep(
        save / "image" / "groups",
        [{"model.norm_num_groups": "0"}, {"model.norm_num_groups": "1"}],
        {"model.cema_init": "spread"},
        [90.0, 90.0, 70.0, 74.0],
    )
    comparison.main([str(save), "--report-only", "--output", str(output)])
    line = "| Image | accuracy | 16 | 51.0 ± 1.4 | 60.5 ± 0.7 | 90.0 ± 0.0 | not measured | 72.0 ± 2.8 |"
    assert line in capsys.readouterr().out
    with open(output / "memory_and_groups.csv") as stream:
        assert ["image", "one group, spread", "accuracy", "70.0000", "74.0000"] in csv.reader(
            stream
        )
    assert imread(output / "memory_and_groups.png").size


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(comparison.UserError, match="no run is done; leave out --report-only"):
        comparison.main([str(tmp_path), "--report-only"])
