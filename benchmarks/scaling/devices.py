"""Rates of a device and of the links between devices: published, or measured on this machine.

GPUs have their published peaks, so that what is computed from them is the least time, which no run will
reach.  Measured rates come from :mod:`benchmarks.scaling.processes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.limits import Rates, Work


@dataclass(frozen=True)
class Link:
    """What connects the devices of a group: bytes a second that one device sends, seconds a message."""

    rate: float
    latency: float

    def all_gather(self, gathered: float, devices: int) -> float:
        """Return ``(R - 1) (gathered / R / rate + latency)``: a ring; also of a reduce-scatter."""
        return (devices - 1) * (gathered / devices / self.rate + self.latency)

    def all_reduce(self, size: float, devices: int) -> float:
        """Return the seconds of a reduce-scatter and an all-gather."""
        return 2 * self.all_gather(size, devices)

    def send(self, size: float) -> float:
        """Return the seconds from one device to another."""
        return size / self.rate + self.latency


@dataclass(frozen=True)
class Device:
    """One device of many equal ones.

    ``rates``: of products and of copies.  ``slowdown``: kind of work -> time over the least time at
    these rates, as measured or counted; 1 if it is not there.  ``per_node`` devices are connected by
    ``near``, others by ``far``.  ``overlaps``: messages travel while the device computes.  ``cores``:
    processes share so many of them; None if each has a device of its own.
    """

    name: str
    rates: Rates
    memory: float
    near: Link
    far: Link
    per_node: int
    slowdown: Mapping[str, float] = field(default_factory=dict)
    overlaps: bool = True
    cores: int | None = None

    def seconds(self, kind: str, work: Work) -> float:
        """Return the time for ``work`` of a kind: of its operations or its bytes, the longer."""
        return self.slowdown.get(kind, 1.0) * self.rates.seconds(work)

    def link(self, span: int) -> Link:
        """Return what connects a group that stretches over ``span`` consecutive devices."""
        return self.near if span <= self.per_node else self.far

    def sharing(self, processes: int) -> float:
        """Return how many processes take turns on a core: 1 if there are enough of them."""
        return max(1.0, processes / self.cores) if self.cores else 1.0


# Bytes that the kernels move over the least possible, forward and backward: counted in Triton's
# interpreter, benchmarks/RESULTS.md.
_TRAFFIC = {"cema": 1.72, "timestep_norm": 1.60}
_LATENCY = 5e-6  # of a message, not published: an assumption


def _gpu(
    name: str, operations: float, copy: float, memory: float, near: float, far: float
) -> Device:
    near_link, far_link = (Link(rate, _LATENCY) for rate in (near, far))
    return Device(name, Rates(operations, copy), memory, near_link, far_link, 8, _TRAFFIC)


# NVIDIA's data sheets of the A100 80GB SXM, H100 SXM5 and H200 SXM: dense bf16 operations, bytes of
# memory a second, bytes of memory, bytes that NVLink carries a second in each direction; and of the DGX
# systems with them: one port of 200 or 400 Gbit/s for each GPU.
GPUS = {
    "a100": _gpu("A100 80GB", 312e12, 2.039e12, 80e9, 300e9, 25e9),
    "h100": _gpu("H100 SXM", 989e12, 3.35e12, 80e9, 450e9, 50e9),
    "h200": _gpu("H200 SXM", 989e12, 4.8e12, 141e9, 450e9, 50e9),
}
