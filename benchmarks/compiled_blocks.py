"""What ``model.compile_blocks`` gains: a training step with and without it, in turn, in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.compiled_blocks           # both cases
    OMP_NUM_THREADS=1 python -m benchmarks.compiled_blocks listops

Prints one JSON line per case: the CPU seconds of the fastest step of each (forward and backward pass),
their ratio, and the wall-clock seconds of the first compiled step, which compiles.
"""

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable

import torch
from torch import nn

from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS

VOCABULARY = 256
TINY = {"model_dim": 12, "value_dim": 16, "z_dim": 8, "ffn_hidden_dim": 16, "num_layers": 2}


def listops(changes: dict[str, object]) -> nn.Module:
    """Build the ListOps preset with attention in chunks."""
    sizes = CLASSIFIER_PRESETS["megalodon_lra_listops"] | {"chunk_size": 128} | changes
    inputs = ClassifierInputs("tokens", num_classes=10, vocab_size=VOCABULARY)
    return SequenceClassifier(MegalodonConfig(**sizes), inputs)


def language_model(changes: dict[str, object]) -> nn.Module:
    """Build a causal model of six layers."""
    sizes = {"model_dim": 256, "num_layers": 6, "z_dim": 64, "value_dim": 512, "chunk_size": 128}
    sizes |= {"ffn_hidden_dim": 640, "norm_num_groups": 4, "causal": True}
    return CausalLM(MegalodonConfig(**sizes | changes), VOCABULARY)


CASES = {"listops": (listops, (4, 1024)), "language_model": (language_model, (2, 1024))}


def step_of(model: nn.Module, tokens_BL: torch.Tensor) -> Callable[[], None]:
    """Return a function that runs a forward and backward pass."""

    def step() -> None:
        output = model(tokens_BL)
        (output[0] if isinstance(output, tuple) else output).square().mean().backward()
        model.zero_grad()

    return step


def measure(name: str, repeats: int, changes: dict[str, object]) -> dict[str, object]:
    """Compare the steps of case ``name``."""
    build, shape = CASES[name]
    torch.manual_seed(0)
    model = build(changes).train()
    compiled = copy.deepcopy(model)
    for module in compiled.modules():
        if hasattr(module, "compile_blocks"):
            module.compile_blocks = True
    tokens_BL = torch.randint(1, VOCABULARY, shape)
    steps = [step_of(m, tokens_BL) for m in (model, compiled)]
    steps[0]()
    start = time.perf_counter()
    steps[1]()
    first = time.perf_counter() - start
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for step, times in zip(steps, seconds, strict=True):
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
    eager, fast = map(min, seconds)
    return {
        "case": name,
        "shape": shape,
        "threads": torch.get_num_threads(),
        "eager_s": round(eager, 4),
        "compiled_s": round(fast, 4),
        "ratio": round(eager / fast, 3),
        "first_step_s": round(first, 1),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the cases."""
    parser = argparse.ArgumentParser(description="Measure compiled blocks.")
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--repeats", type=int, default=7, help="steps of each (default: 7)")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing about speed")
    given = parser.parse_args(arguments)
    for name in given.cases:
        if name not in CASES:
            parser.error(f"there is no case {name}; choose of {', '.join(CASES)}")
        print(json.dumps(measure(name, given.repeats, TINY if given.tiny else {})), flush=True)


if __name__ == "__main__":
    main()
