"""Time, memory and distance to the limit of the op library, beside its competitors.

    python -m benchmarks.ops                          # everything
    python -m benchmarks.ops cema --json
    python -m benchmarks.ops --device cuda --dtype bfloat16

What one case compares is timed in turn, round by round: the backends, the competitors, a large matrix
product and a large copy.  Times are medians over the rounds, ratios the medians of the ratios within a
round; a ratio below 1 is faster than the competitor.  The limit is the longer of two times: that of the
op's own operations at the rate of the product, and that of its own bytes, every tensor once in each
direction, at the rate of the copy (``Case.work``).

Prints one row per case and backend, or one JSON line with --json, and then the figures asked of the
library (to standard error with --json).
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby

import torch

from benchmarks.limits import Probe, Rates, Work, copy_probe, matrix_probe
from benchmarks.memory import peak_bytes, saved_bytes
from benchmarks.ops_cases import Case, Contender, cases_for
from benchmarks.ops_figures import summary
from benchmarks.peers import peers_of
from benchmarks.timing import in_turn
from megalodon_tasks.cuda_ops import dispatch

PASSES = ("forward", "forward_backward")
_BACKENDS = {"cpu": ("native", "torch", "fft"), "cuda": ("triton", "torch", "fft")}
_DTYPES = ("float64", "float32", "bfloat16", "float16")


class Runs:
    """The forward pass of a contender without gradients, and both passes with those of all leaves."""

    def __init__(self, contender: Contender) -> None:
        self.leaves = {k: t.detach().requires_grad_() for k, t in contender.leaves.items()}
        self._function = contender.function
        with torch.no_grad():
            self.grad = torch.randn_like(self.output())

    def output(self) -> torch.Tensor:
        """The result, with a graph where gradients are enabled."""
        return self._function(**self.leaves)

    def forward(self) -> torch.Tensor:
        """The forward pass."""
        with torch.no_grad():
            return self.output()

    def forward_backward(self) -> tuple[torch.Tensor, ...]:
        """The output and the gradients, which a training step holds together."""
        y = self.output()
        return y, *torch.autograd.grad(y, list(self.leaves.values()), self.grad)

    def given_bytes(self) -> int:
        """Bytes of all that both passes take: the leaves and the gradient of the output.

        They give as much: the gradients of the leaves and the output.
        """
        return sum(leaf.nbytes for leaf in self.leaves.values()) + self.grad.nbytes


def contenders(case: Case, backends: Iterable[str], args: argparse.Namespace) -> dict[str, Runs]:
    """The backends and the competitors of a case, by name."""
    torch.manual_seed(0)
    tensors = case.tensors(args.device, args.dtype)
    runs = {name: Runs(Contender(tensors, partial(case.call, name))) for name in backends}
    for name, peer in peers_of(case).items():
        if name not in runs:
            runs[name] = Runs(peer(case, tensors))
    return runs


def probes(args: argparse.Namespace) -> dict[str, Probe]:
    """What the limits come from.

    The CPU computes half types in float32 or is slower in them, so that float32 counts there.
    """
    half_on_cpu = args.device.type == "cpu" and args.dtype.itemsize < 4
    dtype = torch.float32 if half_on_cpu else args.dtype
    sizes = (64, 1 << 16) if args.quick else (None, None)
    return {
        "matrix": matrix_probe(args.device, dtype, sizes[0]),
        "copy": copy_probe(args.device, sizes[1]),
    }


def measure(cases: list[Case], args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One record per case and backend, of cases that are timed in turn."""
    backends = [name for name in args.backend if name in dispatch.BACKENDS[cases[0].op]]
    runs = {case: contenders(case, backends, args) for case in cases}
    functions = {
        (case, name, which): getattr(run, which)
        for case, named in runs.items()
        for name, run in named.items()
        for which in PASSES
    }
    limits = probes(args)
    seconds = in_turn(
        functions | {name: probe.run for name, probe in limits.items()}, args.repeats, args.device
    )
    rates = [
        Rates(limits["matrix"].amount / product, limits["copy"].amount / copy)
        for product, copy in zip(seconds["matrix"], seconds["copy"], strict=True)
    ]
    for case in cases:
        times = {key[1:]: taken for key, taken in seconds.items() if key[0] == case}
        for backend in backends:
            record = describe(case, backend, args)
            record |= timings(case, backend, times, rates, args.dtype.itemsize)
            record["peers"] = against_peers(backend, times, list(peers_of(case)))
            # The cases of a ladder have equally many elements.
            record["over_shortest"] = median_ratio(
                times[backend, PASSES[1]], seconds[cases[0], backend, PASSES[1]]
            )
            record |= memory(runs[case][backend], args.device)
            yield record


def describe(case: Case, backend: str, args: argparse.Namespace) -> dict[str, object]:
    """What was run, and where."""
    on_gpu = args.device.type == "cuda"
    return {
        "op": case.op,
        "case": case.label,
        "backend": backend,
        "device": args.device.type,
        "device_name": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "dtype": str(args.dtype).removeprefix("torch."),
        "shape": case.shape,
        "repeats": args.repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def timings(
    case: Case,
    backend: str,
    times: dict[tuple[str, str], list[float]],
    rates: list[Rates],
    bytes_each: int,
) -> dict[str, object]:
    """Times of both passes, per element, and over the limit and the copy of the same round."""
    elements = next(iter(case.tensors(torch.device("meta"), torch.float32).values())).numel()
    found: dict[str, object] = {
        "matrix_gflops": statistics.median(rate.matrix for rate in rates) / 1e9,
        "copy_gbytes_per_s": statistics.median(rate.copy for rate in rates) / 1e9,
    }
    for which, work in zip(PASSES, case.work(backend, bytes_each), strict=True):
        taken, copied = times[backend, which], Work(0.0, work.bytes)
        limits, copies = ([rate.seconds(w) for rate in rates] for w in (work, copied))
        found |= {
            f"{which}_ms": statistics.median(taken) * 1e3,
            f"{which}_ns_per_element": statistics.median(taken) * 1e9 / elements,
            f"{which}_operations": work.operations,
            f"{which}_bytes": work.bytes,
            f"{which}_limit_ms": statistics.median(limits) * 1e3,
            f"{which}_over_limit": median_ratio(taken, limits),
            f"{which}_over_copy": median_ratio(taken, copies),
        }
    return found


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over the rounds of the ratio within a round."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def against_peers(
    backend: str, times: dict[tuple[str, str], list[float]], peers: list[str]
) -> dict[str, dict[str, float]]:
    """Times of the competitors, and ours over theirs."""
    found: dict[str, dict[str, float]] = {}
    for peer in peers:
        if peer == backend:
            continue
        found[peer] = {}
        for which in PASSES:
            ours, theirs = times[backend, which], times[peer, which]
            found[peer][f"{which}_ms"] = statistics.median(theirs) * 1e3
            found[peer][f"{which}_ratio"] = median_ratio(ours, theirs)
    return found


def memory(run: Runs, device: torch.device) -> dict[str, object]:
    """Saved bytes, also over the first input's; peak bytes, and all that is held over in and out."""
    saved, peak = saved_bytes(run.output), peak_bytes(run.forward_backward, device)
    given = run.given_bytes()
    return {
        "saved_bytes": saved,
        "saved_ratio": saved / next(iter(run.leaves.values())).nbytes,
        "peak_extra_bytes": peak,
        "peak_ratio": None if peak is None else (given + peak) / (2 * given),
    }


HEADER = [
    "| op | case | backend | shape | fwd ms | fwd+bwd ms | ns/element | / limit | time / competitors "
    "| saved / input | peak / in and out |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
]


def row(record: dict[str, object]) -> str:
    """One line of the table; of both passes where nothing else is said."""
    shape = ", ".join(f"{name} {value}" for name, value in record["shape"].items())
    peers = ", ".join(
        f"{name} {times['forward_backward_ratio']:.2f}" for name, times in record["peers"].items()
    )
    peak = record["peak_ratio"]
    cells = [
        record["op"],
        record["case"],
        record["backend"],
        shape,
        f"{record['forward_ms']:.3g}",
        f"{record['forward_backward_ms']:.3g}",
        f"{record['forward_backward_ns_per_element']:.3g}",
        f"{record['forward_backward_over_limit']:.2f}",
        peers or "-",
        f"{record['saved_ratio']:.2f}",
        "-" if peak is None else f"{peak:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def groups(cases: list[Case]) -> Iterator[list[Case]]:
    """Cases that are timed together: the ladder of an op, any other by itself."""
    for (_, label), some in groupby(cases, key=lambda case: (case.op, case.label)):
        together = list(some)
        yield from [together] if label == "ladder" else ([case] for case in together)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ops", description=__doc__.splitlines()[0]
    )
    ops = list(dict.fromkeys(case.op for case in cases_for("cpu", quick=False)))
    parser.add_argument("op", nargs="*", metavar="OP", help=f"of {', '.join(ops)} (default: all)")
    parser.add_argument("--backend", action="append", metavar="NAME", help="may be repeated")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=_DTYPES, help="of the inputs")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds")
    parser.add_argument("--quick", action="store_true", help="only see whether it runs")
    parser.add_argument("--json", action="store_true", help="one JSON line per case and backend")
    args = parser.parse_args(arguments)
    known = {name for op in ops for name in dispatch.BACKENDS[op]}
    for given, choices, what in ((args.op, ops, "op"), (args.backend or [], known, "backend")):
        for name in given:
            if name not in choices:
                parser.error(f"{what} {name!r} is not one of {', '.join(sorted(choices))}")
    if args.repeats < 1 or args.threads < 1:
        parser.error(
            f"--repeats {args.repeats} and --threads {args.threads}: both must be at least 1"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    args.op = args.op or ops
    asked = args.backend or _BACKENDS[args.device]
    args.device, args.dtype = torch.device(args.device), getattr(torch, args.dtype)
    unusable: dict[str, str] = {}
    for op in args.op:
        for name in asked:
            if name in dispatch.BACKENDS[op]:
                try:
                    dispatch.pick(op, name, args.device, args.dtype)
                except dispatch.BackendUnavailable as error:
                    unusable[name] = str(error)
    if args.backend and unusable:
        parser.error(next(iter(unusable.values())))
    args.backend = [name for name in asked if name not in unusable]
    return args


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    if not args.json:
        print("\n".join(HEADER))
    records = []
    chosen = [case for case in cases_for(args.device.type, args.quick) if case.op in args.op]
    for together in groups(chosen):
        for record in measure(together, args):
            records.append(record)
            print(json.dumps(record) if args.json else row(record), flush=True)
    print("\n" + "\n".join(summary(records)), file=sys.stderr if args.json else sys.stdout)


if __name__ == "__main__":
    main()
