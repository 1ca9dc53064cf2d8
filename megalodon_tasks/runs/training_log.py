"""Read the losses of a run from its log.

fairseq writes a line per event in one of two forms (``common.log_format``), JSON or names and numbers
separated by ``|`` or ``,``, behind a prefix that names the event: ``train_inner`` for running averages,
``train`` for those of an epoch, and the name of a split for a validation.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from megalodon_tasks.errors import UserError

Points = dict[int, dict[str, float]]  # by update

PREFIX = re.compile(r"(?:\[(?P<hydra>\w+)\]\[INFO\] - |\| INFO \| (?P<cli>\w+) \| )(?P<rest>.*)$")
SIMPLE = re.compile(r"epoch (?P<epoch>\d+)(?::\s+\d+ / \d+ | \| )(?P<statistics>.*)$")
STATISTIC = re.compile(r"(?:^|[,|] )(?P<name>[A-Za-z_]\w*)[= ](?P<value>[-+.\w]+)")


def read(path: Path) -> dict[str, Points]:
    """All events in ``path``: by tag and update, the last line of several for the same update.

    A run that was killed repeats the updates since its last checkpoint when it goes on, and writes
    their lines again.  Raises :class:`UserError` if there is no such file or no event in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such training log; name the folder of a run")
    events: dict[str, Points] = {}
    for line in path.read_text(errors="replace").splitlines():
        for tag, statistics in _events(line):
            events.setdefault(tag, {})[int(statistics["num_updates"])] = statistics
    if not events:
        raise UserError(f"{path}: holds no losses; has the run reached common.log_interval?")
    return {tag: dict(sorted(points.items())) for tag, points in events.items()}


def _events(line: str) -> Iterator[tuple[str, dict[str, float]]]:
    prefix = PREFIX.search(line)
    if prefix is None:
        return
    tag, rest = prefix["hydra"] or prefix["cli"], prefix["rest"]
    statistics = _from_json(rest, tag) if rest.startswith("{") else _from_simple(rest)
    if "num_updates" in statistics:
        yield tag, statistics


def _from_json(text: str, tag: str) -> dict[str, float]:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError:  # cut short where the run was killed
        return {}
    return _numbers((name.removeprefix(f"{tag}_"), value) for name, value in fields.items())


def _from_simple(text: str) -> dict[str, float]:
    match = SIMPLE.search(text)
    if match is None:
        return {}
    found = ((m["name"], m["value"]) for m in STATISTIC.finditer(match["statistics"]))
    return {"epoch": float(match["epoch"]), **_numbers(found)}


def _numbers(fields: Iterator[tuple[str, object]]) -> dict[str, float]:
    numbers = {}
    for name, value in fields:
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError):
            continue
    return numbers
