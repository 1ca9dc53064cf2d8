"""The language model's speed: training beside a Transformer, over lengths, and decoding far into a text.

    python -m benchmarks.lm_step train lengths decode
    python -m benchmarks.lm_step train --threads 1 --repeats 7

Prints one JSON line per measurement, of medians.

train    One training step of both models in turn, in one process, so that the ratio holds on a machine
         whose speed varies.  The Transformer is a decoder of equal depth and width: pre-norm, 4 heads,
         ``F.scaled_dot_product_attention`` over all positions before, feed-forward width 4 d.
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
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.decoding import Decoder
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.state import StackState, map_state, reorder_state

TRANSFORMER_HEADS = 4


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


TINY = Sizes(1, 32, 8, 32, 32, 8, 16, 32, (16, 32), 64, 16, 200, 64, 2, 3)


class TransformerBlock(nn.Module):
    """Pre-norm attention to all earlier positions, then a feed-forward layer of width 4 d."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.ffn_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, L, D)."""
        qkv = self.qkv(self.norm(x_BLD)).unflatten(-1, (3, TRANSFORMER_HEADS, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        y_BHLV = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BLD = x_BLD + self.out(y_BHLV.transpose(1, 2).flatten(2))
        return x_BLD + self.ffn(self.ffn_norm(x_BLD))


class Transformer(nn.Module):
    """A decoder-only language model with learned positions and one matrix in and out."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocab, sizes.dim)
        self.position = nn.Parameter(torch.randn(sizes.length, sizes.dim) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(sizes.dim) for _ in range(sizes.layers)))
        self.norm = nn.LayerNorm(sizes.dim)

    def nll(self, tokens_BL: torch.Tensor, targets_BL: torch.Tensor) -> tuple[torch.Tensor, None]:
        """As :meth:`CausalLM.nll`, without a state."""
        x_BLD = self.embedding(tokens_BL) + self.position[: tokens_BL.shape[1]]
        logits = F.linear(self.norm(self.blocks(x_BLD)), self.embedding.weight).transpose(1, 2)
        return F.cross_entropy(logits, targets_BL, reduction="none"), None


class TrainStep:
    """One optimizer step of one model on one fixed batch of random tokens, timed."""

    def __init__(self, model: nn.Module, sizes: Sizes, batch: int, length: int) -> None:
        device = next(model.parameters()).device
        self.model = model.train()
        self.tokens = torch.randint(sizes.vocab, (batch, length + 1), device=device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.seconds: list[float] = []

    def __call__(self) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.nll(self.tokens[:, :-1], self.tokens[:, 1:])[0].mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        _wait(self.tokens)
        self.seconds.append(time.perf_counter() - start)

    @property
    def median(self) -> float:
        """Seconds of a step, the first one (a warm-up) left out."""
        return statistics.median(self.seconds[1:])


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def _in_turn(steps: list[TrainStep], repeats: int, name: str) -> None:
    for _ in tqdm(range(repeats + 1), desc=name, unit="round", leave=False):
        for step in steps:
            step()


def train(sizes: Sizes, repeats: int, device: torch.device) -> dict[str, object]:
    """Tokens a second of both models at one length, and their ratio."""
    models = CausalLM(sizes.config, sizes.vocab, share_emb=True), Transformer(sizes)
    ours, theirs = (TrainStep(m.to(device), sizes, 1, sizes.length) for m in models)
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
    steps = [TrainStep(lm, sizes, sizes.tokens // n, n) for n in sizes.lengths]
    _in_turn(steps, repeats, "lengths")
    per_token = [step.median / sizes.tokens * 1e6 for step in steps]
    return {
        "tokens": sizes.tokens,
        "us_per_token": {n: round(t, 2) for n, t in zip(sizes.lengths, per_token, strict=True)},
        "spread": round(max(per_token) / min(per_token), 3),
    }


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
                _wait(token)
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


MEASUREMENTS = {"train": train, "lengths": lengths, "decode": decode}


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=MEASUREMENTS, metavar="WHAT")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--length", type=int, help="of train (default: 8192)")
    parser.add_argument("--far", type=int, help="later position of decode (default: 1000000)")
    parser.add_argument("--tiny", action="store_true", help="only see whether it runs")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    sizes = TINY if args.tiny else Sizes()
    sizes = replace(sizes, length=args.length) if args.length else sizes
    sizes = replace(sizes, far=args.far) if args.far else sizes
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    for name in args.what:
        torch.manual_seed(0)
        found = {"measured": name} | MEASUREMENTS[name](sizes, args.repeats, device)
        run = {"repeats": args.repeats, "threads": args.threads, "device": machine}
        print(json.dumps(found | run | {"torch": torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
