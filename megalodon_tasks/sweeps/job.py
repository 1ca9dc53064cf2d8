"""One run of a sweep, as a hydra job: the recipe's script with the settings of the run.

    python -m megalodon_tasks.sweeps --multirun folder=SAVE run=NAME,NAME,... hydra/launcher=joblib

The script trains, or goes on where it was stopped, evaluates, and records the result.  A run that is
finished is left alone.  A job never raises: what became of it is in its status file, and the other runs
go on.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from megalodon_tasks.files import sole_writer
from megalodon_tasks.sweeps import alive, catalogue, request, status
from megalodon_tasks.sweeps.request import Request, Run

POLL_SECONDS = 0.5
GRACE_SECONDS = 20  # to write a checkpoint after an interrupt


@dataclass
class JobConfig:
    """folder: that of the sweep.  run: a name.  threads: cores of a run, 0 leaves the choice to torch.

    alive: the file whose holder must live (see ``alive.py``); empty on a cluster, where jobs outlive the
    process that submitted them.
    """

    folder: str = MISSING
    run: str = MISSING
    threads: int = 0
    alive: str = ""


ConfigStore.instance().store(name="sweep_job", node=JobConfig)


# The version is that of fairseq's own commands: hydra keeps one for the whole process.
@hydra.main(version_base="1.1", config_path=None, config_name="sweep_job")
def app(config: JobConfig) -> None:
    """Run one point of the grid."""
    folder = Path(config.folder)
    asked = request.read(folder)
    run = next(run for run in asked.runs() if run.name == config.run)
    parent = Path(config.alive) if config.alive else None
    if parent is not None and not alive.holder_lives(parent):
        return
    with ExitStack() as stack:
        try:
            _claim(stack, status.job_folder(folder, run))
        except ValueError as error:  # it runs elsewhere
            print(f"{run.name}: {error}", file=sys.stderr)
            return
        if status.read(folder, run).state != status.DONE:
            perform(folder, asked, run, config.threads, parent)


def _claim(stack: ExitStack, folder: Path) -> None:
    """Lock the run; the job of a sweep that was killed may need a while to stop."""
    deadline = time.monotonic() + 2 * GRACE_SECONDS
    while True:
        try:
            stack.enter_context(sole_writer(folder))
            return
        except ValueError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def command(folder: Path, asked: Request, run: Run) -> list[str]:
    """What the job executes."""
    script = catalogue.find(asked.recipe).script
    demo = ["--demo"] if asked.demo else []
    save = str(status.run_folder(folder, run))
    return ["bash", str(script), *demo, asked.data, save, *asked.overrides(run)]


def environment(threads: int) -> dict[str, str]:
    """The variables of the process: this interpreter, and its share of the cores."""
    variables = {**os.environ, "PYTHON": sys.executable}
    if threads:
        variables |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return variables


def perform(folder: Path, asked: Request, run: Run, threads: int, parent: Path | None) -> None:
    """Execute the script, and keep the status file true while it lasts."""
    record = status.read(folder, run)
    with alive.sign_of_life(status.job_folder(folder, run)) as sign:
        record.state, record.alive, record.started = status.RUNNING, str(sign), time.time()
        record.attempts += 1
        status.write(folder, run, record)
        with open(status.output_file(folder, run), "ab") as output:
            process = subprocess.Popen(
                command(folder, asked, run),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(threads),
                start_new_session=True,
            )
            stopped = _wait(process, parent)
        record.seconds += time.time() - record.started
        record.returncode, record.alive, record.started = process.returncode, None, None
        ended = status.DONE if process.returncode == 0 else status.FAILED
        record.state = status.STOPPED if stopped else ended
        status.write(folder, run, record)


def _wait(process: subprocess.Popen, parent: Path | None) -> bool:
    """Wait for the end; True if it came because the sweep is gone."""
    try:
        while True:
            try:
                process.wait(POLL_SECONDS)
                return False
            except subprocess.TimeoutExpired:
                if parent is not None and not alive.holder_lives(parent):
                    _stop(process)
                    return True
    except BaseException:
        _stop(process)
        raise


def _stop(process: subprocess.Popen) -> None:
    """Interrupt the script and all that it started; kill what does not end."""
    for number, seconds in ((signal.SIGINT, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
            return
        except ProcessLookupError:
            process.wait()
            return
        except subprocess.TimeoutExpired:
            continue
