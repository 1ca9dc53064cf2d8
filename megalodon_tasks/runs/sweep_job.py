"""Run the points of a sweep as jobs of hydra's multirun.

The hydra application :func:`app` runs one point: the recipe's script, in a process of its own because
fairseq keeps state between two trainings of one process.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig

import megalodon_tasks
from megalodon_tasks.configuration import quoted
from megalodon_tasks.files import has_writer, sole_writer
from megalodon_tasks.runs.record import append
from megalodon_tasks.runs.sweep import Sweep, SweepRun, read_sweep

POLL_SECONDS = 0.5
GRACE_SECONDS = 60.0  # for a run to save after SIGTERM
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
APP = "from megalodon_tasks.runs.sweep_job import app; app()"


# The version is that of fairseq's own commands: hydra keeps one for the whole process.
@hydra.main(version_base="1.1", config_path=None)
def app(config: DictConfig) -> None:
    """Run one job of the multirun."""
    run_point(Path(config.folder), config.run, config.threads, config.attached, config.gpus)


def run_point(
    folder: Path, name: str, threads: int, attached: bool, gpus: Sequence[str] = ()
) -> None:
    """Run the point ``name`` of the sweep in ``folder`` unless it is done, and record the attempt.

    ``threads``: CPU threads of the run; 0 leaves the choice to torch.  ``attached``: end the run when
    the sweep that started this job ends; not so on a cluster, where jobs outlive the process that
    submitted them.  ``gpus``: the shares of the workers (:func:`gpu_shares`); the run holds one.
    A run resumes from its last checkpoint whatever ended it.
    """
    sweep = read_sweep(folder)
    run = next(run for run in sweep.runs if run.name == name)
    # wait for the job of a sweep that was killed, which needs a moment to stop
    with sole_writer(run.job, wait=True):
        abandoned = attached and not has_writer(folder)
        if run.status == 0 or abandoned:
            return
        started = time.monotonic()
        with _free_share(folder, gpus) as share, open(run.output, "ab") as output:
            process = subprocess.Popen(
                sweep.command(run),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables(threads) | share,
                start_new_session=True,
            )
            try:
                while process.poll() is None and not abandoned:
                    time.sleep(POLL_SECONDS)
                    abandoned = attached and not has_writer(folder)
            finally:
                status, seconds = _ended(process), time.monotonic() - started
                append(run.attempts_file, {"status": status, "seconds": seconds})


def _ended(process: subprocess.Popen) -> int:
    """Let the process save and end, with all that it started; return its status."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(GRACE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def gpu_shares(workers: int) -> list[str]:
    """Divide the visible GPUs among ``workers`` jobs at a time; return ``CUDA_VISIBLE_DEVICES`` of each.

    All shares are of the same size, so that all runs have the same number of processes.  With fewer GPUs
    than workers, several workers have the same GPU.  Without GPUs there are no shares.
    """
    visible = os.environ.get(VISIBLE_GPUS)
    if visible is None:
        gpus = [str(number) for number in range(torch.cuda.device_count())]
    else:
        gpus = list(itertools.takewhile(lambda gpu: gpu != "-1", visible.split(",")))
        gpus = [gpu.strip() for gpu in gpus if gpu.strip()]
    if not gpus:
        return []
    size = max(1, len(gpus) // workers)
    starts = [worker * size % len(gpus) for worker in range(workers)]
    return [",".join(gpus[start : start + size]) for start in starts]


@contextlib.contextmanager
def _free_share(folder: Path, gpus: Sequence[str]) -> Iterator[dict[str, str]]:
    """Hold a share that no other job of the sweep holds; yield the variable that it sets."""
    locks = [FileLock(folder / f".gpus-{number}.lock") for number in range(len(gpus))]
    while locks:
        for lock, share in zip(locks, gpus, strict=True):
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            try:
                yield {VISIBLE_GPUS: share}
            finally:
                lock.release()
            return
        time.sleep(POLL_SECONDS)
    yield {}


def variables(threads: int = 0) -> dict[str, str]:
    """Return the environment of a script: this interpreter, and ``threads`` CPU threads unless 0."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)) if threads else {}
    return {**os.environ, "PYTHON": sys.executable, **limits}


def launch(sweep: Sweep, runs: Sequence[SweepRun], launcher: Sequence[str]) -> subprocess.Popen:
    """Start hydra's multirun over ``runs`` in the background; it prints into ``launcher.log``.

    ``launcher`` are the overrides that choose hydra's launcher and set its fields.
    """
    words = [
        f"hydra.sweep.dir={quoted(str(sweep.folder / 'runs'))}",
        "hydra.sweep.subdir=${run}/job",
        "hydra.job.chdir=false",
        f"+folder={quoted(str(sweep.folder))}",
        "+run=" + ",".join(quoted(run.name) for run in runs),
        *launcher,
    ]
    # so that the launcher's processes find this package from any folder, also in a checkout
    root = str(Path(megalodon_tasks.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with open(sweep.folder / "launcher.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", APP, "--multirun", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C ends the sweep, and the jobs stop after it
        )
