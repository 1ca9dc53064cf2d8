"""Compare results with published numbers (``recipes/results.csv`` and ``published.csv``)."""

import csv
import importlib.resources
from typing import Any

DYNAMIC = "dynamic evaluation"
UNKNOWN = "recorded by an earlier version, which did not record the data"


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


def reason_against(result: dict[str, Any], identity: str | None = None) -> str | None:
    """Return why a recorded result compares with no published number, or not with this one; else None.

    identity: the id of a row of ``recipes/results.csv``.
    """
    comparable = result.get("comparable", UNKNOWN)
    if comparable is not True:
        return comparable
    other = result["compared_with"]
    return None if identity in (None, other) else f"this result compares with {other}"


def published_value(result: dict[str, Any]) -> str | None:
    """Return the published number that a recorded result stands beside, as text."""
    identity = result.get("compared_with")
    rows = [row for row in _table("results.csv") if row["id"] == identity]
    return rows[0]["paper_value"] if rows else None


def summary(record: dict[str, Any]) -> list[str]:
    """Return the lines to print: a result beside the best constant answer and published numbers.

    A published number that the result does not compare with has the reason on its line.
    record: a line of ``results.jsonl``.
    """
    entries = [("this checkpoint", record["value"], _position(record))]
    if "top5" in record:
        entries.append(("this checkpoint, top 5", record["top5"], ""))
    if record["best_constant"] is not None:
        entries.append(("best constant answer", record["best_constant"], ""))
    entries += [
        (r["id"], float(r["paper_value"]), _note(r["paper_source"], record, r["id"]))
        for r in published(record["benchmark"])
        if r["paper_value"]
    ]
    others = [
        row for row in peers(record["benchmark"]) if not row["system"].startswith("Megalodon")
    ]
    entries += [
        (row["system"], float(row["value"]), _note_of_peer(row, record))
        for row in others
        if row["value"]
    ]
    width = max(len(name) for name, _, _ in entries)
    title = (
        f"{record['benchmark']}: {record['metric']} on {record['split']} "
        f"({record['n']} items, loss {record['loss']:.3f})"
    )
    lines = [f"  {name:{width}}  {value:6.2f}  {note}".rstrip() for name, value, note in entries]
    return [title, *lines]


def _note(source: str, record: dict[str, Any], identity: str | None = None) -> str:
    """Add to the source of a published number why the result does not compare with it.

    All reasons stand at the number that the result is for, the first one at the others.
    """
    reason = reason_against(record, identity)
    if reason is None:
        return source
    if identity != record.get("compared_with"):
        reason = reason.split("; ")[0]
    return f"{source}; not comparable: {reason}"


def _note_of_peer(row: dict[str, str], record: dict[str, Any]) -> str:
    """Return the note on a row of :func:`peers`; dynamic evaluation compares with its like only."""
    if DYNAMIC not in row["system"]:
        return _note(row["source"], record)
    if not record.get("dynamic"):
        return f"{row['source']}; not comparable: {DYNAMIC}, this result is without"
    reason = reason_against(record) or ""
    others = "; ".join(text for text in reason.split("; ") if text != DYNAMIC)
    return _note(row["source"], {**record, "comparable": others or True})


def _position(record: dict[str, Any]) -> str:
    return f"update {record['update']}, epoch {record['epoch']}, {record['params']:,} parameters"
