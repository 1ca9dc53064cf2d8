"""The language model's speed: training beside a Transformer, over lengths, and decoding far into a text.

    python -m benchmarks.lm_step train lengths decode
    python -m benchmarks.lm_step train --threads 1 --repeats 7

Prints one JSON line per measurement, of medians; ``paper`` prints its bars before.

train    One training step of both models in turn, in one process, so that the ratio holds on a machine
         whose speed varies.  The Transformer is Llama-style, with as many blocks and parameters, and
         attends to all positions before.
paper    Figure 4 of arXiv 2404.08801, as bars: training tokens a second of both models on sequences of
         4K and 32K, 32K tokens a step, with MFU (see ``benchmarks/model_flops.py``).  ``--size`` names a
         preset; by default the largest that fits the GPU, on a CPU the small model of the other
         measurements.  On a GPU weights are bfloat16.  Activations are checkpointed.
lengths  Megalodon's time per token of a training step on equally many tokens, as one long sequence or
         several shorter ones; the lengths in turn.  Activations are checkpointed, so that so many
         tokens fit in memory.
decode   Tokens a second, one by one, after 1K and after 1M tokens (read in pieces; both stand at the
         same step of their chunk): by ordinary calls with a state, and by a ``Decoder``.  Then the same
         with a batch of ``beams`` rows that are drawn from the rows before each step, as in a beam
         search; a step of the batch counts as so many tokens.  Rates are of the median step and, since
         other work on the machine only adds time, of the fastest.  Last, the bytes of the two states.

Dropout is off everywhere: with it, PyTorch's attention leaves its fast path.
"""

import argparse
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.limits import matrix_probe
from benchmarks.timing import in_turn, wait
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.decoding import Decoder
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.presets import LM_PRESETS
from megalodon_tasks.models.state import StackState, map_state, reorder_state
from megalodon_tasks.models.transformer import TransformerConfig, TransformerStack
from megalodon_tasks.training.model_flops import training_flops


@dataclass(frozen=True)
class Sizes:
    """What is measured.  ``tokens``: of one step of ``lengths``, a multiple of each of them."""

    layers: int = 4
    dim: int = 256
    z_dim: int = 128
    value_dim: int = 512
    ffn_dim: int = 512
    chunk: int = 512
    vocab: int = 256
    length: int = 8192
    lengths: tuple[int, ...] = (2048, 8192, 32768, 131072)
    tokens: int = 131072
    near: int = 1024
    far: int = 1_000_000
    piece: int = 8192
    decoded: int = 64
    beams: int = 8
    paper_size: str | None = None
    paper_lengths: tuple[int, ...] = (4096, 32768)

    @property
    def config(self) -> MegalodonConfig:
        """The model, with norm groups of 32 features as in the released ones."""
        return MegalodonConfig(
            model_dim=self.dim,
            num_layers=self.layers,
            z_dim=self.z_dim,
            value_dim=self.value_dim,
            ffn_hidden_dim=self.ffn_dim,
            chunk_size=self.chunk,
            norm_num_groups=self.dim // 32,
            causal=True,
        )


# Bytes that both models take in training: weights, gradients and two moments in bfloat16, and half as
# much again for activations.
PAPER_SIZES = {"7b": 24 * 7.4e9, "1.3b": 24 * 1.4e9, "200m": 24 * 0.3e9}

TINY = Sizes(1, 32, 8, 32, 32, 8, 16, 32, (16, 32), 64, 16, 200, 64, 2, 3, None, (8, 16))


def transformer(config: MegalodonConfig, vocab: int) -> CausalLM:
    """Build a Llama-style Transformer with as many blocks and parameters, and full attention."""
    values = {field.name: getattr(config, field.name) for field in fields(MegalodonConfig)}
    config = TransformerConfig(**values | {"chunk_size": None})
    return CausalLM(config, vocab, share_emb=True, stack_type=TransformerStack)


class TrainStep:
    """One optimizer step of one model on one fixed batch of random tokens, timed."""

    def __init__(self, model: CausalLM, batch: int, length: int) -> None:
        device = next(model.parameters()).device
        self.model = model.train()
        self.tokens = torch.randint(model.vocab_size, (batch, length + 1), device=device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.seconds: list[float] = []

    def __call__(self) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.nll(self.tokens[:, :-1], self.tokens[:, 1:])[0].mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        wait(self.tokens.device)
        self.seconds.append(time.perf_counter() - start)

    @property
    def median(self) -> float:
        """Seconds of a step, the first one (a warm-up) left out."""
        return statistics.median(self.seconds[1:])


def _in_turn(steps: list[TrainStep], repeats: int, name: str) -> None:
    for _ in tqdm(range(repeats + 1), desc=name, unit="round", leave=False):
        for step in steps:
            step()


def train(sizes: Sizes, repeats: int, device: torch.device) -> dict[str, object]:
    """Tokens a second of both models at one length, and their ratio."""
    models = (
        CausalLM(sizes.config, sizes.vocab, share_emb=True),
        transformer(sizes.config, sizes.vocab),
    )
    ours, theirs = (TrainStep(m.to(device), 1, sizes.length) for m in models)
    _in_turn([ours, theirs], repeats, "train")
    return {
        "length": sizes.length,
        "tokens_per_s": round(sizes.length / ours.median),
        "transformer_tokens_per_s": round(sizes.length / theirs.median),
        "ratio": round(theirs.median / ours.median, 2),
    }


def lengths(sizes: Sizes, repeats: int, device: torch.device) -> dict[str, object]:
    """Microseconds per token of a training step at each length, and the largest over the smallest."""
    config = replace(sizes.config, checkpoint_activations=True)
    lm = CausalLM(config, sizes.vocab, share_emb=True).to(device)
    steps = [TrainStep(lm, sizes.tokens // n, n) for n in sizes.lengths]
    _in_turn(steps, repeats, "lengths")
    per_token = [step.median / sizes.tokens * 1e6 for step in steps]
    return {
        "tokens": sizes.tokens,
        "us_per_token": {n: round(t, 2) for n, t in zip(sizes.lengths, per_token, strict=True)},
        "spread": round(max(per_token) / min(per_token), 3),
    }


def paper_model(
    size: str | None, sizes: Sizes, device: torch.device
) -> tuple[str, MegalodonConfig, int]:
    """Return the configuration and vocabulary of ``size``, by default the largest that fits."""
    if size is None:
        memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        fitting = (name for name, least in PAPER_SIZES.items() if least < memory)
        size = next(fitting, "small")
    if size == "small":
        return size, sizes.config, sizes.vocab
    names = {field.name for field in fields(MegalodonConfig)}
    preset = {k: v for k, v in LM_PRESETS[f"megalodon_lm_{size}"].items() if k in names}
    return size, MegalodonConfig(**preset, causal=True), 32_000


def paper(sizes: Sizes, repeats: int, device: torch.device) -> dict[str, object]:
    """Tokens a second and MFU of both models at each length, in turn."""
    size, config, vocab = paper_model(sizes.paper_size, sizes, device)
    config = replace(config, checkpoint_activations=True)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokens = max(sizes.paper_lengths)
    models = {
        "Megalodon": CausalLM(config, vocab, share_emb=True),
        "Llama-style": transformer(config, vocab),
    }
    models = {name: lm.to(device, dtype) for name, lm in models.items()}
    steps = {
        (length, name): TrainStep(lm, tokens // length, length)
        for length in sizes.paper_lengths
        for name, lm in models.items()
    }
    _in_turn(list(steps.values()), repeats, "paper")
    product = matrix_probe(device, dtype)
    rate = product.amount / min(in_turn({"product": product.run}, 5, device)["product"])
    bars = []
    for (length, name), step in steps.items():
        per_second = tokens / step.median
        mfu = training_flops(models[name], length) * per_second / rate
        speed = {"tokens_per_s": round(per_second), "mfu": float(f"{mfu:.3g}")}
        bars.append({"length": length, "model": name} | speed)
    print("\n".join(drawn(bars)))
    return {"size": size, "matmul_gflops": round(rate / 1e9), "bars": bars}


def drawn(bars: list[dict[str, Any]]) -> list[str]:
    """Return the bars of figure 4 as lines of text."""
    most = max(bar["tokens_per_s"] for bar in bars)
    return [
        f"{bar['length']:>6} {bar['model']:12} {'#' * round(40 * bar['tokens_per_s'] / most):40} "
        f"{bar['tokens_per_s']:>9,} tokens/s  MFU {100 * bar['mfu']:.1f} %"
        for bar in bars
    ]


def state_bytes(state: StackState) -> int:
    """The memory that a state takes."""
    sizes: list[int] = []
    map_state(state, lambda tensor: sizes.append(tensor.nbytes) or tensor)
    return sum(sizes)


@torch.inference_mode()
def read(lm: CausalLM, sizes: Sizes, length: int, device: torch.device) -> StackState:
    """The state after ``length`` random tokens, read in pieces."""
    state = None
    for start in tqdm(range(0, length, sizes.piece), desc=f"reading {length}", leave=False):
        piece = min(sizes.piece, length - start)
        _, state = lm.features(torch.randint(sizes.vocab, (1, piece), device=device), state)
    return state


class Beams:
    """A batch whose rows are drawn from the rows before each step, by one of the two ways to decode."""

    def __init__(self, lm: CausalLM, state: StackState, sizes: Sizes, prepared: bool) -> None:
        self.lm, self.size = lm, sizes.beams
        device = state.norm.count.device
        self.tokens = torch.zeros(self.size, 1, dtype=torch.int64, device=device)
        self.state = reorder_state(state, torch.zeros(self.size, dtype=torch.int64, device=device))
        self.decoder = Decoder(lm, self.state) if prepared else None

    def __call__(self) -> None:
        order = torch.randint(self.size, (self.size,), device=self.tokens.device)
        if self.decoder is None:
            self.lm(self.tokens, reorder_state(self.state, order))
        else:
            self.decoder.reorder(order)
            self.decoder(self.tokens)


@torch.inference_mode()
def decode(sizes: Sizes, repeats: int, device: torch.device) -> dict[str, object]:
    """Tokens a second near and far, ordinary and prepared, in turn, with the bytes of the state."""
    lm = CausalLM(sizes.config, sizes.vocab, share_emb=True).to(device).eval()
    near = sizes.near + sizes.far % sizes.chunk  # at the same step of its chunk as the far one
    states = [read(lm, sizes, length, device) for length in (near, sizes.far)]
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    beams = f"{sizes.beams} beams"
    steps = {
        "ordinary": [functools.partial(lm, token, state) for state in states],
        "prepared": [functools.partial(Decoder(lm, state), token) for state in states],
        f"ordinary, {beams}": [Beams(lm, state, sizes, prepared=False) for state in states],
        f"prepared, {beams}": [Beams(lm, state, sizes, prepared=True) for state in states],
    }
    seconds = {name: ([], []) for name in steps}
    for _ in range(repeats * sizes.decoded):
        for name, pair in steps.items():
            for step, taken in zip(pair, seconds[name], strict=True):
                start = time.perf_counter()
                step()
                wait(device)
                taken.append(time.perf_counter() - start)
    return {
        "positions": [near, sizes.far],
        "tokens_per_s": _rates(seconds, statistics.median, sizes),
        "fastest_tokens_per_s": _rates(seconds, min, sizes),
        "state_bytes": list(map(state_bytes, states)),
    }


def _rates(
    seconds: dict[str, tuple[list[float], ...]],
    summary: Callable[[list[float]], float],
    sizes: Sizes,
) -> dict[str, list[int]]:
    """Tokens a second near and far; a step of a batch of beams counts as so many tokens."""
    rows = {name: sizes.beams if name.endswith("beams") else 1 for name in seconds}
    return {
        name: [round(rows[name] / summary(taken)) for taken in pair]
        for name, pair in seconds.items()
    }


MEASUREMENTS = {"train": train, "paper": paper, "lengths": lengths, "decode": decode}


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=MEASUREMENTS, metavar="WHAT")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--length", type=int, help="of train (default: 8192)")
    parser.add_argument(
        "--size", choices=["small", *PAPER_SIZES], help="of paper (default: the largest that fits)"
    )
    parser.add_argument("--lengths", type=int, nargs="+", help="of paper (default: 4096 32768)")
    parser.add_argument("--far", type=int, help="later position of decode (default: 1000000)")
    parser.add_argument("--tiny", action="store_true", help="only see whether it runs")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    sizes = TINY if args.tiny else Sizes()
    sizes = replace(sizes, length=args.length) if args.length else sizes
    sizes = replace(sizes, far=args.far) if args.far else sizes
    sizes = replace(sizes, paper_size=args.size)
    sizes = replace(sizes, paper_lengths=tuple(args.lengths)) if args.lengths else sizes
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    for name in args.what:
        torch.manual_seed(0)
        found = {"measured": name} | MEASUREMENTS[name](sizes, args.repeats, device)
        run = {"repeats": args.repeats, "threads": args.threads, "device": machine}
        print(json.dumps(found | run | {"torch": torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
