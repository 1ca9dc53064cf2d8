"""``megalodon slurm``: the script that it prints is run by bash, with stand-ins for SLURM's commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megalodon_tasks.cli.main import main
from megalodon_tasks.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ["slurm", "--nodes", "2", "--gpus-per-node", "1", "--time", "1:00:00"]
TRAINING = ["--config-dir", str(ROOT / "recipes" / "lra"), "--config-name", "listops"]
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'host1\\nhost2\\n'; else echo "$@" >> scontrol.log; fi
"""
# srun's own option is dropped; the command runs once for each process
SRUN = """#!/bin/bash
shift
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=0 SLURM_NTASKS=2 "$@" || status=$?
done
exit ${status:-0}
"""
PYTHON = f"""#!{sys.executable}
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
with open("calls.jsonl", "a") as file:
    print(json.dumps([sys.argv[1:], [os.environ[name] for name in names]]), file=file)
sys.exit(int(os.environ.get("ENDS_WITH", "0")))
"""


def tool(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return str(folder / name)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tool(tmp_path / "bin", "scontrol", SCONTROL)
    tool(tmp_path / "bin", "srun", SRUN)
    monkeypatch.setattr(sys, "executable", tool(tmp_path / "bin", "python", PYTHON))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return tmp_path


@pytest.mark.parametrize(("status", "queued"), [(0, None), (1, None), (138, "requeue 40007\n")])
def test_the_script_starts_every_process(place, capsys, status, queued):
    training = [*TRAINING, "--save-dir", "a run", "model.dropout=0.5", "++task.note='it''s'"]
    assert main([*OPTIONS, "--dry-run", "--", *training]) == 0
    script = capsys.readouterr().out
    assert not (place / "a run").exists()
    slurm = {"SLURM_JOB_NODELIST": "host[1-2]", "SLURM_JOB_ID": "40007", "ENDS_WITH": str(status)}
    done = subprocess.run(["bash", "-c", script], env={**os.environ, **slurm}, check=False)
    assert done.returncode == status
    calls = [json.loads(line) for line in (place / "calls.jsonl").read_text().splitlines()]
    command = ["-m", "megalodon_tasks", "train", *training]
    assert calls == [[command, [str(rank), "0", "2", "host1", "20007"]] for rank in (0, 1)]
    log = place / "scontrol.log"
    assert (log.read_text() if log.exists() else None) == queued


def test_the_header_has_what_was_asked_for(place, capsys):
    more = ["--sbatch=--partition=long", "--sbatch=--qos=high", "--cpus-per-gpu", "4"]
    main([*OPTIONS, *more, "--dry-run", "--", *TRAINING, "--save-dir", "run"])
    lines = capsys.readouterr().out.splitlines()
    for option in (
        "--job-name=listops", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1",
        "--cpus-per-task=4", "--time=1:00:00", "--signal=USR1@120", "--requeue", "--partition=long",
        "--qos=high", f'--chdir="{place}"', f'--output="{place}/run/slurm-%j.log"',
    ):  # fmt: skip
        assert f"#SBATCH {option}" in lines


def test_submits(place, capfd):
    tool(place / "bin", "sbatch", '#!/bin/bash\necho "Submitted $1"; exit 3\n')
    assert main([*OPTIONS, "--", *TRAINING, "--save-dir", "run"]) == 3
    assert capfd.readouterr().out == f"Submitted {place}/run/slurm.sh\n"
    assert (place / "run" / "slurm.sh").read_text().startswith("#!/bin/bash\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (OPTIONS, "nothing to train"),
        ([*OPTIONS, "--", *TRAINING], "--save-dir is missing after --"),
        ([*OPTIONS, "--", *TRAINING[:-1], "lsitops", "--save-dir", "run"], "no lsitops.yaml"),
        ([*OPTIONS, "--", *TRAINING, "--save-dir", "run", "model.dropuot=0.1"], "model.dropuot"),
        (
            [*OPTIONS, "--sbatch=long", "--", *TRAINING, "--save-dir", "run"],
            "--sbatch=long: not an",
        ),
        ([*OPTIONS, "--", *TRAINING, "--save-dir", "100%"], "sbatch takes no path with"),
        ([*OPTIONS, "--", *TRAINING, "--save-dir", "run"], "there is no sbatch on this machine"),
    ],
)
def test_what_cannot_be_submitted_is_refused(place, words, message):
    with pytest.raises(UserError, match=message):
        main(words)
    assert not (place / "run").exists()
