"""Tables of what is simulated, in Markdown: what ``docs/scaling.md`` holds."""

from collections.abc import Iterable, Sequence

from benchmarks.scaling import costs, simulator
from benchmarks.scaling.costs import Microbatch, Model
from benchmarks.scaling.devices import GPUS, Device
from benchmarks.scaling.processes import Row
from benchmarks.scaling.simulator import BF16, Plan, Training

CONTEXTS = (32_768, 262_144, 2_097_152)
DEVICES = 256  # as in arXiv 2404.08801, section 4.1, and so are the tokens of an update
TOKENS = 4_194_304
STAGES = 4


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Format a table; numbers stand on the right."""
    rows = [head, ["---"] + ["---:"] * (len(head) - 1), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def plans(model: Model, sequences: int, devices: int) -> list[Plan]:
    """Return what is compared: each form of parallelism, with as many of the devices as it can use."""
    data = min(sequences, devices)
    heads = model.config.num_heads
    stage = devices // STAGES
    few = min(max(1, sequences // (2 * STAGES)), stage)  # so that stages have microbatches
    layers = min(data, devices // heads)
    return [
        Plan(data),
        Plan(data, sharded=True),
        Plan(data, devices // data),
        Plan(data, devices // data, sharded=True),
        Plan(layers, devices // heads // layers, heads, sharded=True),
        Plan(few, stage // few, 1, STAGES),
        Plan(few, stage // few, 1, STAGES, sharded=True),
    ]


def describe(plan: Plan) -> str:
    """Name the forms that a plan has, such as ``data 128, sharded x chunk 2``."""
    names = {
        "data": plan.data,
        "chunk": plan.chunk,
        "tensor": plan.tensor,
        "pipeline": plan.pipeline,
    }
    parts = [f"{name} {number}" for name, number in names.items() if number > 1] or ["one device"]
    return " x ".join(parts) + (", sharded" if plan.sharded else "")


def scaling_table(
    name: str, device: Device = GPUS["h100"], devices: int = DEVICES, tokens: int = TOKENS
) -> str:
    """Return memory and least time of an update of the preset ``name``, by context and plan.

    Raises ``ValueError`` for an unknown preset, or devices and tokens that no plan can divide.
    """
    model, lines = costs.preset(name), []
    for context in CONTEXTS:
        if tokens % context:
            raise ValueError(f"{tokens} tokens of an update are not whole sequences of {context}")
        training = Training(context, tokens // context)
        for plan in plans(model, training.sequences, devices):
            lines.append(_line(model, training, plan, device))
    head = ["plan", "context", "devices", "tokens", "recomputes", "parameters GB", "activations GB"]
    head += [
        "peak GB",
        "total GB",
        "compute s",
        "waits s",
        "idle s",
        "update s",
        "tokens/s",
        "sent GB",
    ]
    return markdown(head, lines)


def _short(context: int) -> str:
    return f"{context >> 20}M" if context >= 1 << 20 else f"{context >> 10}K"


def _line(model: Model, training: Training, plan: Plan, device: Device) -> list[str]:
    plan = simulator.fastest(model, training, plan, device)
    memory = simulator.memory(model, training, plan)
    time = simulator.time(model, training, plan, device)
    tokens = training.context * training.sequences
    fits = "" if memory.total <= device.memory else " (too much)"
    return [
        describe(plan),
        _short(training.context),
        str(plan.devices),
        f"{tokens // plan.devices:,}",
        "yes" if plan.checkpoint else "no",
        *(f"{part / 1e9:.1f}" for part in (memory.state, memory.saved, memory.peak)),
        f"{memory.total / 1e9:.1f}{fits}",
        *(f"{part:.2f}" for part in (time.compute, sum(time.waits.values()), time.bubble)),
        f"{time.total:.2f}",
        f"{tokens / plan.devices / time.total:,.0f}",
        f"{sum(time.sent.values()) / 1e9:.2f}",
    ]


def sent_table(name: str) -> str:
    """Return what a device sends for a block and update, 16K tokens on each of two devices."""
    model = costs.preset(name)
    micro = Microbatch(1, 16_384, BF16.bytes_each)
    state, moments = simulator.state_bytes(model, micro), simulator.moment_bytes(model, micro)
    block = costs.block_parameters(model.config) * BF16.bytes_each
    width = micro.tokens * model.config.model_dim * BF16.bytes_each
    rows = {
        "chunk: CEMA's state, gathered; its gradients, summed": 3 * state,
        "chunk: moments of timestep norm; their gradients": 3 * moments,
        "data: gradients, summed": block,
        "data, sharded: parameters gathered twice, gradients scattered": 3 * block // 2,
        "pipeline: activations at a boundary; their gradients": 2 * width,
        "tensor: activations, six times forward and five backward": 11 * width // 2,
    }
    return markdown(["what", "bytes"], ([what, f"{size:,}"] for what, size in rows.items()))


def work_table(name: str, device: Device = GPUS["h100"]) -> str:
    """Return the least time of a block by kind of work, for 16K tokens that two devices share."""
    model = costs.preset(name)
    micro = Microbatch(1, 16_384, BF16.bytes_each)
    ops = costs.block_ops(model.config, micro) + costs.chunk_parallel_ops(model.config, micro)
    seconds: dict[str, float] = {}
    for op in ops:
        seconds[op.kind] = seconds.get(op.kind, 0.0) + device.seconds(op.kind, op.both)
    total = sum(seconds.values())
    lines = ([k, f"{1e3 * s:.2f}", f"{100 * s / total:.0f}"] for k, s in seconds.items())
    return markdown(["kind", "ms", "%"], lines)


def measured_table(rows: Iterable[Row]) -> str:
    """Return simulated beside measured values of steps on this machine."""
    head = ["form", "processes", "tokens each", "s simulated", "s measured", "ratio"]
    head += [
        "CPU s simulated",
        "CPU s measured",
        "ratio",
        "saved MB simulated",
        "saved MB measured",
    ]
    lines = []
    for row in rows:
        times = []
        for pair in (row.seconds, row.busy):
            ratio = pair.simulated / pair.measured
            times += [f"{pair.simulated:.3f}", f"{pair.measured:.3f}", f"{ratio:.2f}"]
        saved = [f"{size / 1e6:.1f}" for size in (row.saved.simulated, row.saved.measured)]
        place = [row.form, str(row.processes), f"{row.tokens:,}"]
        lines.append([*place, *times, *saved, f"{row.sent / 1e6:.1f}"])
    return markdown([*head, "sent MB"], lines)


def device_table(one: Device, several: Device) -> str:
    """Return the rates of this machine, and each kind of work over its least time at them."""
    pairs = {
        "products, GFLOP/s": (one.rates.matrix / 1e9, several.rates.matrix / 1e9),
        "copy, GB/s": (one.rates.copy / 1e9, several.rates.copy / 1e9),
        "all-reduce of two processes, GB/s": (several.near.rate / 1e9,) * 2,
        "a message, ms": (several.near.latency * 1e3,) * 2,
    }
    pairs |= {
        f"{kind}, time over the least": (one.slowdown[kind], several.slowdown[kind])
        for kind in one.slowdown
    }
    lines = ([what, *(f"{value:.2f}" for value in pair)] for what, pair in pairs.items())
    return markdown(["measured here", "one process", "one on each core"], lines)
