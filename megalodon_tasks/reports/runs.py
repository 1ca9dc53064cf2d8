"""Find runs below folders and read what they left: results, training log, configuration."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from megalodon_tasks.errors import UserError
from megalodon_tasks.runs import training_log
from megalodon_tasks.runs.training_log import Points

# Fields that say where a run lies and not what it does.
PLACES = (
    "checkpoint.save_dir", "task.data", "common.user_dir", "common.log_file", "hydra",
    "job_logging_cfg",
)  # fmt: skip
UNSET = "-"


@dataclass(frozen=True)
class FinishedRun:
    """name: as the page shows it.  results: the last line of ``results.jsonl`` for each benchmark and
    split.  events: the training log.  configuration: field -> value as text.
    """

    name: str
    folder: Path
    results: list[dict[str, Any]]
    events: dict[str, Points]
    configuration: dict[str, str]

    @property
    def recipe(self) -> str:
        """The benchmark, or the task of a run that was not evaluated."""
        if self.results:
            return str(self.results[-1]["benchmark"])
        return self.configuration.get("task._name", "unknown")

    @property
    def metric(self) -> str:
        """The name of the metric that checkpoints were chosen by."""
        if self.results:
            return str(self.results[-1]["metric"])
        return self.configuration.get("checkpoint.best_checkpoint_metric", "loss")

    @property
    def updates(self) -> int:
        """The last update in the log."""
        return max((max(points) for points in self.events.values() if points), default=0)


def find(folders: Iterable[Path]) -> list[FinishedRun]:
    """All runs in ``folders`` and below, by name.

    Raises :class:`UserError` for a folder that does not exist or holds no run.
    """
    found: dict[Path, Path] = {}
    for top in folders:
        if not top.is_dir():
            raise UserError(f"{top}: there is no such folder")
        places = {
            path.parent for name in ("train.log", "results.jsonl") for path in top.rglob(name)
        }
        if not places:
            raise UserError(
                f"{top}: neither it nor a folder below holds train.log or results.jsonl"
            )
        found.update({place.resolve(): place for place in places})
    common = _common_folder(list(found))
    return [_read(place, _name(place, common)) for place in sorted(found)]


def _common_folder(places: list[Path]) -> Path:
    if len(places) == 1:
        return places[0].parent
    return Path(os.path.commonpath(places))


def _name(place: Path, common: Path) -> str:
    name = place.relative_to(common).as_posix()
    return name.replace("runs/", "") if name != "." else place.name


def _read(folder: Path, name: str) -> FinishedRun:
    log = folder / "train.log"
    try:
        events = training_log.read(log) if log.is_file() else {}
    except UserError:  # stopped before its first line of losses
        events = {}
    return FinishedRun(
        name, folder, _results(folder / "results.jsonl"), events, _configuration(folder)
    )


def _results(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for number, line in enumerate(filter(None, lines), start=1):
        try:
            record = json.loads(line)
            last[record["benchmark"], record["split"]] = record
        except (ValueError, KeyError, TypeError):
            if number < len(lines):  # the last line may have been cut short by a crash
                raise UserError(f"{file}, line {number}: not a result: {line[:80]!r}") from None
    return list(last.values())


def _configuration(folder: Path) -> dict[str, str]:
    """From a checkpoint, which has every field; else what hydra wrote, which has those of the YAML."""
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        if (folder / name).is_file():
            state = torch.load(folder / name, map_location="cpu", mmap=True, weights_only=True)
            return _flat(OmegaConf.to_container(OmegaConf.create(state["cfg"]), resolve=False))
    written = folder / "hydra" / ".hydra" / "config.yaml"
    if written.is_file():
        return _flat(OmegaConf.to_container(OmegaConf.load(written), resolve=False))
    return {}


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(config, dict):
        return {prefix: _text(config)}
    fields: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if not name.startswith(PLACES):
            fields |= _flat(value, name)
    return fields


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return str(value)
