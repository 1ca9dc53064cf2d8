"""Train a recipe as a job of SLURM: ``megalodon slurm OPTIONS -- TRAIN-OPTIONS``.

    megalodon slurm --nodes 2 --gpus-per-node 8 --time 24:00:00 --dry-run -- \\
        --config-dir recipes/lm --config-name pg19 --data DATA/prepared --save-dir SAVE

The job starts one process per GPU, which find each other as those of torchrun do.  Two minutes before
its time is up, SLURM sends SIGUSR1: the training saves, and the job is queued again and continues there.
``--dry-run`` prints the script and submits nothing.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megalodon_tasks.cli import options
from megalodon_tasks.cli.train import build_parser as train_parser
from megalodon_tasks.cli.train import hydra_arguments
from megalodon_tasks.errors import UserError
from megalodon_tasks.files import atomic_file
from megalodon_tasks.option_types import whole

SCRIPT = "slurm.sh"

# 138: a training that was ended by SIGUSR1 and has saved.  --wait: others save or notice the loss, for
# so many seconds after the first process has ended.
_TEMPLATE = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --chdir="{here}"
#SBATCH --output="{folder}/slurm-%j.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120
{more}
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

srun --wait=300 bash -c \\
    'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$0" "$@"' \\
    {command}
status=$?
if [ "$status" -eq 138 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options before ``--``."""
    parser = options.parser(
        "slurm",
        "Submit a training to SLURM.  What follows -- goes to megalodon train.",
        "--nodes 2 --gpus-per-node 8 --time 24:00:00 -- "
        "--config-dir recipes/lm --config-name pg19 --data DATA/prepared --save-dir SAVE",
    )
    count = whole(1)
    parser.add_argument("--nodes", type=count, default=1, help="machines (default: 1)")
    parser.add_argument(
        "--gpus-per-node", type=count, required=True, help="GPUs, and processes, of each"
    )
    parser.add_argument(
        "--cpus-per-gpu", type=count, default=8, help="cores for each process (default: 8)"
    )
    parser.add_argument("--time", required=True, help="longest duration, as sbatch takes it")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION",
        help="any other option of sbatch, such as --sbatch=--partition=long; may be repeated",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    return parser


def script(given: argparse.Namespace, training: Sequence[str]) -> tuple[Path, str]:
    """Return the save folder of the run, and the script of the job.

    Raises :class:`UserError` where the training would not start: a missing configuration, a field that
    there is not, no ``--save-dir``.
    """
    hydra_arguments(training)
    of_training, _ = train_parser().parse_known_args(training)
    if of_training.save_dir is None:
        raise UserError("--save-dir is missing after --: a job writes its log there")
    folder, here = Path(of_training.save_dir).resolve(), Path.cwd()
    for path in (folder, here):
        if set('"%\\\n') & set(str(path)):
            raise UserError(f'{path}: sbatch takes no path with ", %, \\ or a line break')
    for option in given.sbatch:
        if not option.startswith("-") or "\n" in option:
            raise UserError(f"--sbatch={option}: not an option; write --sbatch=--partition=long")
    text = _TEMPLATE.format(
        name=of_training.config_name,
        nodes=given.nodes,
        gpus=given.gpus_per_node,
        cpus=given.cpus_per_gpu,
        time=given.time,
        here=here,
        folder=folder,
        more="".join(f"#SBATCH {option}\n" for option in given.sbatch),
        command=shlex.join([sys.executable, "-m", "megalodon_tasks", "train", *training]),
    )
    return folder, text


def main(arguments: Sequence[str]) -> int:
    """Print or submit the job; return the exit status of sbatch."""
    words = list(arguments)
    cut = words.index("--") if "--" in words else len(words)
    given = build_parser().parse_args(words[:cut])
    if cut == len(words):
        raise UserError("nothing to train: write -- and then the options of megalodon train")
    folder, text = script(given, words[cut + 1 :])
    if given.dry_run:
        print(text, end="")
        return 0
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine; --dry-run prints the script")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / SCRIPT, "w") as stream:
        stream.write(text)
    return subprocess.run(["sbatch", str(folder / SCRIPT)], check=False).returncode
