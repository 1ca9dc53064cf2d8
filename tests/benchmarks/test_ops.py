"""The benchmark of the ops, at sizes that say nothing about speed: what it prints, and that it compares
what is equal."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import ops_cases, ops_figures
from benchmarks.authors_fft import authors_cema
from benchmarks.limits import Rates, Work
from benchmarks.memory import peak_bytes, saved_bytes
from benchmarks.ops import HEADER, PASSES, contenders, main
from megalodon_tasks.cuda_ops import cema, dispatch, native
from tests.cuda_ops.cases import Cema, assert_close, cast

CPU = torch.device("cpu")
QUICK = ops_cases.cases_for("cpu", quick=True)
NUMBERS = {"over_shortest", "saved_bytes", "saved_ratio", "matrix_gflops", "copy_gbytes_per_s"}
NUMBERS |= {
    f"{which}_{what}"
    for which in PASSES
    for what in (
        "ms",
        "ns_per_element",
        "operations",
        "bytes",
        "limit_ms",
        "over_limit",
        "over_copy",
    )
}


def run(capsys, *arguments):
    threads = str(torch.get_num_threads())
    main(["--quick", "--repeats", "1", "--threads", threads, *arguments])
    return capsys.readouterr()


def test_one_json_line_for_each_case_and_backend(capsys):
    printed = run(capsys, "--json")
    records = [json.loads(line) for line in printed.out.splitlines()]
    backends = {"cema": ["native", "torch", "fft"]}
    backends |= {op: ["native", "torch"] for op in ("timestep_norm", "sequence_norm")}
    if native.why_not(native.CEMA) is not None:
        for names in backends.values():
            names.remove("native")
    wanted = [(c.op, c.shape, name) for c in QUICK for name in backends.get(c.op, ["torch"])]
    assert [(r["op"], r["shape"], r["backend"]) for r in records] == wanted
    for record in records:
        assert all(record[name] > 0 for name in NUMBERS), record
        assert record.keys() - NUMBERS == {
            *("op", "case", "backend", "device", "device_name", "dtype", "shape", "repeats"),
            *("threads", "torch", "peers", "peak_extra_bytes", "peak_ratio"),
        }
        assert record["peers"] or (record["backend"], record["case"]) == ("fft", "ladder")
        for times in record["peers"].values():
            assert times.keys() == {f"{w}_{what}" for w in PASSES for what in ("ms", "ratio")}
    assert printed.err.count("not measured") == len(ops_figures.FIGURES)


def test_a_table_with_the_figures_below(capsys):
    table, figures = run(capsys, "chunk_attention", "--backend", "reference").out.split("\n\n")
    lines = table.splitlines()
    assert lines[:2] == HEADER
    assert len(lines) == 2 + sum(case.op == "chunk_attention" for case in QUICK)
    columns = {line.count("|") for line in lines}
    assert columns == {HEADER[1].count("|")}
    assert len(figures.splitlines()) == 2 + len(ops_figures.FIGURES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cuda"], "op 'cuda' is not one of cema, chunk_attention"),
        (
            ["--backend", "fast"],
            "backend 'fast' is not one of fft, native, reference, torch",
        ),
        (["--repeats", "0"], "--repeats 0"),
        (["--backend", "triton", "--dtype", "float64"], "backend 'triton' cannot run"),
    ],
)
def test_wrong_arguments_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def as_the_op(case, y):
    """The part of the output in which a competitor is the op."""
    return y[:, -1:] if case.op == "timestep_norm" else y


EQUAL = [case for case in QUICK if case.label != "ladder"]
# F.layer_norm is the op where time and groups have one element.
EQUAL += [ops_cases.NormCase("one step", 3, 1, 8, 1), ops_cases.CemaCase("order", 1, 33, 3)]


@pytest.mark.parametrize("case", EQUAL, ids=str)
def test_competitors_compute_what_the_op_does(case):
    args = argparse.Namespace(device=CPU, dtype=torch.float32)
    runs = contenders(case, list(dispatch.BACKENDS[case.op]), args)
    if case.op == "timestep_norm" and case.length > 1:
        del runs["layer_norm"]
    truth = runs.pop("reference").output()
    assert len(runs) > 2
    for name, contender in runs.items():
        assert_close(name, as_the_op(case, contender.output()), as_the_op(case, truth), 1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_authors_form_may_stand_in_for_the_op(bidirectional):
    case = Cema(2, 50, "random", bidirectional=bidirectional)
    leaves = cast(case, case.leaves(), torch.float32)
    options = {"padding_mask": case.padding(), "bidirectional": bidirectional}
    truth, _ = cema(*leaves.values(), **options, backend="reference")
    y, state = authors_cema(*leaves.values(), **options)
    assert state is None
    assert_close("y", y, truth, 1e-5)
    grad = torch.randn_like(y)
    ours = torch.autograd.grad(truth, leaves.values(), grad)
    theirs = torch.autograd.grad(y, leaves.values(), grad)
    for name, one, other in zip(leaves, theirs, ours, strict=True):
        assert_close(f"gradient of {name}", one, other, 1e-4)


def record(case, device="cpu", backend=None, **numbers):
    backend = backend or ("torch" if case.op == "chunk_attention" else "native")
    place = {"op": case.op, "case": case.label, "shape": case.shape, "device": device}
    return place | {"backend": backend, "dtype": "bfloat16"} | numbers


def ladder_of(op, times):
    steps = [case for case in ops_cases.ladder(ops_cases.LENGTHS, 32) if case.op == op]
    return [record(case, over_shortest=time) for case, time in zip(steps, times, strict=True)]


@pytest.mark.parametrize(
    ("records", "what", "measured", "verdict"),
    [
        ([record(ops_cases.LONG, forward_backward_over_limit=2.5)], "time / limit", 2.5, "reached"),
        ([record(ops_cases.LONG, forward_backward_over_limit=3.5)], "time / limit", 3.5, "missed"),
        (
            [record(ops_cases.NARROW, peers={"fft": {"forward_backward_ratio": 0.25}})],
            "(16, 2048, 80, 16): times faster than fft",
            4.0,
            "reached",
        ),
        (
            [
                record(case, peers={"sdpa": {"forward_backward_ratio": ratio}})
                for case, ratio in zip(ops_cases.CHUNKS, (1.1, 1.5), strict=True)
            ],
            "F.scaled_dot_product_attention",
            1.5,
            "missed",
        ),
        (ladder_of("cema", [1.0, 1.1, 1.05, 1.0, 1.12]), "cema, 4K to 1M", 12.0, "reached"),
        (ladder_of("cema", [1.0] * 5)[1:], "cema, 4K to 1M", None, "not measured"),
        (
            [
                record(
                    ops_cases.LARGE_CEMA,
                    "cuda",
                    "triton",
                    forward_over_copy=2.2,
                    forward_backward_over_copy=1.7,
                )
            ],
            "cema (8, 16384, 1024, 16): time / copy",
            2.2,
            "missed",
        ),
        (
            [
                record(case, "cuda", "triton", peak_ratio=ratio)
                for case, ratio in ((ops_cases.LARGE_CEMA, 1.08), (ops_cases.LARGE_TIMESTEP, 1.02))
            ],
            "peak memory",
            8.0,
            "reached",
        ),
    ],
)
def test_figures_follow_from_the_records(records, what, measured, verdict):
    (figure,) = (figure for figure in ops_figures.FIGURES if what in figure.what)
    found = figure.row(records)
    assert found["verdict"] == verdict
    assert found["measured"] == (measured if measured is None else pytest.approx(measured))


def test_the_ladder_has_constant_work():
    steps = {
        case.batch * case.length
        for case in ops_cases.cases_for("cpu", False)
        if case.label == "ladder"
    }
    assert steps == {1 << 20}


def test_the_limit_is_the_longer_of_operations_and_bytes():
    rates = Rates(matrix=100.0, copy=10.0)
    assert rates.seconds(Work(operations=200.0, bytes=10.0)) == 2.0
    assert rates.seconds(Work(operations=100.0, bytes=30.0)) == 3.0


def test_memory_is_what_was_allocated():
    x = torch.randn(1 << 20, requires_grad=True)
    # exp saves its result and sin its input, which is the same tensor.
    assert saved_bytes(lambda: x.exp().sin()) == x.nbytes
    assert saved_bytes(lambda: x.exp().sin().exp()) == 2 * x.nbytes
    weight = torch.randn(1 << 20, requires_grad=True)
    assert saved_bytes(lambda: x * weight, held=[weight]) == x.nbytes
    peak = peak_bytes(lambda: x.detach() * 2 + 1, CPU)
    assert peak is None or 1.8 * x.nbytes < peak < 3 * x.nbytes


def test_the_page_of_results_has_a_row_for_every_figure():
    page = (Path(__file__).resolve().parents[2] / "benchmarks" / "RESULTS.md").read_text("utf-8")
    for figure in ops_figures.FIGURES:
        row = figure.row([])
        assert page.count(f"| {row['figure']} | {row['asked']} |") == 1
