"""Draw what a model does: kernels and rates of CEMA, attention weights, and gates.

A Transformer has attention only.

Legend: B batch, L length, D channels, N components, H heads, K width of queries, V width of values,
T lags.  No picture needs colour to be read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.cuda_ops.complex_ema.coefficients import coefficients
from megalodon_tasks.evaluation.checkpoint import Trained
from megalodon_tasks.models.layers.cema import ComplexEMA
from megalodon_tasks.models.layers.cross_attention import GatedCrossAttention
from megalodon_tasks.models.layers.fused_attention import FusedAttention
from megalodon_tasks.models.layers.gated_attention import GatedAttention
from megalodon_tasks.runs.figures import open_axes

BEFORE = {"color": "0.6", "linestyle": "--", "linewidth": 1.0}
AFTER = {"color": "#0b3c6f", "linestyle": "-", "linewidth": 1.4}
CHANNELS = 4
HEADS = 4
MOST_LAYERS = 4


@dataclass(frozen=True)
class Kernels:
    """What a CEMA layer convolves with.

    lags: (T,) steps, negative where the later step acts on the earlier one.  values: (D, T), what an
    input adds to the output that many steps later.  decay, period: (rows, N), in steps; the share of a
    component falls to 1/e after ``decay`` steps, and turns once in ``period`` steps.
    """

    lags: torch.Tensor
    values: torch.Tensor
    decay: torch.Tensor
    period: torch.Tensor


@torch.no_grad()
def kernels(layer: ComplexEMA, reach: int) -> Kernels:
    """Return the response of ``layer`` to an impulse, up to ``reach`` steps away, and its rates."""
    before = reach if layer.bidirectional else 0
    impulse = layer.omega.new_zeros(1, before + reach + 1, layer.dim)
    impulse[:, before] = 1.0
    response, _ = layer(impulse)
    found = coefficients(*layer.arguments()[:4])
    return Kernels(
        lags=torch.arange(-before, reach + 1),
        values=response[0].T,
        decay=-1 / found.log_radius,
        period=2 * torch.pi / found.angle,
    )


def spread(values_DT: torch.Tensor, count: int) -> list[int]:
    """Choose ``count`` channels from the shortest to the longest memory, evenly by rank.

    Memory: the mean distance of the lags, weighted by the kernel's squares.
    """
    energy = values_DT.double() ** 2
    center = energy.argmax(1, keepdim=True)
    distance = (torch.arange(energy.shape[1]) - center).abs()
    memory = (energy * distance).sum(1) / energy.sum(1).clamp_min(1e-30)
    order = memory.argsort()
    places = (
        torch.linspace(0, len(order) - 1, min(count, len(order)), dtype=torch.float64)
        .round()
        .long()
    )
    return order[places].tolist()


@dataclass
class Observation:
    """What one attention layer did: rotated queries and keys (B, L, H, K), and the gate (B, L, V).

    A Transformer's layer has no gate.
    """

    layer: GatedAttention | FusedAttention
    rotated: list[torch.Tensor] = field(default_factory=list)
    gate: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float32))

    @property
    def chunk_steps(self) -> int:
        """Return the steps of a chunk or window; of the whole sequence where attention is full."""
        length = self.rotated[0].shape[1]
        return min(self.layer.chunk_size or length, length)

    def attention(self, item: int, chunk: int) -> torch.Tensor:
        """Return (H, steps, keys): the weights of one chunk of one item, rows are queries.

        Keys are those of the same chunk; where attention has a window, those before it too.
        Raises ``ValueError`` for a chunk that the item does not have.
        """
        query, key = (tensor[item].transpose(0, 1).double() for tensor in self.rotated)
        steps = self.chunk_steps
        chunks = -(-query.shape[1] // steps)
        if not 0 <= chunk < chunks:
            raise ValueError(
                f"chunk {chunk}: the item has the chunks 0 to {chunks - 1} of {steps} steps"
            )
        step = torch.arange(query.shape[1])
        here = step[chunk * steps : (chunk + 1) * steps]
        reached = here
        if isinstance(self.layer, FusedAttention):
            query = query / query.shape[-1] ** 0.5
            if self.layer.causal:
                reached = step[max(0, chunk * steps - steps + 1) : int(here[-1]) + 1]
        scores = query[:, here] @ key[:, reached].transpose(1, 2)
        if self.layer.causal:
            distance = here[:, None] - reached
            scores = scores.masked_fill((distance < 0) | (distance >= steps), -torch.inf)
        return scores.softmax(-1)


@contextmanager
def observed(model: nn.Module) -> Iterator[list[Observation]]:
    """Fill one observation per attention layer in each forward pass of ``model`` within the block."""
    kinds = (GatedAttention, FusedAttention)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    observations = [Observation(layer) for layer in layers]
    with ExitStack() as stack:
        for observation in observations:
            for module, function in _hooks(observation):
                stack.callback(module.register_forward_hook(function).remove)
        yield observations


def _hooks(observation: Observation) -> list[tuple[nn.Module, Callable[..., None]]]:
    def see_rotated(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        # query, then key; of several passes the last counts
        observation.rotated = [*observation.rotated, output.detach()][-2:]

    def see_gate(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        observation.gate = F.silu(output.detach())

    layer = observation.layer
    if isinstance(layer, FusedAttention):
        return [(layer.rotary, see_rotated)]
    return [(layer.rotary, see_rotated), (layer.gate_proj, see_gate)]


@contextmanager
def observed_cross(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the weights of cross attention (B, H, L, S) of each decoder block within the block."""
    weights: list[torch.Tensor] = []

    def see(module: Any, inputs: Any) -> None:
        weights.append(module.weights(*inputs))

    layers = [module for module in model.modules() if isinstance(module, GatedCrossAttention)]
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(see).remove)
        yield weights


def initial_model(trained: Trained) -> nn.Module:
    """Return the model before its first update: seed the generator and build, as training does."""
    utils.set_torch_seed(trained.cfg.common.seed)
    return trained.task.build_model(trained.cfg.model)


def draw(
    trained: Trained, split: str, item: int, chunk: int, layers: Sequence[int] | None, reach: int,
    folder: Path,
) -> list[Path]:  # fmt: skip
    """Draw the model of a checkpoint on the CPU; return the pictures that were written.

    These are attention, kernels (where there is a moving average) and gates, and for an encoder-decoder,
    whose layers are those of the encoder and then those of the decoder, also cross attention; for a
    Transformer attention only.

    split, item: what the model reads.  chunk: of attention.  layers: by default four, evenly spaced.
    reach: steps of a kernel.  Raises ``ValueError`` for an item, a chunk or a layer that there is not.
    """
    sample = _one_item(trained, split, item)
    model = trained.model
    with observed(model) as seen, observed_cross(model) as cross, torch.inference_mode():
        model(**sample["net_input"])
    count = len(seen)
    if not count:
        raise ValueError(
            f"{type(model).__name__}: there are pictures of Megalodon and the Transformer only"
        )
    if layers is None:
        evenly = np.linspace(0, count - 1, min(count, MOST_LAYERS)).round().astype(int)
        layers = sorted(set(evenly.tolist()))
    for layer in layers:
        if not 0 <= layer < count:
            raise ValueError(f"--layers {layer}: the model has the layers 0 to {count - 1}")
    names = [f"layer {layer}" for layer in layers]
    shown = [seen[layer] for layer in layers]
    figures = {"attention": _draw_attention(shown, names, chunk)}
    if all(isinstance(seen.layer, GatedAttention) for seen in shown):
        if any(isinstance(module, ComplexEMA) for module in model.modules()):
            models = initial_model(trained), model
            before, after = (_all_kernels(of, layers, reach) for of in models)
            figures["kernels"] = _draw_kernels(before, after, names)
        figures["gates"] = _draw_gates(shown, names)
    if cross:
        figures["cross_attention"] = _draw_cross([weights[0] for weights in cross[-MOST_LAYERS:]])
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)
    return [folder / f"{name}.png" for name in figures]


def _one_item(trained: Trained, split: str, item: int) -> dict[str, Any]:
    if "eval_mode" in trained.cfg.task:
        trained.task.cfg.eval_mode = "blocks"  # the items of a stream are no sequences
    trained.task.load_dataset(split, combine=False, epoch=1)
    dataset = trained.task.dataset(split)
    if not 0 <= item < len(dataset):
        raise ValueError(f"--item {item}: the split {split} has the items 0 to {len(dataset) - 1}")
    return dataset.collater([dataset[item]])


def _all_kernels(model: nn.Module, layers: Sequence[int], reach: int) -> list[Kernels]:
    found = [module for module in model.modules() if isinstance(module, ComplexEMA)]
    return [kernels(found[layer], reach) for layer in layers]


def _draw_kernels(before: list[Kernels], after: list[Kernels], names: list[str]) -> Figure:
    """Draw one row per layer: kernels of a few channels, and decay against period of all components."""
    figure = Figure(figsize=(3.0 * (CHANNELS + 1), 2.3 * len(after)), layout="constrained")
    grid = figure.subplots(len(after), CHANNELS + 1, squeeze=False)
    for row, old, new, name in zip(grid, before, after, names, strict=True):
        for axes, channel in zip(row, spread(new.values, CHANNELS), strict=False):
            axes.plot(old.lags, old.values[channel], label="before training", **BEFORE)
            axes.plot(new.lags, new.values[channel], label="after training", **AFTER)
            axes.set_title(f"{name}, channel {channel}", fontsize="small")
        _draw_rates(row[-1], old, new)
        row[-1].set_title(f"{name}, all components", fontsize="small")
    for axes in grid[-1, :-1]:
        axes.set_xlabel("lag (steps)")
    grid[-1, -1].set_xlabel("decay (steps to 1/e)")
    _finish(grid)
    grid[0, 0].legend(frameon=False, fontsize="x-small")
    grid[0, -1].legend(frameon=False, fontsize="x-small")
    figure.suptitle("CEMA kernels, from the shortest to the longest memory")
    return figure


def _draw_rates(axes: Axes, before: Kernels, after: Kernels) -> None:
    styles = (("o", "0.65", "before"), ("+", "#0b3c6f", "after"))
    for found, (marker, shade, label) in zip((before, after), styles, strict=True):
        x, y = found.decay.flatten().numpy(), found.period.flatten().numpy()
        turning = np.isfinite(y)  # the components of a real moving average never turn
        style = {"linestyle": "", "marker": marker, "markersize": 2.5, "color": shade}
        axes.plot(x[turning], y[turning], label=label, **style)
        if turning.any():
            axes.set_xscale("log")
            axes.set_yscale("log")
    axes.set_ylabel("period (steps)", fontsize="small")


def _draw_attention(observations: list[Observation], names: list[str], chunk: int) -> Figure:
    """Draw one row per layer and one column per head: the weights of one chunk, brighter is more."""
    weights = [seen.attention(0, chunk) for seen in observations]
    steps = "query (step of the chunk)", "key (step of the chunk)"
    figure = _draw_weights(weights, names, *steps)
    figure.suptitle(f"attention weights in chunk {chunk} ({weights[0].shape[1]} steps)")
    return figure


def _draw_cross(weights: list[torch.Tensor]) -> Figure:
    """Draw the weights (H, L, S) of the decoder's last blocks, one row per block."""
    names = [f"block {index - len(weights)}" for index in range(len(weights))]
    figure = _draw_weights(weights, names, "step of the target", "step of the source")
    figure.suptitle("cross attention of the decoder; block -1 is the last")
    return figure


def _draw_weights(weights: list[torch.Tensor], names: list[str], down: str, across: str) -> Figure:
    heads = min(HEADS, max(len(found) for found in weights))
    figure = Figure(figsize=(1.2 + 3.4 * heads, 3.2 * len(weights)), layout="constrained")
    grid = figure.subplots(len(weights), heads, squeeze=False)
    for row, found, name in zip(grid, weights, names, strict=True):
        for head, axes in enumerate(row):
            picture = axes.imshow(found[head].numpy(), cmap="cividis", vmin=0, aspect="equal")
            axes.set_title(f"{name}, head {head}", fontsize="small")
            axes.locator_params(integer=True)
            figure.colorbar(picture, ax=axes, shrink=0.8)
        row[0].set_ylabel(down)
    for axes in grid[-1]:
        axes.set_xlabel(across)
    return figure


def _draw_gates(observations: list[Observation], names: list[str]) -> Figure:
    """Draw the mean size of each layer's gate along the sequence, and the distribution of its values."""
    gates = [seen.gate[0].float() for seen in observations]
    figure = Figure(figsize=(11, 1.2 + 1.6 * len(gates)), layout="constrained")
    grid = figure.subplots(len(gates), 2, squeeze=False, width_ratios=[3, 1])
    for (along, values), gate, name in zip(grid, gates, names, strict=True):
        size = gate.abs().mean(1)
        along.plot(range(len(size)), size.numpy(), **AFTER)
        along.set_ylim(bottom=0)
        along.set_ylabel(name, fontsize="small")
        open_share = 100 * (gate > 0).float().mean().item()
        values.hist(gate.flatten().numpy(), bins=60, color="0.4", log=True)
        values.set_title(f"{open_share:.0f} % above 0", fontsize="small")
    grid[-1, 0].set_xlabel("step")
    grid[-1, 1].set_xlabel("value of the gate")
    _finish(grid)
    figure.suptitle("activity of the attention gates: mean size per step, and values (log count)")
    return figure


def _finish(grid: np.ndarray) -> None:
    for axes in grid.flat:
        axes.tick_params(which="both", labelsize="x-small")
        open_axes(axes)
