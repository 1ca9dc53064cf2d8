"""The figures asked of the op library, each compared with the records of one run of ``benchmarks.ops``.

Only what is asked is written here; what was measured comes from the records.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import ops_cases as cases

Record = dict[str, object]


@dataclass(frozen=True)
class Figure:
    """One row: ``measure`` finds the number in the records, or None where the run does not have it."""

    what: str
    asked: float
    at_least: bool
    measure: Callable[[list[Record]], float | None]

    def row(self, records: list[Record]) -> dict[str, object]:
        """What, asked, measured (None if it was not) and ``reached``, ``missed`` or ``not measured``."""
        measured = self.measure(records)
        verdict = "not measured"
        if measured is not None:
            good = measured >= self.asked if self.at_least else measured <= self.asked
            verdict = "reached" if good else "missed"
        sign = "at least" if self.at_least else "at most"
        return {
            "figure": self.what,
            "asked": f"{sign} {self.asked:g}",
            "measured": measured,
            "verdict": verdict,
        }


def _default(op: str, device: str) -> str:
    if device == "cuda":
        return "triton"
    return "torch" if op == "chunk_attention" else "native"


def _of(records: list[Record], case: cases.Case, device: str) -> Record | None:
    """The record of a case in the backend that its op has by default on its device."""
    for record in records:
        place = record["op"], record["shape"], record["device"], record["backend"]
        if place == (case.op, case.shape, device, _default(case.op, device)):
            return record
    return None


def _over_limit(case: cases.Case) -> Callable[[list[Record]], float | None]:
    def measure(records: list[Record]) -> float | None:
        record = _of(records, case, "cpu")
        return None if record is None else record["forward_backward_over_limit"]

    return measure


def _over_peer(peer: str, *of: cases.Case) -> Callable[[list[Record]], float | None]:
    """Time over that of a competitor, the worst of several cases."""

    def measure(records: list[Record]) -> float | None:
        found = [_of(records, case, "cpu") for case in of]
        if any(record is None or peer not in record["peers"] for record in found):
            return None
        return max(record["peers"][peer]["forward_backward_ratio"] for record in found)

    return measure


def _faster(
    peer: str, case: cases.Case, device: str = "cpu"
) -> Callable[[list[Record]], float | None]:
    """How many times faster than a competitor."""

    def measure(records: list[Record]) -> float | None:
        record = _of(records, case, device)
        if record is None or peer not in record["peers"]:
            return None
        return 1 / record["peers"][peer]["forward_backward_ratio"]

    return measure


def _spread(op: str) -> Callable[[list[Record]], float | None]:
    """Per cent between the least and the most time per element over the whole ladder."""

    def measure(records: list[Record]) -> float | None:
        times = {
            record["shape"]["length"]: record["over_shortest"]
            for record in records
            if record["case"] == "ladder"
            and record["op"] == op
            and record["backend"] == _default(op, record["device"])
        }
        if set(times) != set(cases.LENGTHS):
            return None
        return 100 * (max(times.values()) / min(times.values()) - 1)

    return measure


def _over_copy(case: cases.Case) -> Callable[[list[Record]], float | None]:
    """On CUDA in bfloat16: time over one read and one write of all tensors, the worse of both passes."""

    def measure(records: list[Record]) -> float | None:
        record = _of(records, case, "cuda")
        if record is None or record["dtype"] != "bfloat16":
            return None
        return max(record["forward_over_copy"], record["forward_backward_over_copy"])

    return measure


def _peak(*of: cases.Case) -> Callable[[list[Record]], float | None]:
    """On CUDA: peak memory over inputs and outputs, in per cent more."""

    def measure(records: list[Record]) -> float | None:
        found = [_of(records, case, "cuda") for case in of]
        if any(record is None for record in found):
            return None
        return 100 * (max(record["peak_ratio"] for record in found) - 1)

    return measure


def _saved(case: cases.Case) -> Callable[[list[Record]], float | None]:
    def measure(records: list[Record]) -> float | None:
        record = _of(records, case, "cpu")
        return None if record is None else record["saved_ratio"]

    return measure


def _name(case: cases.Case) -> str:
    sizes = [v for v in case.shape.values() if not isinstance(v, bool)]
    return f"{case.op} {tuple(sizes)}"


FIGURES = [
    Figure(f"{_name(cases.LONG)}: time / limit", 3, False, _over_limit(cases.LONG)),
    Figure(f"{_name(cases.LONG)}: times faster than fft", 4, True, _faster("fft", cases.LONG)),
    Figure(f"{_name(cases.NARROW)}: times faster than fft", 2, True, _faster("fft", cases.NARROW)),
    Figure(f"{_name(cases.SHORT)}: time / fft", 1, False, _over_peer("fft", cases.SHORT)),
    Figure(f"{_name(cases.LONG)}: saved tensors / input", 3, False, _saved(cases.LONG)),
    *(
        Figure(f"{op}, 4K to 1M steps: spread of time per element, %", 15, False, _spread(op))
        for op in ("cema", "timestep_norm", "sequence_norm", "chunk_attention")
    ),
    Figure(
        f"{_name(cases.TIMESTEP)}: time / F.layer_norm",
        1.5,
        False,
        _over_peer("layer_norm", cases.TIMESTEP),
    ),
    Figure(
        f"{_name(cases.SEQUENCE)}: time / F.group_norm",
        1.5,
        False,
        _over_peer("group_norm", cases.SEQUENCE),
    ),
    Figure(
        "chunk_attention, chunk 128: time / F.scaled_dot_product_attention",
        1.3,
        False,
        _over_peer("sdpa", *cases.CHUNKS),
    ),
    Figure(
        f"GPU, bf16, {_name(cases.LARGE_CEMA)}: time / copy of its tensors",
        1.25,
        False,
        _over_copy(cases.LARGE_CEMA),
    ),
    Figure(
        f"GPU, bf16, {_name(cases.LARGE_TIMESTEP)}: time / copy of its tensors",
        1.25,
        False,
        _over_copy(cases.LARGE_TIMESTEP),
    ),
    Figure(
        f"GPU, {_name(cases.LARGE_CEMA)}: times faster than cuFFT",
        10,
        True,
        _faster("fft", cases.LARGE_CEMA, "cuda"),
    ),
    Figure(
        "GPU, the two together: peak memory over inputs and outputs, %",
        10,
        False,
        _peak(cases.LARGE_CEMA, cases.LARGE_TIMESTEP),
    ),
]


def summary(records: list[Record]) -> list[str]:
    """The lines of a table of all figures."""
    lines = ["| figure | asked | measured | |", "|---|---|---|---|"]
    for figure in FIGURES:
        row = figure.row(records)
        measured = row["measured"]
        number = "-" if measured is None or not math.isfinite(measured) else f"{measured:.3g}"
        lines.append(f"| {row['figure']} | {row['asked']} | {number} | {row['verdict']} |")
    return lines
