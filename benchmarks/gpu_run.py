"""What the sections of ``benchmarks.gpu_check`` share: where they run, for how long, and records."""

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

Record = dict[str, object]
_Size = TypeVar("_Size", int, tuple)


@dataclass(frozen=True)
class Run:
    """The device of a section and its deadline, in seconds of ``time.monotonic``."""

    device: torch.device
    deadline: float

    @property
    def tiny(self) -> bool:
        """Whether kernels are interpreted on a CPU: then sizes are tiny and nothing is timed."""
        return self.device.type == "cpu"

    def size(self, full: _Size, tiny: _Size) -> _Size:
        """Return the size for a GPU, or the one for the interpreter."""
        return tiny if self.tiny else full

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if not self.tiny:
            torch.cuda.synchronize(self.device)

    def randn(self, *shape: int, seed: int = 0) -> torch.Tensor:
        """Draw normal float32 numbers from a generator of their own."""
        draw = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*shape, generator=draw, device=self.device)

    def mask(self, batch: int, length: int) -> torch.Tensor:
        """Draw padding of about a fifth of all steps, and of the first third of the first row."""
        draw = torch.Generator(self.device).manual_seed(3)
        mask = torch.rand(batch, length, generator=draw, device=self.device) < 0.2
        mask[0, : length // 3] = True
        return mask

    def check(self, case: str, function: Callable[[], Record]) -> Record:
        """Call ``function``, which returns a record with ``ok``; an exception is a failure."""
        if time.monotonic() > self.deadline:
            return {"case": case, "ok": None, "skipped": "no time left"}
        start = time.monotonic()
        try:
            record = function()
            self.wait()
        # A failure in one case must not keep the others from running.
        except Exception as error:  # noqa: BLE001
            where = traceback.format_exc()[-600:]
            record = {
                "ok": False,
                "error": f"{type(error).__name__}: {error}"[:600],
                "where": where,
            }
        if not self.tiny:
            torch.cuda.empty_cache()
        return {"case": case, **record, "seconds": round(time.monotonic() - start, 2)}

    def checks(self, cases: dict[str, Callable[[], Record]]) -> Iterator[Record]:
        """Yield the record of each case."""
        for case, function in cases.items():
            yield self.check(case, function)


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of ``truth``, in double precision."""
    wide = torch.complex128 if truth.is_complex() else torch.float64
    found, truth = found.detach().to(wide), truth.detach().to(wide)
    return (found - truth).norm().item() / (truth.norm().item() or 1.0)
