"""Times of the ops on a GPU, beside a copy, the ``torch`` backend, cuFFT and SDPA."""

import argparse
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks import ops, ops_cases
from benchmarks.gpu_run import Record, Run
from benchmarks.limits import copy_probe, matrix_probe
from benchmarks.ops_figures import FIGURES
from benchmarks.timing import in_turn

_REPEATS = 5
# Columns of ``benchmarks.ops`` that a first look needs.
_COLUMNS = ("forward_ms", "forward_over_copy", "forward_over_limit", "forward_backward_ms")
_COLUMNS += ("forward_backward_over_copy", "forward_backward_over_limit", "peak_ratio", "peers")


def timed_cases(run: Run) -> list[ops_cases.Case]:
    """Return the cases of ``benchmarks.ops`` without the ladder, the large ones first."""
    cases = [c for c in ops_cases.cases_for("cuda", quick=run.tiny) if c.label != "ladder"]
    return sorted(cases, key=lambda case: case.label not in ("large", "language model"))


def _contender(case: ops_cases.Case, run: Run) -> ops.Runs:
    tensors = case.tensors(run.device, torch.bfloat16)
    return ops.Runs(ops_cases.Contender(tensors, partial(case.call, "triton")))


def device(run: Run) -> Iterator[Record]:
    """Yield what the device is, and how fast it copies and multiplies."""
    yield run.check("device", lambda: _describe(run))


def _describe(run: Run) -> Record:
    import triton

    record: Record = {"ok": True, "torch": torch.__version__, "triton": triton.__version__}
    if not run.tiny:
        properties = torch.cuda.get_device_properties(run.device)
        record |= {"multiprocessors": properties.multi_processor_count}
        record |= {
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
        }
        record |= {"shared_memory_bytes": properties.shared_memory_per_block_optin}
    sizes = run.size((None, None), (64, 1 << 16))
    probes = {
        "multiplies_per_s": matrix_probe(run.device, torch.bfloat16, sizes[0]),
        "copied_bytes_per_s": copy_probe(run.device, sizes[1]),
    }
    seconds = in_turn({name: probe.run for name, probe in probes.items()}, _REPEATS, run.device)
    return record | {name: probe.amount / min(seconds[name]) for name, probe in probes.items()}


def warm(run: Run, index: int) -> Iterator[Record]:
    """Compile the kernels of one timed case, so that the section ``times`` need not."""
    for case in timed_cases(run)[index : index + 1]:

        def both(case: ops_cases.Case = case) -> Record:
            _contender(case, run).forward_backward()
            return {"ok": None}

        yield run.check(f"{case.op}, {case.label}", both)


def times(run: Run) -> Iterator[Record]:
    """Yield times per case, times per kernel, and last the figures asked of the library."""
    args = argparse.Namespace(device=run.device, dtype=torch.bfloat16, repeats=_REPEATS)
    args.quick, args.backend = run.tiny, ["triton"] if run.tiny else ["triton", "torch"]
    records: list[dict[str, object]] = []
    for case in timed_cases(run):

        def measure(case: ops_cases.Case = case) -> Record:
            measured = list(ops.measure([case], args))
            records.extend(measured)
            by_backend = {
                record["backend"]: {name: record[name] for name in _COLUMNS} for record in measured
            }
            return {
                "ok": None,
                "shape": case.shape,
                **by_backend,
                "kernels_us": _kernels(case, run),
            }

        yield run.check(f"{case.op}, {case.label}", measure)
    for figure in FIGURES:
        row = figure.row(records)
        if row["verdict"] != "not measured":
            yield {"case": row.pop("figure"), "ok": row["verdict"] == "reached", **row}


def _kernels(case: ops_cases.Case, run: Run) -> dict[str, float]:
    """Return microseconds per call of each kernel of both passes, the longest first."""
    if run.tiny:
        return {}
    from torch.profiler import ProfilerActivity, profile

    both, calls = _contender(case, run).forward_backward, 3
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(calls):
            both()
        run.wait()
    totals = {event.key[:60]: event.self_device_time_total for event in profiled.key_averages()}
    longest = sorted(totals.items(), key=lambda item: -item[1])[:14]
    return {name: round(total / calls, 1) for name, total in longest if total > 0}
