"""Measure on a CPU what the simulator needs to know of it: rates, and each kind of work beside them.

Times are CPU times of a process with one thread, the fastest of all rounds: other work on the machine
only adds time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from benchmarks.limits import Rates, Work, copy_probe, matrix_probe
from benchmarks.ops_cases import AttentionCase, Case, CemaCase, NormCase
from benchmarks.scaling import costs
from benchmarks.scaling.costs import Microbatch, Model
from benchmarks.scaling.devices import Device, Link
from megalodon_tasks.cuda_ops import rms_norm
from megalodon_tasks.cuda_ops.complex_ema.last_state import last_state
from megalodon_tasks.cuda_ops.linear import linear
from megalodon_tasks.models.chunk_parallel import ChunkParallel
from megalodon_tasks.models.config import MegalodonConfig

_E = 4  # bytes of a number: everything is float32


@dataclass(frozen=True)
class Sizes:
    """What is run.

    own: tokens of each process with data parallelism.  shared: tokens of the sequence that processes
    share with chunk parallelism.  products: rows of the square matrices.  copied, messages: bytes.
    """

    dim: int = 256
    layers: int = 4
    vocab: int = 256
    chunk: int = 256
    own: int = 1024
    shared: int = 4096
    products: int = 1024
    copied: int = 1 << 26
    messages: tuple[int, int] = (1 << 10, 1 << 24)

    @property
    def model(self) -> Model:
        """A model with the proportions of the released ones, and one matrix in and out."""
        d = self.dim
        widths = {"model_dim": d, "z_dim": d // 2, "value_dim": 2 * d, "ffn_hidden_dim": 2 * d}
        layers = {"num_layers": self.layers, "norm_num_groups": d // 32, "chunk_size": self.chunk}
        return Model(MegalodonConfig(**widths, **layers, causal=True), self.vocab, share_emb=True)


TINY = Sizes(32, 1, 32, 8, 32, 64, 64, 1 << 12, (1 << 10, 1 << 12))


class Calibration:
    """The fastest times of a large product, a large copy, and both passes of each kind of work."""

    def __init__(self, sizes: Sizes, own_group: dist.ProcessGroup) -> None:
        cpu = torch.device("cpu")
        self._matrix = matrix_probe(cpu, torch.float32, sizes.products)
        self._copy = copy_probe(cpu, sizes.copied)
        self._kinds = _kinds(sizes, own_group)
        self._runs = {"matrix": self._matrix.run, "copy": self._copy.run}
        self._runs |= {kind: run for kind, (run, _) in self._kinds.items()}
        self._fastest = dict.fromkeys(self._runs, float("inf"))

    def measure(self) -> None:
        """Run everything once more."""
        for name, run in self._runs.items():
            used = time.process_time()
            run()
            self._fastest[name] = min(self._fastest[name], time.process_time() - used)

    def device(self, link: Link, cores: int) -> Device:
        """Return this machine as the simulator sees it: one of the processes that share its cores."""
        rates = Rates(
            self._matrix.amount / self._fastest["matrix"], self._copy.amount / self._fastest["copy"]
        )
        slowdown = {
            kind: self._fastest[kind] / rates.seconds(work)
            for kind, (_, work) in self._kinds.items()
        }
        return Device("this machine", rates, 0.0, link, link, 1, slowdown, False, cores)


class PairOfProcesses:
    """The fastest all-reduce of a small and a large tensor between the first two processes."""

    def __init__(self, sizes: Sizes) -> None:
        self._group = dist.new_group([0, 1])
        self._messages = [torch.zeros(size // _E) for size in sizes.messages]
        self._fastest = [float("inf")] * len(self._messages)

    def measure(self) -> None:
        """Run both once more."""
        for index, message in enumerate(self._messages):
            dist.barrier(self._group)
            start = time.perf_counter()
            dist.all_reduce(message, group=self._group)
            self._fastest[index] = min(self._fastest[index], time.perf_counter() - start)

    def link(self) -> Link:
        """Solve ``seconds = 2 (size / 2 / rate + latency)``, an all-reduce of two processes."""
        (small, large), (few, many) = self._fastest, (m.nbytes for m in self._messages)
        rate = (many - few) / max(large - small, 1e-9)
        return Link(rate, max(0.0, small - few / rate) / 2)


def _both_passes(function: Callable[[], torch.Tensor]) -> Callable[[], object]:
    def run() -> None:
        y = function()
        y.backward(torch.ones_like(y))

    return run


def _case(case: Case) -> tuple[Callable[[], object], Work]:
    tensors = case.tensors(torch.device("cpu"), torch.float32)
    for tensor in tensors.values():
        tensor.requires_grad_()
    return _both_passes(partial(case.call, None, **tensors)), case.work("triton", _E)[1]


def _leaf(*shape: int) -> torch.Tensor:
    return torch.randn(shape).requires_grad_()


def _optimizer(wide: int, dim: int) -> tuple[Callable[[], object], Work]:
    parameters = [_leaf(wide, dim) for _ in range(8)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def update() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return update, costs.optimizer_op(8 * wide * dim).both


def _kinds(
    sizes: Sizes, own_group: dist.ProcessGroup
) -> dict[str, tuple[Callable[[], object], Work]]:
    """Return for each kind of work of :mod:`costs` both passes of it, and what they do at least."""
    config, n, d = sizes.model.config, sizes.own, sizes.dim
    wide, micro = config.value_dim, Microbatch(1, n, _E)
    x_BLD, weight_D, matrix_VD = _leaf(1, n, d), _leaf(d), _leaf(wide, d)
    value_BLV, gate_BLV = _leaf(1, n, wide), _leaf(1, n, wide)
    scores, targets_BL = _leaf(1, sizes.vocab, n), torch.randint(sizes.vocab, (1, n))
    rows = (d, config.cema_ndim)
    logits = _leaf(*rows, 1), _leaf(*rows, 1), _leaf(d, 1, 1), _leaf(*rows, 2)
    alone = ChunkParallel(own_group)
    attention = AttentionCase("", 1, n, 1, config.z_dim, sizes.chunk, True, wide)
    functions = {
        "products": lambda: linear(x_BLD, matrix_VD),
        "row norms": lambda: F.layer_norm(rms_norm(x_BLD, weight_D), (d,), weight_D, weight_D),
        "elementwise": lambda: F.silu(value_BLV) * gate_BLV,
        "loss": lambda: F.cross_entropy(scores, targets_BL, reduction="none"),
        "piece states": lambda: torch.view_as_real(last_state(x_BLD, logits, None)),
        "piece moments": lambda: alone.moments(x_BLD, config.norm_groups, None, None).mean,
    }
    piece_states, piece_moments = costs.chunk_parallel_ops(config, micro)
    works = {
        "products": costs.value_projection(config, micro).both,
        "row norms": Work(0.0, 10.0 * _E * n * d),
        "elementwise": Work(0.0, 14.0 * _E * n * wide),
        "loss": costs.end_ops(sizes.model, micro)[-1].both,
        "piece states": piece_states.both,
        "piece moments": piece_moments.both,
    }
    return {
        "timestep_norm": _case(NormCase("", 1, n, d, config.norm_groups)),
        "cema": _case(CemaCase("", 1, n, d, config.cema_ndim)),
        "chunk_attention": _case(attention),
        "optimizer": _optimizer(wide, d),
        **{kind: (_both_passes(functions[kind]), work) for kind, work in works.items()},
    }
