"""Leave the record of a run in a folder, as training and evaluation write it."""

from megalodon_tasks.runs import record

ENVIRONMENT = {
    "date": "2026-01-01T00:00:00+00:00", "device": "a card", "versions": {"torch": "2.14"},
    "commit": "0123456789abcdef-dirty",
}  # fmt: skip


def result(**changes):
    """A line of results.jsonl."""
    return {
        "benchmark": "lra/listops", "split": "test", "metric": "accuracy", "value": 51.25, "n": 2000,
        "update": 90000, "params": 569920, **ENVIRONMENT, **changes,
    }  # fmt: skip


def start(step=0, **changes):
    """A start line of metrics.jsonl."""
    return {
        "event": "start", "format": record.FORMAT, "step": step, "epoch": 1, "params": 569920,
        "config": {}, **ENVIRONMENT, **changes,
    }  # fmt: skip


def write_record(folder, results=(), config=None, valid=(), train=(), train_inner=()):
    """Write both files; without any losses only that of ``results``."""
    for line in results:
        record.append(folder / record.RESULTS, line)
    events = {"train_inner": train_inner, "valid": valid, "train": train}
    if any(events.values()) or config is not None:
        record.append(folder / record.METRICS, start(config=config or {}))
    for event, lines in events.items():
        for line in lines:
            kind = {"event": event} | ({"split": "valid"} if event == "valid" else {})
            record.append(folder / record.METRICS, {**kind, "epoch": 1, **line})
    return folder
