"""Chunk parallelism: one sequence over the processes of a group, each with consecutive chunks.

Source: arXiv 2404.08801, section 3.5.  Attention does not cross a chunk, so only what is carried along
time travels: CEMA's state and the moments of timestep norm, once per block.  What a piece adds to them
does not depend on other pieces, so it is gathered from all processes at once and combined on each.

Backward, the gradients of the gathered tensors are summed over the group in the same way.  Losses of all
processes are meant to be summed: then the gradients of parameters, summed over the group, are those of
one process.  Legend: B batch, L length of a piece, D dim, N components, G groups, R processes.
"""

from collections.abc import Callable

import torch
from torch import distributed as dist
from torch import nn

from megalodon_tasks.cuda_ops import TimestepNormState
from megalodon_tasks.cuda_ops.complex_ema.last_state import last_state, state_before
from megalodon_tasks.models.state import StackState, map_state


class ChunkParallel:
    """The processes that share a sequence, and this one's place: rank r has piece r of ``size``."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def piece(self, x_BL: torch.Tensor, chunk_size: int | None) -> torch.Tensor:
        """Return this process's part of whole sequences, (B, L) of (B, L * size), or (B, L, ...).

        Raises ``ValueError`` unless the length is a multiple of ``size`` chunks.
        """
        length, wide = x_BL.shape[1], self.size * (chunk_size or 0)
        if not wide or length % wide:
            raise ValueError(
                f"{length} steps cannot be divided over {self.size} chunk-parallel processes with "
                f"chunk_size={chunk_size}: give a length that is a multiple of processes x chunk_size"
            )
        return x_BL.unflatten(1, (self.size, -1))[:, self.rank].contiguous()

    def last(self, state: StackState) -> StackState:
        """Return, on every process, the state after the last step of the whole sequence, detached."""
        source = dist.get_global_rank(self.group, self.size - 1)

        def receive(tensor: torch.Tensor) -> torch.Tensor:
            tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
            sent = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            dist.broadcast(sent, source, self.group)
            return tensor

        return map_state(state, receive)

    def gather(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start to gather real tensors of equal shape; the result waits and returns them, (R, ...)."""
        exchange = _Exchange(self)
        arriving = _Start.apply(tensor, exchange)
        return lambda: _Wait.apply(arriving, exchange)

    def cema_state(
        self,
        x_BLD: torch.Tensor,
        padding_mask_BL: torch.Tensor | None,
        logits: tuple[torch.Tensor, ...],
        first_BDN: torch.Tensor | None,
    ) -> Callable[[], torch.Tensor]:
        """Start to exchange CEMA's states; the result waits and returns that before this piece.

        x: (B, L, D) input of :func:`cema`.  logits: its alpha, delta, theta and gamma.  first: the state
        before the whole sequence (B, D, N) complex, equal on all processes; None is zeros.
        """
        wait = self.gather(torch.view_as_real(last_state(x_BLD, logits, padding_mask_BL)))
        length = x_BLD.shape[1]
        return lambda: state_before(
            torch.view_as_complex(wait()), self.rank, length, logits, first_BDN
        )

    def moments(
        self,
        x_BLD: torch.Tensor,
        num_groups: int,
        padding_mask_BL: torch.Tensor | None,
        first: TimestepNormState | None,
    ) -> TimestepNormState:
        """Return the moments of all steps before this piece, for :func:`timestep_norm`.

        first: moments before the whole sequence, equal on all processes.
        """
        own = _moments(x_BLD, num_groups, padding_mask_BL)
        gathered_RB = self.gather(own)()[: self.rank]
        count, mean, square = gathered_RB[..., 0], gathered_RB[..., 1], gathered_RB[..., 2]
        if first is not None:
            low = 0.0 if first.mean_low is None else first.mean_low
            given_count = first.count[:, None].expand_as(first.mean).double()
            count = torch.cat([given_count[None], count])
            mean = torch.cat([(first.mean.double() + low)[None], mean])
            square = torch.cat([(first.var.double() * given_count)[None], square])
        total_BG = count.sum(0)
        steps_BG = total_BG.clamp(min=1)
        mean_BG = (count * mean).sum(0) / steps_BG
        var_BG = (square + count * (mean - mean_BG).square()).sum(0) / steps_BG
        dtype = torch.float64 if x_BLD.dtype == torch.float64 else torch.float32
        high_BG = mean_BG.to(dtype)
        low_BG = (mean_BG - high_BG).to(dtype).detach()
        return TimestepNormState(total_BG[:, 0].long(), high_BG, var_BG.to(dtype), low_BG)


def set_chunk_parallel(model: nn.Module, group: dist.ProcessGroup | None) -> ChunkParallel | None:
    """Make every causal stack in ``model`` treat its input as a piece of longer sequences.

    The processes of ``group`` must call the model together, each with its :meth:`ChunkParallel.piece`.
    None makes it treat its input as whole sequences again.  Raises ``ValueError`` for a model without a
    causal stack of Megalodon.
    """
    parts = [module for module in model.modules() if hasattr(module, "chunk_parallel")]
    if not parts or not all(part.causal for part in parts):
        raise ValueError(
            f"{type(model).__name__} has no causal stack of Megalodon, so its sequences cannot be "
            "divided over processes: choose a language model of Megalodon, or data parallelism"
        )
    chunk_parallel = None if group is None else ChunkParallel(group)
    for part in parts:
        part.chunk_parallel = chunk_parallel
    return chunk_parallel


def _moments(
    x_BLD: torch.Tensor, num_groups: int, padding_mask_BL: torch.Tensor | None
) -> torch.Tensor:
    """Return count, mean and sum of squared distances of the real steps, (B, G, 3) float64.

    The sum of squares is per feature of a group, as the count is: a variance times the count of steps.
    """
    wide = x_BLD if x_BLD.dtype == torch.float64 else x_BLD.float()
    if padding_mask_BL is not None:
        wide = wide.masked_fill(padding_mask_BL[..., None], 0.0)
    if padding_mask_BL is None:
        count_B1 = x_BLD.new_full((x_BLD.shape[0], 1), x_BLD.shape[1], dtype=torch.int64)
    else:
        count_B1 = (~padding_mask_BL).sum(1, keepdim=True)
    steps_B1 = count_B1.clamp(min=1).double()
    x_BLGJ = wide.unflatten(2, (num_groups, -1))
    # Distances to the mean: also where it is far from zero, the sums do not cancel.
    base_BG = (x_BLGJ.detach().mean(-1).sum(1, dtype=torch.float64) / steps_B1).to(wide.dtype)
    apart_BLGJ = x_BLGJ - base_BG[:, None, :, None]
    if padding_mask_BL is not None:
        apart_BLGJ = apart_BLGJ.masked_fill(padding_mask_BL[..., None, None], 0.0)
    moved_BG = apart_BLGJ.mean(-1).sum(1, dtype=torch.float64) / steps_B1
    second_BG = apart_BLGJ.square().mean(-1).sum(1, dtype=torch.float64)
    square_BG = second_BG - steps_B1 * moved_BG.square()
    return torch.stack(
        [count_B1.expand_as(moved_BG).double(), base_BG + moved_BG, square_BG], dim=-1
    )


class _Exchange:
    """The collective calls of one gathering that have been started."""

    work: dist.Work
    grad: torch.Tensor

    def __init__(self, parallel: ChunkParallel) -> None:
        self.parallel = parallel


class _Start(torch.autograd.Function):
    """Start to gather.  Backward: wait for the sum of gradients, return that of the own tensor."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, tensor: torch.Tensor, exchange: _Exchange
    ) -> torch.Tensor:
        parallel = exchange.parallel
        ctx.exchange = exchange
        gathered = tensor.new_empty(parallel.size, *tensor.shape)
        exchange.work = dist.all_gather(
            list(gathered.unbind(0)), tensor.contiguous(), parallel.group, async_op=True
        )
        return gathered

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, _: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        exchange = ctx.exchange
        exchange.work.wait()
        return exchange.grad[exchange.parallel.rank], None


class _Wait(torch.autograd.Function):
    """Wait for what was gathered.  Backward: start to sum the gradients over the group."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, gathered: torch.Tensor, exchange: _Exchange
    ) -> torch.Tensor:
        ctx.exchange = exchange
        exchange.work.wait()
        return gathered.view_as(gathered)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        exchange = ctx.exchange
        exchange.grad = grad.clone(memory_format=torch.contiguous_format)
        exchange.work = dist.all_reduce(exchange.grad, group=exchange.parallel.group, async_op=True)
        return exchange.grad, None
