"""A training step of the models of raw speech and ImageNet at full size: time, and memory.

    python -m benchmarks.speech_step                       # sc_raw: base, length 16,000, batch 2
    python -m benchmarks.speech_step imagenet --repeats 3  # base, 224 x 224, batch 4

Beside it in the same process, one step of each in turn, the same model with the same parameters, whose
CEMA is computed as the authors do it without their CUDA kernels (``authors_fft``).  Prints one JSON line
per case: seconds of both (medians) and their ratio, what autograd saves in a forward pass and what a
step holds at its peak beyond the model, in megabytes.
"""

import argparse
import copy
import json
import platform
import statistics
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from benchmarks.authors_fft import authors_cema
from benchmarks.memory import peak_bytes, saved_bytes
from benchmarks.train_step import TrainStep
from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.cema import ComplexEMA
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS


@dataclass(frozen=True)
class Case:
    """What is trained: a preset, what it reads, and the shape of a batch of it."""

    preset: str
    inputs: ClassifierInputs
    shape: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Steps of the sequence that the blocks see."""
        if self.inputs.kind == "patches":
            return self.shape[2] * self.shape[3] // self.inputs.patch_size**2
        return self.shape[1]


CASES = {
    "sc_raw": Case("megalodon_sc_raw_base", ClassifierInputs("waveform", 10), (2, 16_000)),
    "imagenet": Case(
        "megalodon_imagenet_base", ClassifierInputs("patches", 1000), (4, 3, 224, 224)
    ),
}
# Enough to see that everything runs.
TINY_SHAPES = {"sc_raw": (2, 200), "imagenet": (2, 3, 32, 32)}
TINY_SIZES = {"model_dim": 12, "value_dim": 16, "z_dim": 8, "ffn_hidden_dim": 16, "num_layers": 2}


class AuthorsEMA(ComplexEMA):
    """The layer with the authors' computation; it takes the place of one that has its parameters."""

    def forward(
        self,
        x_BLD: torch.Tensor,
        padding_mask_BL: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """(B, L, D) -> (B, L, D); without a state."""
        parameters = (self.alpha, self.delta, self.theta, self.gamma, self.omega)
        return authors_cema(
            x_BLD, *parameters, padding_mask=padding_mask_BL, bidirectional=self.bidirectional
        )


def with_authors_cema(model: SequenceClassifier) -> SequenceClassifier:
    """A copy of ``model`` with the authors' CEMA."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, ComplexEMA):
            module.__class__ = AuthorsEMA
    return model


def tiny(name: str) -> tuple[Case, dict[str, int]]:
    """The case of this name at a size that says nothing about speed, and the sizes of its model."""
    case, shape = CASES[name], TINY_SHAPES[name]
    inputs = replace(case.inputs, image_size=shape[2:] or case.inputs.image_size)
    return replace(case, inputs=inputs, shape=shape), TINY_SIZES | {"norm_num_groups": 0}


def build(case: Case, sizes: dict[str, int]) -> SequenceClassifier:
    """The model of a case, with ``sizes`` in place of the preset's."""
    config = MegalodonConfig(**(CLASSIFIER_PRESETS[case.preset] | sizes))
    return SequenceClassifier(config, case.inputs)


def measure(
    case: Case, sizes: dict[str, int], repeats: int, device: torch.device
) -> dict[str, object]:
    """Time ``repeats`` steps of both models in turn, after one step each, then look at their memory."""
    torch.manual_seed(0)
    model = build(case, sizes).to(device)
    batch = (
        {"inputs": torch.randn(case.shape, device=device)},
        torch.randint(case.inputs.num_classes, case.shape[:1], device=device),
    )
    steps = {"ours": TrainStep(model, batch), "authors": TrainStep(with_authors_cema(model), batch)}
    for _ in tqdm(range(repeats + 1), desc=case.preset, unit="pair of steps", leave=False):
        for step in steps.values():
            step()
    seconds = {name: statistics.median(step.seconds[1:]) for name, step in steps.items()}
    memory = {name: _megabytes(step, device) for name, step in steps.items()}
    return {
        "batch": case.shape[0],
        "length": case.steps,
        "params": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds["ours"], 4),
        "authors_seconds": round(seconds["authors"], 4),
        "ratio": round(seconds["authors"] / seconds["ours"], 2),
        "memory_mb": memory["ours"],
        "authors_memory_mb": memory["authors"],
    }


def _megabytes(step: TrainStep, device: torch.device) -> dict[str, float | None]:
    """What a forward pass saves, and the peak of a whole step (None where it cannot be seen)."""
    step.optimizer.zero_grad(set_to_none=True)
    saved = saved_bytes(lambda: step.model(**step.net_input), step.model.parameters())
    peak = peak_bytes(step, device)
    return {
        "saved": round(saved / 2**20, 1),
        "peak": None if peak is None else round(peak / 2**20, 1),
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "cases", nargs="*", default=["sc_raw"], metavar="CASE", help=" or ".join(CASES)
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each model")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tiny", action="store_true", help="only see whether it runs")
    args = parser.parse_args(arguments)
    unknown = set(args.cases) - CASES.keys()
    if unknown:
        parser.error(f"there is no case {', '.join(sorted(unknown))}; choose of {', '.join(CASES)}")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    run = {"repeats": args.repeats, "threads": args.threads, "device": machine}
    for name in args.cases:
        case, sizes = tiny(name) if args.tiny else (CASES[name], {})
        found = measure(case, sizes, args.repeats, device)
        print(json.dumps({"case": name, **found, **run, "torch": torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
