"""Two ways to send CEMA's states between processes that share a sequence: gathered, or in a chain.

    python -m benchmarks.scaling.state_exchange        # 2 and 4 processes

``ChunkParallel`` gathers what each piece adds, and every process combines the earlier ones.  In a chain
each waits for the one before it, combines, and sends to the next: fewer bytes, more waiting.  Prints the
fastest update of each, in turn in the same processes: of the model of ``benchmarks.scaling``, and of one
so small that it does little else than wait.
"""

import argparse
import dataclasses
import json
import os
import platform
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing

from benchmarks.scaling.calibration import TINY, Sizes
from benchmarks.scaling.processes import Step
from megalodon_tasks.cuda_ops.complex_ema.coefficients import coefficients, powers
from megalodon_tasks.cuda_ops.complex_ema.last_state import last_state
from megalodon_tasks.models.chunk_parallel import ChunkParallel

SIZES = {"small": Sizes(), "tiny": dataclasses.replace(TINY, layers=Sizes.layers)}


class Chain(ChunkParallel):
    """Exchange CEMA's states with the neighbours only."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group)
        self._sent: list[tuple[Any, torch.Tensor]] = []

    def cema_state(
        self,
        x_BLD: torch.Tensor,
        padding_mask_BL: torch.Tensor | None,
        logits: tuple[torch.Tensor, ...],
        first_BDN: torch.Tensor | None,
    ) -> Callable[[], torch.Tensor]:
        """Return the state before this piece, from zeros before the first."""
        coeffs, length = coefficients(*logits), x_BLD.shape[1]
        turns = powers(length * coeffs.log_radius, length * coeffs.angle, 2, torch.float64)
        piece = last_state(x_BLD, logits, padding_mask_BL)
        before = _Neighbours.apply(torch.view_as_real(piece), turns[:, 1].to(x_BLD.dtype), self)
        return lambda: torch.view_as_complex(before)

    def send(self, tensor: torch.Tensor, step: int) -> None:
        """Start to send to the process ``step`` places further."""
        tensor = tensor.detach().contiguous()
        to = dist.get_global_rank(self.group, self.rank + step)
        self._sent.append((dist.isend(tensor, to, self.group), tensor))

    def receive(self, like: torch.Tensor, step: int) -> torch.Tensor:
        """Wait for what the process ``step`` places further sends."""
        tensor = torch.empty_like(like, memory_format=torch.contiguous_format)
        dist.recv(tensor, dist.get_global_rank(self.group, self.rank + step), self.group)
        return tensor

    def finish(self) -> None:
        """Wait until all that was sent has arrived."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()


class _Neighbours(torch.autograd.Function):
    """Receive the state before, send ``decay * before + piece``; backward the other way round."""

    @staticmethod
    def forward(ctx: Any, piece: torch.Tensor, decay: torch.Tensor, chain: Chain) -> torch.Tensor:
        before = torch.zeros_like(piece) if chain.rank == 0 else chain.receive(piece, -1)
        product = torch.view_as_complex(before) * torch.view_as_complex(decay)
        if chain.rank + 1 < chain.size:
            chain.send(torch.view_as_real(product) + piece, 1)
        ctx.chain = chain
        ctx.save_for_backward(before, decay)
        return before

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        chain, (before, decay) = ctx.chain, ctx.saved_tensors
        last = chain.rank + 1 == chain.size
        after = torch.zeros_like(grad) if last else chain.receive(grad, 1)
        after_c, before_c, decay_c = map(torch.view_as_complex, (after, before, decay))
        if chain.rank > 0:
            chain.send(grad + torch.view_as_real(after_c * decay_c.conj()), -1)
        return after, torch.view_as_real((after_c * before_c.conj()).sum(0)), None


def _chained(step: Step) -> Chain:
    chain = Chain(step.groups[1])
    for module in step.lm.modules():
        if getattr(module, "chunk_parallel", None) is not None:
            module.chunk_parallel = chain
    return chain


def _worker(rank: int, count: int, rounds: int, folder: str, results: Any) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    for name, sizes in SIZES.items():
        gathered, chained = (Step(sizes, "chunk", count) for _ in range(2))
        chain = _chained(chained)
        for _ in range(rounds):
            gathered.measure()
            chained.measure()
            chain.finish()
        for one, other in zip(gathered.lm.parameters(), chained.lm.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-2, atol=1e-4)
        if rank == 0:
            seconds = [
                1e3 * s for step in (gathered, chained) for s in (step.fastest, step.fastest_busy)
            ]
            results.put((name, count, *seconds))
    dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.state_exchange")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args(arguments)
    print("| model | processes | gathered ms | CPU ms | chain ms | CPU ms |")
    print("|---|---:|---:|---:|---:|---:|")
    for count in args.processes:
        results = multiprocessing.get_context("spawn").SimpleQueue()
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.spawn(_worker, (count, args.rounds, folder, results), nprocs=count)
        for _ in SIZES:
            name, number, *values = results.get()
            print(
                f"| {name} | {number} | " + " | ".join(f"{v:.1f}" for v in values) + " |",
                flush=True,
            )
    cores = len(os.sched_getaffinity(0))
    print(json.dumps({"cores": cores, "rounds": args.rounds, "machine": platform.machine()}))


if __name__ == "__main__":
    main()
