"""Train and evaluate a recipe over a grid of settings.

    megalodon-sweep RECIPE DATA SAVE --chunk-sizes 64 128 256 full --seeds 1 2 3 [key=value ...]

Writes ``table.csv``, ``table.md`` and pictures into SAVE.  Started again, the same command goes on: runs
that are finished are kept, one that was stopped resumes from its checkpoint, one that failed is tried
again.  Runs are started by hydra's launchers (see ``sweeps/launch.py``).
"""

import argparse
import importlib.util
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

from megalodon_tasks import fairseq_compat
from megalodon_tasks.errors import UserError, user_errors
from megalodon_tasks.files import sole_writer
from megalodon_tasks.runs import results
from megalodon_tasks.sweeps import alive, catalogue, job, launch, pictures, status, table
from megalodon_tasks.sweeps import request as requests
from megalodon_tasks.sweeps.launch import Launcher
from megalodon_tasks.sweeps.request import CHUNK_SIZE, SEED, Request
from megalodon_tasks.training.console import INTERRUPTED

OVERRIDE = re.compile(r"[\w.]+=.*", re.DOTALL)
POLL_SECONDS = 1.0
SLURM = {"partition": "partition", "time": "timeout_min", "gpus": "gpus_per_node",
         "cpus": "cpus_per_task", "mem": "mem_gb"}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The options of this command; ``key=value`` words are taken out before."""
    parser = argparse.ArgumentParser(
        prog="megalodon-sweep",
        description="Train and evaluate a recipe over a grid of settings.",
        epilog="key=value: settings that all runs share, such as optimization.max_update=1000",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="family/name, such as lra/listops")
    parser.add_argument("data", help="DATA_DIR of the recipe's script")
    parser.add_argument("save", type=Path, help="folder of the sweep")
    parser.add_argument("--chunk-sizes", nargs="+", metavar="STEPS", help="numbers, or full")
    parser.add_argument("--seeds", nargs="+", metavar="SEED", help="default: that of the recipe")
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="FIELD=VALUE,VALUE,...",
        help="any other field; may be given several times",
    )  # fmt: skip
    parser.add_argument("--demo", action="store_true", help="the recipe's small data and model")
    parser.add_argument("--launcher", choices=launch.HYDRA_NAMES, default="local")
    parser.add_argument("--workers", type=int, default=1, help="local: runs at a time")
    parser.add_argument("--threads", type=int, help="CPU threads of a run (default: a fair share)")
    parser.add_argument("--dry-run", action="store_true", help="show what would run; write nothing")
    slurm = parser.add_argument_group("slurm")
    slurm.add_argument("--partition")
    slurm.add_argument("--time", help="minutes, H:MM:SS or D-HH:MM:SS")
    slurm.add_argument("--gpus", help="of a run")
    slurm.add_argument("--cpus", help="of a run")
    slurm.add_argument("--mem", help="GB of a run")
    slurm.add_argument(
        "--launcher-file", type=Path, help="YAML with more fields of hydra's launcher"
    )
    return parser


def split_words(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Options and positional words, and the ``key=value`` words among them."""
    rest: list[str] = []
    fixed: dict[str, str] = {}
    for word in arguments:
        if OVERRIDE.fullmatch(word) and rest[-1:] != ["--sweep"]:
            key, _, value = word.partition("=")
            fixed[key] = value
        else:
            rest.append(word)
    return rest, fixed


def asked_for(options: argparse.Namespace, fixed: dict[str, str]) -> Request:
    """The request that the command line makes; raises :class:`UserError` for one without sense."""
    recipe = catalogue.find(options.recipe)
    axes: dict[str, list[str]] = {}
    if options.chunk_sizes:
        axes[CHUNK_SIZE] = requests.chunk_sizes(options.chunk_sizes)
    for word in options.sweep:
        field, values = requests.axis(word)
        axes[field] = values
    if options.seeds:
        axes[SEED] = requests.seeds(options.seeds)
    if not axes:
        raise UserError("nothing varies; give --chunk-sizes, --seeds or --sweep FIELD=VALUES")
    both = sorted(axes.keys() & fixed.keys())
    if both:
        raise UserError(f"{both[0]} is swept and given as key=value as well; leave out one of them")
    axes = {field: list(dict.fromkeys(values)) for field, values in axes.items()}
    request = Request(recipe.id, os.path.abspath(options.data), options.demo, fixed, axes)
    for run in request.runs():
        catalogue.check(recipe, options.demo, {**fixed, **run.settings})
    return request


def launcher_for(options: argparse.Namespace, runs: int) -> Launcher:
    """The launcher with its share of cores; raises :class:`UserError` for options of another."""
    if options.workers < 1:
        raise UserError(f"--workers={options.workers} must be at least 1")
    if options.launcher != "local" and importlib.util.find_spec("submitit") is None:
        raise UserError(
            f"--launcher {options.launcher} needs submitit: pip install hydra-submitit-launcher"
        )
    given = {name: getattr(options, name) for name in SLURM if getattr(options, name) is not None}
    if options.launcher_file is not None:
        if not options.launcher_file.is_file():
            raise UserError(f"--launcher-file {options.launcher_file}: there is no such file")
        fields = OmegaConf.to_container(OmegaConf.load(options.launcher_file))
    else:
        fields = {}
    if options.launcher != "slurm" and given:
        raise UserError(f"--{next(iter(given))} is for --launcher slurm, not {options.launcher}")
    if "time" in given:
        given["time"] = launch.minutes(given["time"])
    fields |= {SLURM[name]: value for name, value in given.items()}
    workers = {"local": min(options.workers, runs), "submitit_local": runs}.get(
        options.launcher, runs
    )
    share = 0 if options.launcher == "slurm" else max(1, (os.cpu_count() or 1) // max(1, workers))
    threads = share if options.threads is None else options.threads
    return Launcher(options.launcher, workers, threads, {k: str(v) for k, v in fields.items()})


def prepare(request: Request, folder: Path) -> None:
    """Bring the data into the form that training reads, once for all runs."""
    script = str(catalogue.find(request.recipe).script)
    words = ["--demo"] if request.demo else []
    command = ["bash", script, *words, "prepare", request.data, str(folder / "prepare")]
    done = subprocess.run(command, env=job.environment(0), stdin=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"the data could not be prepared ({shlex.join(command)}); nothing was run")


def follow(process: subprocess.Popen, folder: Path, request: Request, launcher: Launcher) -> None:
    """Show how far the sweep is until its launcher has ended."""
    total = len(request.runs())
    bar = tqdm(
        total=total, unit="run", disable=not sys.stderr.isatty(), bar_format="{desc} |{bar}|"
    )
    shown = ""
    with bar:
        while True:
            ended = process.poll() is not None
            state = status.overview(folder, request, launcher.workers)
            bar.n = len(state.runs[status.DONE]) + len(state.runs[status.FAILED])
            bar.set_description_str(str(state))
            counts = str(state).rpartition(", about")[0] or str(state)
            if bar.disable and counts != shown:
                shown = counts
                print(f"{time.strftime('%H:%M:%S')} {state}", flush=True)
            if ended:
                return
            time.sleep(POLL_SECONDS)


def conclude(folder: Path, request: Request) -> bool:
    """Write table and pictures of what there is, name what failed; whether all runs are done."""
    found = table.rows(folder, request)
    if found:
        table.write(folder, request, found)
        pictures.draw(folder, request, found, references(request))
        print(table.markdown(request, found), end="")
        print(f"written to {folder}: table.csv, table.md and pictures")
    complete = True
    for run in request.runs():
        state = status.read(folder, run)
        complete &= state.state == status.DONE
        if state.state == status.FAILED:
            print(f"failed: {run.name} (exit status {state.returncode})", file=sys.stderr)
            for line in status.last_lines(folder, run):
                print(f"    {line}", file=sys.stderr)
    return complete


def references(request: Request) -> dict[str, float]:
    """The paper's numbers for the recipe and its chunked variant; a demo has none to compare with."""
    if request.demo:
        return {}
    rows = results.published(request.recipe)
    return {row["id"]: float(row["paper_value"]) for row in rows if row["paper_value"]}


def show_plan(launcher: Launcher, folder: Path, request: Request) -> None:
    """Print the runs and, for a cluster, the job script."""
    runs = request.runs()
    print(f"{len(runs)} runs, {launcher.workers} at a time, by hydra's {launcher.name} launcher:")
    for run in runs:
        print("  " + shlex.join(job.command(folder, request, run)))
    if launcher.name == "slurm":
        print("\nthe job script:\n" + launch.sbatch_script(launcher, folder, runs))


def sweep(launcher: Launcher, folder: Path, request: Request) -> bool:
    """Run what is left to run; whether all is done then."""
    prepare(request, folder)
    left = [run for run in request.runs() if status.read(folder, run).state != status.DONE]
    if left:
        with alive.sign_of_life(folder) as sign:
            process = launch.start(launcher, folder, left, sign)
            try:
                follow(process, folder, request, launcher)
            except KeyboardInterrupt:
                sign.unlink()
                print("stopping; each run writes its checkpoint", file=sys.stderr)
                process.wait()
                raise
        if process.returncode and not any(status.read(folder, run).attempts for run in left):
            raise UserError(
                f"the launcher failed before it started a run; see {folder / 'launcher.log'}"
            )
    return conclude(folder, request)


@user_errors()
def run(arguments: Sequence[str]) -> int:
    """Do what the command line asks for; returns the exit status."""
    rest, fixed = split_words(arguments)
    options = build_parser().parse_args(rest)
    request = asked_for(options, fixed)
    folder = options.save.absolute()
    launcher = launcher_for(options, len(request.runs()))
    if options.dry_run:
        show_plan(launcher, folder, request)
        return 0
    with sole_writer(folder):
        request = requests.enter(folder, request)
        return 0 if sweep(launcher, folder, request) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    fairseq_compat.install()
    try:
        return run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was stopped", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
