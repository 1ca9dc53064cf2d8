"""Pictures of what a model does.  Everything can be told apart without colour."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megalodon_tasks.evaluation.kernels import Kernels, spread
from megalodon_tasks.evaluation.observe import Observation

BEFORE = {"color": "0.6", "linestyle": "--", "linewidth": 1.0}
AFTER = {"color": "#0b3c6f", "linestyle": "-", "linewidth": 1.4}
CHANNELS = 4
HEADS = 4


def draw_kernels(path: Path, before: list[Kernels], after: list[Kernels], names: list[str]) -> None:
    """One row per layer: kernels of a few channels, and decay against period of all components."""
    figure = Figure(figsize=(3.0 * (CHANNELS + 1), 2.3 * len(after)), layout="constrained")
    grid = figure.subplots(len(after), CHANNELS + 1, squeeze=False)
    for row, old, new, name in zip(grid, before, after, names, strict=True):
        for axes, channel in zip(row, spread(new.values, CHANNELS), strict=False):
            axes.plot(
                old.lags.numpy(), old.values[channel].numpy(), label="before training", **BEFORE
            )
            axes.plot(
                new.lags.numpy(), new.values[channel].numpy(), label="after training", **AFTER
            )
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
    figure.savefig(path, dpi=130)


def _draw_rates(axes: Axes, before: Kernels, after: Kernels) -> None:
    styles = (("o", "0.65", "before"), ("+", "#0b3c6f", "after"))
    for found, (marker, shade, label) in zip((before, after), styles, strict=True):
        x, y = found.decay.flatten().numpy(), found.period.flatten().numpy()
        axes.plot(x, y, linestyle="", marker=marker, markersize=2.5, color=shade, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylabel("period (steps)", fontsize="small")


def draw_attention(
    path: Path, observations: list[Observation], names: list[str], chunk: int, length: int | None
) -> None:
    """One row per layer and one column per head: the weights of one chunk, brighter is more."""
    weights = [seen.attention(0, chunk, length) for seen in observations]
    heads = min(HEADS, max(len(found) for found in weights))
    figure = Figure(figsize=(1.2 + 3.4 * heads, 3.2 * len(weights)), layout="constrained")
    grid = figure.subplots(len(weights), heads, squeeze=False)
    for row, found, name in zip(grid, weights, names, strict=True):
        for head, axes in enumerate(row):
            picture = axes.imshow(found[head].numpy(), cmap="cividis", vmin=0, aspect="equal")
            axes.set_title(f"{name}, head {head}", fontsize="small")
            axes.locator_params(integer=True)
            figure.colorbar(picture, ax=axes, shrink=0.8)
        row[0].set_ylabel("query (step of the chunk)")
    for axes in grid[-1]:
        axes.set_xlabel("key (step of the chunk)")
    figure.suptitle(f"attention weights in chunk {chunk} ({weights[0].shape[1]} steps)")
    figure.savefig(path, dpi=130)


def draw_gates(
    path: Path, observations: list[Observation], names: list[str], length: int | None
) -> None:
    """Mean size of each layer's gate along the sequence, and the distribution of its values."""
    gates = [seen.gate[0, :length].float() for seen in observations]
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
    figure.savefig(path, dpi=130)


def _finish(grid: object) -> None:
    for axes in grid.flat:
        axes.tick_params(which="both", labelsize="x-small")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
