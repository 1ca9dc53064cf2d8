import json

import pytest
import torch

VALID = (
    "[2026-01-01 00:00:00,000][valid][INFO] - "
    '{{"epoch": 1, "valid_num_updates": "{update}", "valid_loss": "{loss}", '
    '"valid_accuracy": "{accuracy}"}}\n'
)


def record(**changes):
    """A line of results.jsonl as the evaluation writes it."""
    return {
        "benchmark": "lra/listops", "split": "test", "metric": "accuracy", "value": 51.25, "n": 2000,
        "update": 90000, "params": 569920, "date": "2026-01-01T00:00:00+00:00", "device": "a card",
        "versions": {"torch": "2.14"}, "commit": "0123456789abcdef-dirty", **changes,
    }  # fmt: skip


@pytest.fixture
def make_run(tmp_path):
    """A function that leaves the files of a run in a folder."""

    def made(name, records=(), curve=((1, 2.0, 20.0), (2, 1.5, 30.0)), config=None):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        if records:
            lines = "".join(json.dumps(line) + "\n" for line in records)
            (folder / "results.jsonl").write_text(lines)
        if curve:
            lines = [VALID.format(update=u, loss=x, accuracy=a) for u, x, a in curve]
            (folder / "train.log").write_text("".join(lines))
        if config:
            torch.save({"cfg": config}, folder / "checkpoint_last.pt")
        return folder

    return made
