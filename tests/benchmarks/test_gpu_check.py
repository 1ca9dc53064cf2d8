"""The first run on a GPU, as far as a CPU can show: arguments, refusals, records, tiny sizes."""

import json
import sys
import time

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import gpu_check, gpu_parity
from benchmarks.gpu_run import Run
from benchmarks.gpu_special import large
from benchmarks.gpu_times import timed_cases

CPU = torch.device("cpu")


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "interpret", "message"),
    [
        ([], "0", "PyTorch sees no CUDA device here"),
        (["--device", "cpu"], "0", "set TRITON_INTERPRET=1"),
        (["--section", "speed"], "1", "section 'speed' is not one of device, parity.cema"),
        (["--here", "none"], "1", "section 'none' is not one of"),
    ],
)
def test_what_cannot_run_is_refused(capsys, monkeypatch, arguments, interpret, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_gpu_is_not_checked_under_the_interpreter(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        gpu_check.main([])
    assert "unset it" in capsys.readouterr().err


def test_a_section_at_tiny_sizes(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    out = tmp_path / "records.jsonl"
    arguments = ["--device", "cpu", "--section", "parity.sequence_norm", "--out", str(out)]
    gpu_check.main(arguments)
    *records, last = lines(capsys)
    assert [record["section"] for record in records] == ["parity.sequence_norm"] * 2
    for record in records:
        assert record["ok"] is record["repeats"] is True, record
        assert record["device"].startswith("interpreter")
        assert record["forward"].keys() == {"y"}
        assert record["backward"].keys() == {"x", "scale", "bias"}
    assert (last["section"], last["passed"], last["failed"], last["skipped"]) == (
        "summary",
        2,
        [],
        [],
    )
    assert [json.loads(line) for line in out.read_text().splitlines()] == [*records, last]


def test_all_sections_fit_six_minutes():
    stages = {}
    for section in gpu_check.sections().values():
        stages[section.stage] = max(stages.get(section.stage, 0), section.seconds)
    assert sum(stages.values()) + 15 * len(stages) <= 360


def test_a_crash_and_a_hang_stop_only_their_sections(capsys, monkeypatch, tmp_path):
    crash = tmp_path / "crash"
    crash.write_text(
        '#!/bin/sh\necho \'{"case": "one", "ok": true}\'\necho lost >&2\nkill -SEGV $$\n'
    )
    hang = tmp_path / "hang"
    hang.write_text('#!/bin/sh\necho \'{"case": "two", "ok": tr\'\nexec sleep 60\n')
    monkeypatch.setattr(gpu_check, "_GRACE", 0.5)
    for program, status in ((crash, -11), (hang, "stopped: out of time")):
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        records = list(gpu_check.Process("large", "cpu", 0.0, tmp_path).records())
        failed = records[-1]
        assert failed["ok"] is False
        assert (failed["section"], failed["status"]) == ("large", status)
        assert len(records) == (2 if program == crash else 1)
    assert gpu_check.summary(records, "cpu", 1.0)["failed"] == ["large: process"]


def test_sections_without_time_are_skipped_by_name():
    (record,) = gpu_check.run_all(["times"], "cpu", 10.0)
    assert (record["section"], record["skipped"]) == ("times", "no time left")


def test_a_failed_case_is_a_record_and_a_late_one_is_skipped():
    def fail():
        raise RuntimeError("no kernel image")

    run = Run(CPU, time.monotonic() + 60)
    failed, passed = run.checks({"one": fail, "two": lambda: {"ok": True}})
    assert failed["ok"] is False
    assert failed["error"] == "RuntimeError: no kernel image"
    assert passed["ok"] is True
    late = Run(CPU, time.monotonic() - 1).check("three", fail)
    assert (late["ok"], late["skipped"]) == (None, "no time left")


def test_a_wrong_result_is_found(monkeypatch):
    run = Run(CPU, time.monotonic() + 60)
    leaves = {"x": run.randn(2, 3)}

    def off(backend, x):
        return {"y": x * (1.1 if backend == "triton" else 1.0)}

    record = gpu_parity.compare(run, off, leaves, torch.float32)
    assert record["ok"] is False
    assert record["forward"]["y"] == pytest.approx(0.1, rel=0.01)
    record = gpu_parity.compare(run, lambda backend, x: {"y": x * 2.0}, leaves, torch.float32)
    assert record["ok"] is True


@pytest.mark.slow
@pytest.mark.parametrize("op", gpu_parity.CASES)
def test_parity_at_tiny_sizes(op):
    records = list(gpu_parity.parity(Run(CPU, time.monotonic() + 300), op))
    assert all(record["ok"] for record in records), records


@pytest.mark.slow
def test_large_calls_at_tiny_sizes():
    records = list(large(Run(CPU, time.monotonic() + 300)))
    assert all(record["ok"] for record in records), records


def test_the_shape_of_the_language_models_is_timed():
    shapes = [case.shape for case in timed_cases(Run(torch.device("cuda"), 0.0))]
    assert any(shape.get("value_width") == 2048 and shape["width"] == 256 for shape in shapes)
