"""Training steps of several processes on the cores of this machine, simulated and measured.

Each round measures the rates that the simulator needs and all steps, so that a machine whose speed
varies does so for both; the fastest round counts.
"""

import tempfile
import time
from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.memory import saved_bytes
from benchmarks.scaling import costs, simulator
from benchmarks.scaling.calibration import Calibration, PairOfProcesses, Sizes
from benchmarks.scaling.costs import Microbatch
from benchmarks.scaling.devices import Device
from benchmarks.scaling.simulator import FP32, Plan, Training
from megalodon_tasks.models.chunk_parallel import ChunkParallel, set_chunk_parallel
from megalodon_tasks.models.language_model import CausalLM

FORMS = ("data", "chunk")


@dataclass(frozen=True)
class Pair:
    """A simulated and a measured value."""

    simulated: float
    measured: float


@dataclass(frozen=True)
class Row:
    """One kind of step.  ``busy``: CPU seconds of a process; ``saved``: bytes for its backward pass."""

    form: str
    processes: int
    tokens: int
    seconds: Pair
    busy: Pair
    saved: Pair
    sent: float


class _Loss(nn.Module):
    """The mean loss as the output of a module, which DistributedDataParallel wraps."""

    def __init__(self, lm: CausalLM) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, tokens_BL: torch.Tensor, targets_BL: torch.Tensor) -> torch.Tensor:
        return self.lm.nll(tokens_BL, targets_BL)[0].mean()


class Step:
    """One update of the model by the first ``processes`` processes, on random tokens.

    All processes create it.  data: each has a sequence of its own.  chunk: all share one.
    """

    def __init__(self, sizes: Sizes, form: str, processes: int) -> None:
        self.form, self.processes, self.sizes = form, processes, sizes
        self.plan = Plan(**{form: processes})
        context, sequences = (sizes.own, processes) if form == "data" else (sizes.shared, 1)
        self.training = Training(context, sequences, FP32)
        self.tokens = context // self.plan.chunk
        self.groups = [dist.new_group(list(range(processes))) for _ in range(2)]
        self.takes_part = dist.get_rank() < processes
        self.fastest = self.fastest_busy = float("inf")
        if self.takes_part:
            self._build()

    def _build(self) -> None:
        torch.manual_seed(0)
        model, (gradients, pieces) = self.sizes.model, self.groups
        self.lm = CausalLM(model.config, model.vocab, share_emb=True)
        self.optimizer = torch.optim.AdamW(self.lm.parameters(), lr=1e-4, fused=True)
        tokens_BL = torch.randint(model.vocab, (1, self.training.context + 1))
        self.inputs = [tokens_BL[:, :-1], tokens_BL[:, 1:]]
        if self.plan.chunk > 1:
            set_chunk_parallel(self.lm, pieces)
            parallel = ChunkParallel(pieces)
            self.inputs = [parallel.piece(part, self.sizes.chunk) for part in self.inputs]
        self.loss: nn.Module = _Loss(self.lm)
        if self.processes > 1:
            self.loss = DistributedDataParallel(self.loss, process_group=gradients)
        self.saved = saved_bytes(lambda: self.loss(*self.inputs), self.lm.parameters())

    def measure(self) -> None:
        """Make an update, timed from when all processes start it."""
        dist.barrier(self.groups[0])
        start, used = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(*self.inputs).backward()
        nn.utils.clip_grad_norm_(self.lm.parameters(), 1.0)
        self.optimizer.step()
        self.fastest = min(self.fastest, time.perf_counter() - start)
        self.fastest_busy = min(self.fastest_busy, time.process_time() - used)

    def row(self, device: Device) -> Row:
        """Return what was measured beside what is simulated for ``device``."""
        model, micro = self.sizes.model, Microbatch(1, self.tokens, FP32.bytes_each)
        step = simulator.time(model, self.training, self.plan, device)
        saved = model.config.num_layers * costs.block_activations(
            model.config, micro, "native", pieces=self.plan.chunk > 1
        )
        saved += costs.end_activations(model, micro, self.plan.chunk > 1)
        return Row(
            self.form,
            self.processes,
            self.tokens,
            Pair(step.total, self.fastest),
            Pair(step.total / device.sharing(self.processes), self.fastest_busy),
            Pair(saved, self.saved),
            sum(step.sent.values()),
        )


def _worker(
    rank: int,
    counts: list[int],
    cores: int,
    rounds: int,
    sizes: Sizes,
    folder: str,
    results: multiprocessing.SimpleQueue,
) -> None:
    """Measure in one of ``max(counts)`` processes; the first returns what was found."""
    torch.set_num_threads(1)
    size = max(counts)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    alone = [dist.new_group([each]) for each in range(size)][rank]
    pair = PairOfProcesses(sizes)
    steps = [Step(sizes, form, count) for form in FORMS for count in counts]
    # One process by itself, and as many as there are cores at the same time.
    calibrations = [(1, Calibration(sizes, alone)), (min(cores, size), Calibration(sizes, alone))]
    for _ in range(rounds):
        for together, part in (*calibrations, (2, pair), *((s.processes, s) for s in steps)):
            dist.barrier()
            if rank < together:
                part.measure()
    if rank == 0:
        one, several = (calibration.device(pair.link(), cores) for _, calibration in calibrations)
        rows = [step.row(one if step.processes == 1 else several) for step in steps]
        results.put((rows, one, several))
    dist.destroy_process_group()


def compare(
    counts: list[int], cores: int, rounds: int, sizes: Sizes
) -> tuple[list[Row], Device, Device]:
    """Measure ``rounds`` times with each number of processes in ``counts``.

    Returns a row for each form and number, and what was found of this machine with one process and with
    one on each of its ``cores``.  Raises ``ValueError`` unless one of the numbers is at least 2.
    """
    if max(counts) < 2 or min(counts) < 1:
        raise ValueError(f"processes {counts} must be positive, and one of them at least 2")
    results = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (counts, cores, rounds, sizes, folder, results)
        multiprocessing.spawn(_worker, arguments, nprocs=max(counts))
        return results.get()
