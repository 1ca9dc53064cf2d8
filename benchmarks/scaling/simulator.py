"""Memory and time of one update of a language model on many devices, by the sizes of a plan.

The equations stand in the functions; ``docs/scaling.md`` has what they leave out.  Devices are placed so
that those of tensor parallelism are nearest to each other, then those of chunk parallelism, then
those of data parallelism; stages of a pipeline are farthest apart.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from benchmarks.scaling import costs
from benchmarks.scaling.costs import Microbatch, Model, Op
from benchmarks.scaling.devices import Device, Link

# Bytes of CEMA's state for each component, complex64, and of the three moments of a group, float64.
_STATE, _MOMENTS = 8, 24


@dataclass(frozen=True)
class Precision:
    """Bytes of a number in products and messages, and of a parameter with all that belongs to it.

    ``replicated``: on each device of plain data parallelism.  ``sharded``: of the part that a device has
    where parameters, gradients and the optimizer's moments are divided.
    """

    bytes_each: int
    replicated: int
    sharded: int


# Replicated, as fairseq has it: bf16 and float32 parameter and gradient, Adam's two moments (2 + 4 + 2 +
# 4 + 8).  Sharded: float32 parameter, gradient and moments; the bf16 copies exist for single blocks.
BF16 = Precision(2, 20, 16)
FP32 = Precision(4, 16, 16)


@dataclass(frozen=True)
class Training:
    """One update: ``sequences`` of ``context`` tokens over all devices, ``together`` in a microbatch."""

    context: int
    sequences: int
    precision: Precision = BF16
    together: int = 1


@dataclass(frozen=True)
class Plan:
    """How many devices divide the sequences, each sequence, each layer, and the layers.

    ``sharded``: the devices of data and chunk parallelism divide parameters, gradients and moments too.
    ``checkpoint``: only the input of each block is saved, and the block recomputed.
    """

    data: int = 1
    chunk: int = 1
    tensor: int = 1
    pipeline: int = 1
    sharded: bool = False
    checkpoint: bool = False

    @property
    def devices(self) -> int:
        return self.data * self.chunk * self.tensor * self.pipeline

    @property
    def replicas(self) -> int:
        """Devices that have the same parameters."""
        return self.data * self.chunk


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest device: parameters and optimizer, saved activations, the peak besides."""

    state: float
    saved: float
    peak: float

    @property
    def total(self) -> float:
        return self.state + self.saved + self.peak


@dataclass(frozen=True)
class Time:
    """Seconds of an update: computing, what each form waits for messages, idle stages, bytes sent."""

    compute: float
    waits: dict[str, float]
    bubble: float
    sent: dict[str, float]

    @property
    def total(self) -> float:
        return self.compute + sum(self.waits.values()) + self.bubble


def check(model: Model, training: Training, plan: Plan) -> None:
    """Raise ``ValueError`` where a plan divides something that it cannot, naming both numbers."""
    config = model.config
    piece = plan.chunk * (config.chunk_size or training.context)
    for name, parts, of, number in (
        ("data", plan.data * training.together, "sequences", training.sequences),
        ("chunk", piece, "context", training.context),
        ("tensor", plan.tensor, "num_heads", config.num_heads),
        ("pipeline", plan.pipeline, "num_layers", config.num_layers),
    ):
        if parts < 1 or number % parts:
            each = {"data": training.together, "chunk": config.chunk_size}.get(name)
            product = f" x {each}" if each and each > 1 else ""
            raise ValueError(
                f"plan.{name}={getattr(plan, name)}{product} does not divide {of}={number}"
            )


def memory(model: Model, training: Training, plan: Plan) -> Memory:
    """Return the memory of the stage that needs most of it.

    Of m microbatches, stage i of p holds the activations of ``min(m, p - i)``, where stages do one
    forward and one backward pass in turn.  A block that is recomputed saves its input.  At its peak a
    device also holds one recomputed block or the scores, the larger; where parameters are divided, those
    of two blocks and of the ends, with their gradients.
    """
    check(model, training, plan)
    micro = _microbatch(training, plan)
    config, each = model.config, training.precision
    layers, batches = config.num_layers // plan.pipeline, _microbatches(training, plan)
    block = costs.block_parameters(config, plan.tensor)
    embedding, output = costs.end_parameters(model, plan.tensor)
    activations = costs.block_activations(config, micro, pieces=plan.chunk > 1)
    boundary = micro.tokens * config.model_dim * each.bytes_each
    stages = []
    for stage in range(plan.pipeline):
        first, last = stage == 0, stage == plan.pipeline - 1
        ends = embedding * first + output * last
        held = layers * (boundary if plan.checkpoint else activations)
        held = min(batches, plan.pipeline - stage) * held
        held += costs.end_activations(model, micro, plan.chunk > 1) * last
        peak = max(activations * plan.checkpoint, costs.loss_peak(model, micro) * last)
        parameters = layers * block + ends
        if plan.sharded:
            state = parameters * each.sharded / plan.replicas
            peak += each.bytes_each * (2 * block + ends) * 2
        else:
            state = float(parameters * each.replicated)
        stages.append(Memory(state, held, peak))
    return max(stages, key=lambda one: one.total)


def time(model: Model, training: Training, plan: Plan, device: Device) -> Time:
    """Return the time of an update, by the slowest stage.

    Each of m microbatches takes ``layers / p`` blocks and the ends; p stages take ``m + p - 1`` times
    that.  Where processes share cores, everything takes ``processes / cores`` times as long.
    """
    check(model, training, plan)
    micro = _microbatch(training, plan)
    layers, batches = model.config.num_layers // plan.pipeline, _microbatches(training, plan)
    forward, backward = _block_seconds(model, micro, plan, device)
    ends = _seconds(costs.end_ops(model, micro), device, both=True)
    stage = layers * (forward + backward) + ends
    waits, sent = {}, {}
    for name, (wait, size) in {
        "chunk": _chunk_exchange(model, micro, plan, device),
        "tensor": _tensor_exchange(model, micro, plan, device),
        "sharded": _gathering(model, training, plan, device, (forward, backward)),
    }.items():
        waits[name], sent[name] = layers * batches * wait, layers * batches * size
    waits["data"], sent["data"] = _gradients(model, training, plan, device, layers * backward)
    boundary = micro.tokens * model.config.model_dim * micro.bytes_each
    crossings = 2 * (plan.pipeline > 1)
    far = device.link(plan.replicas * plan.tensor * plan.pipeline)
    waits["pipeline"] = crossings * (batches + plan.pipeline - 1) * far.send(boundary)
    sent["pipeline"] = float(crossings * batches * boundary)
    parameters = _stage_parameters(model, plan) / (plan.replicas if plan.sharded else 1)
    update = _seconds([costs.optimizer_op(parameters)], device, both=True)
    turns = device.sharing(plan.devices)
    return Time(
        turns * (batches * stage + update),
        {name: turns * wait for name, wait in waits.items()},
        turns * (plan.pipeline - 1) * (stage + _per_batch(waits, batches)),
        sent,
    )


def _per_batch(waits: dict[str, float], batches: int) -> float:
    return sum(waits[name] for name in ("chunk", "tensor", "sharded")) / batches


def fastest(model: Model, training: Training, plan: Plan, device: Device) -> Plan:
    """Return the plan without recomputing if its activations fit in the device's memory, else with."""
    plain = replace(plan, checkpoint=False)
    fits = memory(model, training, plain).total <= device.memory
    return plain if fits else replace(plan, checkpoint=True)


def _microbatch(training: Training, plan: Plan) -> Microbatch:
    """Return what a device computes at once: its pieces of sequences."""
    length = training.context // plan.chunk
    return Microbatch(training.together, length, training.precision.bytes_each, plan.tensor)


def _microbatches(training: Training, plan: Plan) -> int:
    return training.sequences // (plan.data * training.together)


def _seconds(ops: Iterable[Op], device: Device, both: bool) -> float:
    return sum(device.seconds(op.kind, op.both if both else op.forward) for op in ops)


def _block_seconds(
    model: Model, micro: Microbatch, plan: Plan, device: Device
) -> tuple[float, float]:
    """Return the seconds of a block forward and backward, what is recomputed included."""
    ops = costs.block_ops(model.config, micro)
    if plan.chunk > 1:
        ops += costs.chunk_parallel_ops(model.config, micro)
    forward, both = (_seconds(ops, device, both) for both in (False, True))
    return forward, both - forward + forward * plan.checkpoint


def _stage_parameters(model: Model, plan: Plan) -> int:
    """Return the parameters of a device of the last stage."""
    embedding, output = costs.end_parameters(model, plan.tensor)
    layers = model.config.num_layers // plan.pipeline
    blocks = layers * costs.block_parameters(model.config, plan.tensor)
    return blocks + output + embedding * (plan.pipeline == 1)


def _hidden(seconds: float, behind: float, device: Device) -> float:
    """Return how much of a message is waited for while the device has so much else to compute."""
    return max(0.0, seconds - behind) if device.overlaps else seconds


def state_bytes(model: Model, micro: Microbatch) -> int:
    """Return the bytes of CEMA's state (B, D, N) that a device adds to what is gathered in a block."""
    width = model.config.model_dim // micro.tensor
    return micro.sequences * width * model.config.cema_ndim * _STATE


def moment_bytes(model: Model, micro: Microbatch) -> int:
    """Return the bytes of timestep norm's moments (B, G, 3) that a device adds."""
    return micro.sequences * model.config.norm_groups // micro.tensor * _MOMENTS


def _chunk_exchange(
    model: Model, micro: Microbatch, plan: Plan, device: Device
) -> tuple[float, float]:
    """Return seconds waited and bytes sent for a block by each process of a chunk-parallel group.

    Forward, moments and states of R processes are gathered; backward, the gradients of what was gathered
    are summed, R times as large.  Only the state's exchange overlaps, with the projection of the values.
    """
    if plan.chunk == 1:
        return 0.0, 0.0
    link = device.link(plan.tensor * plan.chunk)
    values = costs.value_projection(model.config, micro)
    forward, both = (_seconds([values], device, both) for both in (False, True))
    waited = sent = 0.0
    for own, behind in ((moment_bytes(model, micro), 0.0), (state_bytes(model, micro), 1.0)):
        gather = link.all_gather(own * plan.chunk, plan.chunk)
        reduce = link.all_reduce(own * plan.chunk, plan.chunk)
        times = 1 + plan.checkpoint
        waited += times * _hidden(gather, behind * forward, device)
        waited += _hidden(reduce, behind * (both - forward), device)
        sent += (times + 2) * (plan.chunk - 1) * own
    return waited, sent


def _tensor_exchange(
    model: Model, micro: Microbatch, plan: Plan, device: Device
) -> tuple[float, float]:
    """Return seconds waited and bytes sent for a block by each of t devices that share its layers.

    Forward, the outputs of timestep norm and of CEMA's norm are gathered, those of attention and of the
    feed-forward layer summed.  Backward, the gradients of what was gathered are scattered, that of the
    feed-forward layer's input is summed, and that of timestep norm's gathered.  Nothing overlaps.
    """
    if plan.tensor == 1:
        return 0.0, 0.0
    link, t = device.link(plan.tensor), plan.tensor
    width = micro.tokens * model.config.model_dim * micro.bytes_each
    gather, reduce = link.all_gather(width, t), link.all_reduce(width, t)
    forward, backward = 2 * gather + 2 * reduce, 3 * gather + reduce
    units = 6 * (1 + plan.checkpoint) + 5
    return forward * (1 + plan.checkpoint) + backward, units * (t - 1) / t * width


def _gathering(
    model: Model, training: Training, plan: Plan, device: Device, block: tuple[float, float]
) -> tuple[float, float]:
    """Return seconds waited and bytes sent for a block whose parameters are divided.

    They are gathered for the forward pass and again for the backward, and their gradients scattered,
    for each microbatch, while the device computes other blocks.
    """
    if not plan.sharded:
        return 0.0, 0.0
    link = device.link(plan.tensor * plan.replicas)
    size = costs.block_parameters(model.config, plan.tensor) * training.precision.bytes_each
    gather = link.all_gather(size, plan.replicas)
    wait = _hidden(gather, block[0], device) + _hidden(2 * gather, block[1], device)
    return wait, 3 * (plan.replicas - 1) / plan.replicas * size


def _gradients(
    model: Model, training: Training, plan: Plan, device: Device, backward: float
) -> tuple[float, float]:
    """Return seconds waited and bytes sent for an update by plain data parallelism.

    All gradients are summed once, while the last microbatch's backward pass computes.
    """
    if plan.sharded or plan.replicas == 1:
        return 0.0, 0.0
    link: Link = device.link(plan.tensor * plan.replicas)
    size = _stage_parameters(model, plan) * training.precision.bytes_each
    seconds = link.all_reduce(size, plan.replicas)
    sent = 2 * (plan.replicas - 1) / plan.replicas * size
    return _hidden(seconds, backward, device), sent
