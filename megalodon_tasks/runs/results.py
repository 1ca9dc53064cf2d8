"""Compare results with published numbers (``recipes/results.csv`` and ``published.csv``)."""

import csv
import importlib.resources
from typing import Any


def published(benchmark: str) -> list[dict[str, str]]:
    """Return the rows of ``recipes/results.csv`` for ``benchmark`` and its variants."""
    rows = _table("results.csv")
    return [row for row in rows if row["id"] == benchmark or row["id"].startswith(f"{benchmark}-")]


def peers(benchmark: str) -> list[dict[str, str]]:
    """Return the rows of ``recipes/published.csv`` for ``benchmark``, one per published system."""
    return [row for row in _table("published.csv") if row["id"] == benchmark]


def _table(name: str) -> list[dict[str, str]]:
    table: Any = importlib.resources.files("megalodon_tasks.recipes").joinpath(name)
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def summary(record: dict[str, Any], rows: list[dict[str, str]]) -> list[str]:
    """Return the lines to print: a result beside the best constant answer and published numbers.

    record: a line of ``results.jsonl``.  rows: those of :func:`published`.
    """
    entries = [("this checkpoint", record["value"], _position(record))]
    if "top5" in record:
        entries.append(("this checkpoint, top 5", record["top5"], ""))
    if record["best_constant"] is not None:
        entries.append(("best constant answer", record["best_constant"], ""))
    entries += [
        (r["id"], float(r["paper_value"]), r["paper_source"]) for r in rows if r["paper_value"]
    ]
    others = [
        row for row in peers(record["benchmark"]) if not row["system"].startswith("Megalodon")
    ]
    entries += [
        (row["system"], float(row["value"]), row["source"]) for row in others if row["value"]
    ]
    width = max(len(name) for name, _, _ in entries)
    title = (
        f"{record['benchmark']}: {record['metric']} on {record['split']} "
        f"({record['n']} items, loss {record['loss']:.3f})"
    )
    lines = [f"  {name:{width}}  {value:6.2f}  {note}".rstrip() for name, value, note in entries]
    return [title, *lines]


def _position(record: dict[str, Any]) -> str:
    return f"update {record['update']}, epoch {record['epoch']}, {record['params']:,} parameters"
