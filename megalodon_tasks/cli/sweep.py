"""Train and evaluate a recipe over a grid of settings: ``megalodon sweep RECIPE DATA SAVE ...``.

Writes ``table.csv``, ``table.md`` and pictures, among them learning curves, into SAVE.  Repeating the
command resumes the sweep: finished runs stay, an interrupted one resumes from its checkpoint, a failed
one is tried again.
"""

import argparse
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from tqdm import tqdm

from megalodon_tasks.cli import options
from megalodon_tasks.configuration import (
    check_fields,
    find_recipe,
    quoted,
    training_configuration,
)
from megalodon_tasks.errors import UserError
from megalodon_tasks.files import sole_writer
from megalodon_tasks.option_types import PROCESSES, whole
from megalodon_tasks.runs import learning_curves, results, sweep_job, sweep_table
from megalodon_tasks.runs import sweep as sweeps
from megalodon_tasks.runs.sweep import DONE, FAILED, RUNNING, Sweep

# Without the lock on the folder of the sweep, its runs stop, except for those on a cluster.
AFTER_INTERRUPT = "the same command resumes the sweep"
STOPPING = f"its runs save and stop within {sweep_job.GRACE_SECONDS:.0f} seconds"
ON_THE_CLUSTER = (
    "its jobs stay on the cluster, where squeue --me --name {name} lists them and "
    "scancel --me --name {name} ends them"
)
JOB_NAME = "megalodon-sweep"
LAUNCHERS = {"local": "joblib", "submitit_local": "submitit_local", "slurm": "submitit_slurm"}
LAUNCHER_FIELD = "hydra.launcher."
OVERRIDE = re.compile(r"\w[\w.]*=")
POLL_SECONDS = 1.0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options; ``key=value`` words are taken out before."""
    parser = options.parser(
        "sweep",
        "Train and evaluate a recipe over a grid of settings.  Words key=value are settings that all\n"
        "runs share, or fields of hydra's launcher, such as hydra.launcher.partition=gpu.",
        "lra/listops DATA SWEEP --chunk-sizes 64 128 full --seeds 1 2 3",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("recipe", help="family/name, such as lra/listops, or the path of a run script")
    add("data", help="DATA_DIR of the recipe's script")
    add("save", type=Path, help="folder of the sweep")
    add("--chunk-sizes", nargs="+", default=[], metavar="STEPS", help="numbers, or full")
    add("--seeds", nargs="+", default=[], metavar="SEED", help="default: that of the recipe")
    add("--sweep", action="append", default=[], metavar="FIELD=VALUE,VALUE,...",
        help="any other field; may be given several times")  # fmt: skip
    add("--demo", action="store_true", help="the recipe's small data and model")
    add("--generate", action="store_true",
        help="make synthetic data where DATA holds none, as the recipe's script does")  # fmt: skip
    add("--launcher", choices=LAUNCHERS, default="local", help="default: %(default)s")
    add("--launcher-file", type=Path, help="YAML with fields of hydra's launcher")
    add("--workers", type=whole(1, PROCESSES), default=1,
        help="local: runs at a time, which divide the GPUs among them")  # fmt: skip
    add("--threads", type=whole(1, PROCESSES), help="CPU threads of a run (default: a fair share)")
    add("--dry-run", action="store_true", help="show what would run; write nothing")
    return parser


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and the ``key=value`` words, which may stand anywhere."""
    is_override = [
        bool(OVERRIDE.match(word)) and before != "--sweep"
        for before, word in itertools.pairwise(["", *arguments])
    ]
    words = [word for word, is_other in zip(arguments, is_override, strict=True) if not is_other]
    return build_parser().parse_args(words), list(itertools.compress(arguments, is_override))


def plan(given: argparse.Namespace, overrides: Sequence[str]) -> Sweep:
    """Make the sweep that the command line asks for and check the configuration of every run.

    Raises :class:`UserError` where nothing varies, a field is given twice, or a run could not start.
    """
    recipe = find_recipe(given.recipe)
    chunk_sizes = ["null" if size == sweeps.FULL else size for size in given.chunk_sizes]
    swept = [f"{sweeps.CHUNK_SIZE}={','.join(chunk_sizes)}"] if chunk_sizes else []
    swept += given.sweep
    swept += [f"{sweeps.SEED}={','.join(given.seeds)}"] if given.seeds else []
    if not swept:
        raise UserError("nothing varies; give --chunk-sizes, --seeds or --sweep FIELD=VALUES")
    if given.demo and given.generate:
        raise UserError("--demo brings its own data; leave out --generate")
    fields = [word.partition("=")[0] for word in [*swept, *overrides]]
    if len(set(fields)) < len(fields):
        raise UserError(f"{max(fields, key=fields.count)} is given twice; leave out one of them")
    sweep = Sweep(
        folder=given.save.absolute(),
        recipe=recipe.id,
        script=str(recipe.script),
        data=os.path.abspath(given.data),
        demo=given.demo,
        generate=given.generate,
        fixed=dict(word.split("=", 1) for word in overrides),
        points=sweeps.grid(swept),
    )
    folder, name = recipe.script.parent, recipe.config_name(given.demo)
    check_fields(folder, name, sweep.overrides(sweep.runs[0]))
    for run in sweep.runs:
        training_configuration(folder, name, ["task.data=DATA", *sweep.overrides(run)])
    return sweep


def launcher_words(given: argparse.Namespace, runs: int) -> list[str]:
    """Return hydra's overrides that choose the launcher and share cores and GPUs among its workers."""
    if given.launcher != "local" and importlib.util.find_spec("submitit") is None:
        raise UserError(
            f"--launcher {given.launcher} needs submitit: pip install hydra-submitit-launcher"
        )
    if given.launcher == "local":
        # one job at a time, so that a free worker takes the next
        fields = {"n_jobs": given.workers, "batch_size": 1, "pre_dispatch": given.workers}
        runs = min(given.workers, runs)
    else:
        fields = {"name": JOB_NAME}
    cluster = given.launcher == "slurm"
    share = 0 if cluster else max(1, (os.cpu_count() or 1) // runs)
    gpus = [] if cluster else sweep_job.gpu_shares(runs)
    if given.launcher_file is not None:
        more = OmegaConf.to_container(OmegaConf.load(given.launcher_file))
        if not isinstance(more, dict):
            raise UserError(f"--launcher-file {given.launcher_file}: write lines like mem_gb: 32")
        fields |= more
    return [
        f"hydra/launcher={LAUNCHERS[given.launcher]}",
        f"+threads={share if given.threads is None else given.threads}",
        f"+attached={not cluster}",
        f"+gpus=[{','.join(map(quoted, gpus))}]",
        *(f"{LAUNCHER_FIELD}{name}={json.dumps(value)}" for name, value in fields.items()),
    ]


def follow(process: subprocess.Popen, sweep: Sweep) -> None:
    """Show how many runs have ended until the launcher has."""
    done = sweep.states()[DONE]
    with tqdm(total=len(sweep.runs), initial=done, unit="run", miniters=1, smoothing=0) as bar:
        while True:
            ended = process.poll() is not None
            states = sweep.states()
            counts = {state: states[state] for state in (RUNNING, FAILED)}
            bar.set_postfix(counts, refresh=sys.stderr.isatty())
            bar.update(states[DONE] + states[FAILED] - bar.n)
            if ended:
                return
            time.sleep(POLL_SECONDS)


def conclude(sweep: Sweep) -> bool:
    """Write table and pictures of what there is, list what failed; return whether all runs are in."""
    problems: list[str] = []
    rows = sweep_table.collect(sweep, problems)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if rows:
        sweep_table.write_table(sweep, rows)
        published = [] if sweep.demo else results.published(sweep.recipe)
        paper = {row["id"]: float(row["paper_value"]) for row in published if row["paper_value"]}
        sweep_table.draw(sweep, rows, paper)
        learning_curves.draw_sweep(sweep)
        print(sweep_table.markdown(sweep, rows), end="")
        print(f"written to {sweep.folder}: table.csv, table.md and pictures")
    for run in sweep.runs:
        if run.state == FAILED:
            print(f"failed: {run.name}, exit status {run.status}", file=sys.stderr)
            output = run.output.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
            lines = [line for line in output.splitlines() if line.strip()]
            print("\n".join(f"    {line}" for line in lines[-5:]), file=sys.stderr)
    print(sweep.summary())
    return sum(len(row.runs) for row in rows) == len(sweep.runs)


def execute(sweep: Sweep, launcher: Sequence[str]) -> bool:
    """Run what is not done; return whether everything is then."""
    command = sweep.command()
    if subprocess.run(command, env=sweep_job.variables(), stdin=subprocess.DEVNULL).returncode:
        raise UserError(f"the data could not be prepared ({shlex.join(command)}); nothing was run")
    remaining = [run for run in sweep.runs if run.state != DONE]
    if not remaining:
        return conclude(sweep)
    process = sweep_job.launch(sweep, remaining, launcher)
    try:
        follow(process, sweep)
    except KeyboardInterrupt:
        outlives = f"hydra/launcher={LAUNCHERS['slurm']}" in launcher
        state = ON_THE_CLUSTER.format(name=JOB_NAME) if outlives else STOPPING
        raise KeyboardInterrupt(f"{sweep.summary()}; {state}") from None
    complete = conclude(sweep)
    if process.returncode:
        raise UserError(f"hydra's launcher failed; see {sweep.folder / 'launcher.log'}")
    return complete


def main(arguments: Sequence[str]) -> int:
    """Run a sweep, or show it; return 1 unless all of its runs are done."""
    given, overrides = parse(arguments)
    sweep = plan(given, [word for word in overrides if not word.startswith(LAUNCHER_FIELD)])
    launcher = launcher_words(given, len(sweep.runs))
    launcher += [word for word in overrides if word.startswith(LAUNCHER_FIELD)]
    if given.dry_run:
        print(f"{len(sweep.runs)} runs, started by hydra with {shlex.join(launcher)}:")
        for run in sweep.runs:
            print("  " + shlex.join(sweep.command(run)))
        return 0
    with sole_writer(sweep.folder):
        return 0 if execute(sweeps.enter_sweep(sweep), launcher) else 1
