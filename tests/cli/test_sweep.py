"""The sweep's command line.  Whole sweeps are in the slow tests of ``tests/sweeps``."""

import subprocess

import pytest

from megalodon_tasks.cli import sweep
from megalodon_tasks.errors import UserError
from megalodon_tasks.sweeps import launch


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing varies"),
        (["--chunk-sizes", "big"], "'big' is no chunk size"),
        (["--seeds", "one"], "'one' is no seed"),
        (["--sweep", "model.z_dim"], "write field=value"),
        (["--seeds", "1", "model.zdim=3"], "did you mean model.z_dim"),
        (["--seeds", "1", "common.seed=3"], "common.seed is swept and given as key=value"),
        (["--seeds", "1", "--workers", "0"], "--workers=0 must be at least 1"),
        (["--seeds", "1", "--partition", "gpu"], "--partition is for --launcher slurm"),
        (["--seeds", "1", "--launcher", "slurm", "--time", "soon"], "give minutes"),
        (["--seeds", "1", "--launcher-file", "none.yaml"], "there is no such file"),
    ],
)
def test_bad_requests_are_refused_before_anything_starts(folder, words, message):
    with pytest.raises(UserError) as caught:
        sweep.main(["lra/listops", "data", str(folder), *words])
    assert message in str(caught.value)
    assert not folder.exists()


def test_key_value_words_may_stand_anywhere():
    words = ["r", "--seeds", "1", "2", "a.b=1", "--sweep", "c.d=3,4", "e.f=x=y"]
    rest, fixed = sweep.split_words(words)
    assert rest == ["r", "--seeds", "1", "2", "--sweep", "c.d=3,4"]
    assert fixed == {"a.b": "1", "e.f": "x=y"}


def test_a_dry_run_shows_the_runs_and_writes_nothing(folder, capsys):
    words = ["--chunk-sizes", "64", "full", "--seeds", "1", "2", "--workers", "2", "--dry-run"]
    assert sweep.main(["listops", "data", str(folder), "--demo", *words]) == 0
    shown = capsys.readouterr().out
    assert "4 runs, 2 at a time" in shown
    assert shown.count("listops.sh --demo") == 4
    assert f"{folder}/runs/chunk_size-full_seed-2 model.chunk_size=null common.seed=2" in shown
    assert not folder.exists()


def test_a_dry_run_for_slurm_shows_a_valid_script(folder, capsys, tmp_path):
    more = tmp_path / "cluster.yaml"
    more.write_text("account: lab\nmem_gb: 32\n")
    words = ["--launcher", "slurm", "--partition", "gpu", "--time", "1:30:00", "--gpus", "1"]
    words += ["--launcher-file", str(more), "--dry-run"]
    assert sweep.main(["listops", "data", str(folder), "--seeds", "1", "2", "3", *words]) == 0
    script = "#!/bin/bash" + capsys.readouterr().out.partition("#!/bin/bash")[2]
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    for line in (
        "--partition=gpu",
        "--time=90",
        "--gpus-per-node=1",
        "--array=0-2",
        "--account=lab",
    ):
        assert f"#SBATCH {line}" in script
    assert "--mem=32GB" in script
    assert f"{folder}/hydra/.submitit" in script
    assert not folder.exists()


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", "90"), ("1:30:00", "90"), ("2-00:00:30", "2881")]
)
def test_times_are_read_as_slurm_writes_them(text, minutes):
    assert launch.minutes(text) == minutes
