"""Pictures of a sweep: the metric, training speed and memory against the values of each field."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megalodon_tasks.sweeps.request import CHUNK_SIZE, FULL, SEED, Request, short_name
from megalodon_tasks.sweeps.table import Measured, Row

# Told apart by marker and lightness, without colour.
SERIES = [
    {"color": "#0b3c6f", "marker": "o", "linestyle": "-"},
    {"color": "0.45", "marker": "s", "linestyle": "--"},
    {"color": "black", "marker": "^", "linestyle": ":"},
    {"color": "#7a5c00", "marker": "D", "linestyle": "-."},
]
REFERENCES = ("--", ":", "-.")


def draw(
    folder: Path, request: Request, rows: list[Row], references: dict[str, float]
) -> list[Path]:
    """Write one picture per swept field (but the seed) and return their names.

    ``references`` maps a label to a published value of the metric, drawn as a line.
    """
    written = []
    for field in request.axes:
        if field != SEED:
            path = folder / f"{short_name(field, request.axes)}.png"
            _draw_field(path, request, field, rows, references)
            written.append(path)
    return written


def _draw_field(
    path: Path, request: Request, field: str, rows: list[Row], references: dict[str, float]
) -> None:
    metric = rows[0].runs[0].metric
    panels: list[tuple[str, Callable[[Measured], float | None]]] = [
        (metric, lambda run: run.value),
        ("training, tokens per second", lambda run: run.tokens_per_second),
        ("peak memory (GB)", lambda run: run.memory),
    ]
    known = [(label, of) for label, of in panels if any(row.mean(of) is not None for row in rows)]
    figure = Figure(figsize=(4.2 * len(known), 4), layout="constrained")
    values = _in_order(field, rows)
    for axes, (label, of) in zip(
        figure.subplots(1, len(known), squeeze=False)[0], known, strict=True
    ):
        _draw_panel(axes, field, values, rows, of, errors=label == metric)
        axes.set_xlabel(short_name(field, request.axes).replace("_", " "))
        axes.set_ylabel(label)
        if label == metric:
            for style, (name, value) in zip(REFERENCES, references.items(), strict=False):
                axes.axhline(value, color="0.3", linewidth=1, linestyle=style, label=name)
        else:
            axes.set_ylim(0, 1.1 * axes.dataLim.y1)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(frameon=False, fontsize="small")
    figure.suptitle(request.recipe + (" (demo)" if request.demo else ""))
    figure.savefig(path, dpi=150)


def _draw_panel(
    axes: Axes,
    field: str,
    values: list[str],
    rows: list[Row],
    of: Callable[[Measured], float | None],
    errors: bool,
) -> None:
    """One line for each combination of the other fields, over equally spaced values."""
    series: dict[str, list[Row]] = {}
    for row in rows:
        others = ", ".join(
            f"{f.rpartition('.')[2]} {v}" for f, v in row.settings.items() if f != field
        )
        series.setdefault(others, []).append(row)
    for number, (label, found) in enumerate(series.items()):
        found = sorted(
            (row for row in found if row.mean(of) is not None),
            key=lambda row: values.index(row.settings[field]),
        )
        axes.errorbar(
            [values.index(row.settings[field]) for row in found],
            [row.mean(of) for row in found],
            yerr=[row.deviation or 0.0 for row in found] if errors else None,
            capsize=3,
            label=label or "ours, mean and deviation" if errors else label or "ours",
            **SERIES[number % len(SERIES)],
        )
    axes.set_xticks(range(len(values)), values)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _in_order(field: str, rows: list[Row]) -> list[str]:
    """The values as the picture shows them: numbers by size, full attention last."""
    values = list(dict.fromkeys(row.settings[field] for row in rows))
    if field == CHUNK_SIZE:
        return sorted(values, key=lambda value: float("inf") if value == FULL else float(value))
    try:
        return sorted(values, key=float)
    except ValueError:
        return values
