"""Read and write what a run recorded: ``metrics.jsonl`` by training, ``results.jsonl`` by evaluations.

Both files lie in the folder of the run (``checkpoint.save_dir``) and hold one JSON object per line.
The lines of ``metrics.jsonl`` differ in their ``event``:

=============== ========================================================================================
``start``       the run starts or resumes; see below
``train_inner`` averages over the last ``common.log_interval`` updates
``valid``       a validation on the data named by ``split``
``train``       averages over an epoch
=============== ========================================================================================

Each line has ``step`` (updates so far), ``epoch`` and ``time`` (Unix time in seconds).

A ``start`` line has ``format`` (version of this file), ``params`` (number of parameters), ``config``
(fairseq's whole configuration), ``data`` (of ``data.provenance.describe_data``), ``effective_batch``,
``effective_batch_unit`` and ``processes`` (``training.effective_batch.BatchRecord``), and ``date``,
``device``, ``versions`` and ``commit`` (``environment.py``).

Measurements have fairseq's names: ``loss``, ``lr``, ``gnorm`` (gradient norm), ``wps`` (tokens per
second), ``ups`` (updates per second), ``wall`` (seconds of all attempts of this run, without what was
lost when one was killed) and the metrics of the task.  Added to them
are ``samples_per_second``, ``host_peak_bytes`` and, on a GPU, ``device_peak_bytes``; in ``train_inner``
also ``model_flops_per_second`` of the first process, for models of this project
(``training/model_flops.py``), and ``mfu``, its share of the most that the device can do, where that is
known or given (``task.peak_flops``).  JSON has no NaN:
such a value is null, and ``not_finite`` maps its name to ``nan``, ``inf`` or ``-inf``.
"""

import collections
import contextlib
import json
import math
import os
import stat
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from megalodon_tasks.errors import UserError
from megalodon_tasks.files import read_text

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None

METRICS, RESULTS = "metrics.jsonl", "results.jsonl"
LOG = "train.log"  # text for people, and all that earlier versions kept
FORMAT = 1  # version of metrics.jsonl
NOT_FINITE = "not_finite"

Points = dict[int, dict[str, Any]]  # lines of one event, by step


@dataclass(frozen=True)
class Run:
    """What is recorded in ``folder``.

    name: as tables and figures show it.  start: the last ``start`` line, empty for a folder that holds
    only results.  valid: by split, the one that checkpoints are chosen by first.  results: the lines of
    ``results.jsonl``, oldest first.  damaged: where lines were cut short and left out.
    """

    name: str
    folder: Path
    start: dict[str, Any] = field(default_factory=dict)
    train_inner: Points = field(default_factory=dict)
    train: Points = field(default_factory=dict)
    valid: dict[str, Points] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def validation(self) -> Points:
        """Validations on the split that checkpoints are chosen by."""
        return next(iter(self.valid.values()), {})

    @property
    def benchmark(self) -> str:
        """The benchmark of the last result; the task if there is none."""
        return self._last_result("benchmark") or self._setting("task", "_name") or "unknown"

    @property
    def metric(self) -> str:
        """The metric that checkpoints are chosen by."""
        chosen = self._setting("checkpoint", "best_checkpoint_metric")
        return self._last_result("metric") or chosen or "loss"

    @property
    def updates(self) -> int:
        """The last recorded update; 0 if none is."""
        return max((step for points in self._series() for step in points), default=0)

    @property
    def epochs(self) -> int:
        """The last epoch that was recorded to its end; 0 if none is."""
        return max((line["epoch"] for line in self.train.values()), default=0)

    @property
    def peak_memory(self) -> int | None:
        """Bytes at the peak: of the GPU if there was one, else of the training process."""
        lines = [line for points in self._series() for line in points.values()]
        for name in ("device_peak_bytes", "host_peak_bytes"):
            if peaks := [line[name] for line in lines if name in line]:
                return max(peaks)
        return None

    def _series(self) -> Iterator[Points]:
        yield from (self.train_inner, self.train, *self.valid.values())

    def _last_result(self, name: str) -> str | None:
        return self.results[-1][name] if self.results else None

    def _setting(self, section: str, name: str) -> str | None:
        return self.start.get("config", {}).get(section, {}).get(name)


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read both files of the run in ``folder``.

    A line that a kill cut short is left out, and named in ``damaged``.  A run that was killed trains the
    updates since its last checkpoint again: their lines replace the earlier ones.  Raises
    :class:`UserError` if ``folder`` holds no record, one of another format version, or only the log of a
    version without records.
    """
    metrics, results = folder / METRICS, folder / RESULTS
    if _is_older(folder):
        raise UserError(
            f"{folder}: an earlier version trained this run and left {LOG} but no {METRICS}; "
            "resume or repeat the training, or read it with the version that trained it"
        )
    if not metrics.is_file() and not results.is_file():
        raise UserError(
            f"{folder}: holds neither {METRICS} nor {RESULTS}; name the folder of a run"
        )
    run = Run(name or folder.resolve().name, folder)
    for number, line in _lines(metrics, run.damaged):
        _add(run, line, f"{metrics}, line {number}")
    for number, line in _lines(results, run.damaged):
        if not _is_result(line):
            raise UserError(f"{results}, line {number}: not a result: {str(line)[:80]}")
        run.results.append(line)
    if not run.start and not run.results:
        raise UserError(f"{folder}: nothing is recorded yet; start the run again")
    return run


def _is_result(line: dict[str, Any]) -> bool:
    named = all(isinstance(line.get(name), str) for name in ("benchmark", "split", "metric"))
    return named and isinstance(line.get("value"), (int, float))


def find_runs(folders: Iterable[Path], problems: list[str] | None = None) -> list[Run]:
    """Read all runs in ``folders`` and below them, in the order of their names.

    problems: gets a text for each run that cannot be read, which is left out.  Raises
    :class:`UserError` for a folder that does not exist or holds no run, and without ``problems`` for a
    run that cannot be read.
    """
    places: set[Path] = set()
    for top in folders:
        if not top.is_dir():
            raise UserError(f"{top}: there is no such folder")
        files = [path for name in (METRICS, RESULTS, LOG) for path in top.rglob(name)]
        runs = {f.parent.resolve() for f in files if f.name != LOG or _is_older(f.parent)}
        if not runs:
            raise UserError(f"{top}: neither it nor a folder below it holds {METRICS} or {RESULTS}")
        places |= runs
    common = Path(os.path.commonpath(places)) if len(places) > 1 else min(places).parent
    names = {place: place.relative_to(common).as_posix() for place in sorted(places)}
    short = {place: name.replace("runs/", "") for place, name in names.items()}
    counts = collections.Counter(short.values())
    found = []
    for place, name in names.items():
        name = short[place] if counts[short[place]] == 1 else name
        try:
            found.append(read_run(place, None if name == "." else name))
        except UserError as error:
            if problems is None:
                raise
            problems.append(f"left out: {error}")
            continue
        if problems is not None:
            problems += found[-1].damaged
    if not found:
        raise UserError("; ".join(problems or ()))
    return found


def _is_older(folder: Path) -> bool:
    """Whether a version that kept no metrics trained here.

    A log without a checkpoint or result may also be that of a run that ended before its first update.
    """
    trained = (folder / RESULTS).is_file() or any(folder.glob("checkpoint*.pt"))
    return (folder / LOG).is_file() and not (folder / METRICS).is_file() and trained


def _add(run: Run, line: dict[str, Any], where: str) -> None:
    """Add a line of ``metrics.jsonl`` to ``run``."""
    event, step = line.get("event"), line.get("step")
    series = {"train_inner": run.train_inner, "train": run.train}
    if event == "valid" and "split" in line:
        series["valid"] = run.valid.setdefault(line["split"], {})
    if event == "start" and line.get("format") != FORMAT:
        raise UserError(
            f"{where}: format {line.get('format')!r}; this version reads format {FORMAT}, so read the "
            f"run with the version that wrote it: {line.get('versions', 'unknown')}"
        )
    if not isinstance(step, int) or event not in ("start", *series):
        raise UserError(f"{where}: not a line of metrics: {str(line)[:80]}")
    if event == "start":
        run.start.clear()
        run.start.update(line)
        for points in run._series():
            for later in [other for other in points if other > step]:
                del points[later]
    else:
        series[event][step] = line


def _lines(file: Path, damaged: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in ``file``, if it exists, with their line numbers; ``damaged`` gets the others."""
    text = read_text(file, errors="replace") if file.is_file() else ""
    for number, line in enumerate(text.split("\n"), start=1):
        if line and not line.startswith("{"):
            raise UserError(f"{file}, line {number}: not a JSON object: {line[:80]!r}")
        if line:
            try:
                fields = json.loads(line, object_hook=_with_not_finite)
            except (ValueError, TypeError, AttributeError, RecursionError):
                damaged.append(f"{file}, line {number} was cut short or damaged and is left out")
                continue
            yield number, fields


def _with_not_finite(fields: dict[str, Any]) -> dict[str, Any]:
    names = fields.pop(NOT_FINITE, {})
    return fields | {name: float(text) for name, text in names.items() if name in fields}


def append(file: Path, record: dict[str, Any]) -> None:
    """Add ``record`` to ``file`` as one line, whole or not at all, also beside other writers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_finite(record), default=str, allow_nan=False).encode() + b"\n"
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{file} is a pipe or a device, where a file is expected")
        _lock(descriptor)
        # a line that a crash of the machine cut short must not swallow this one
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" * torn + line)
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(file)  # these calls know no name
        raise
    finally:
        os.close(descriptor)


def _finite(value: Any) -> Any:
    """Copy nested containers with null for what JSON cannot hold; ``not_finite`` says what it was.

    It names an entry of a list as ``lr[0]``.
    """
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        fields = {name: _finite(item) for name, item in value.items()}
        strange = dict(pair for name, item in value.items() for pair in _strange(name, item))
        return fields | ({NOT_FINITE: strange} if strange else {})
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _strange(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each number that is not finite, in lists too."""
    if isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _strange(f"{name}[{number}]", item)
    elif isinstance(value, float) and not math.isfinite(value):
        yield name, str(value)


def _lock(descriptor: int) -> None:
    """Keep other writers out until ``descriptor`` is closed, where the file system can."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def plain_settings(config: DictConfig) -> dict[str, Any]:
    """Return fairseq's configuration as containers; options of an old-style model are a namespace."""
    sections: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    sections.pop("job_logging_cfg", None)
    return {k: vars(v) if isinstance(v, Namespace) else v for k, v in sections.items()}


def relative(path: Path, folder: Path) -> str:
    """Return ``path`` as seen from ``folder``, so that a folder of runs can be moved."""
    return os.path.relpath(path.resolve(), folder.resolve())
