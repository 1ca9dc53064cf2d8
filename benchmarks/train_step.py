"""Training speed of the recipes' models beside a Transformer encoder of equal depth and width.

    python -m benchmarks.train_step listops            # or: all, or several names
    python -m benchmarks.train_step text --threads 2 --repeats 5

Prints one JSON line per task.  Both models take the same batch, embedding, pooling and optimizer and run
in one process in turn (A B B A ...), so that the ratio holds on a machine whose speed varies.  The
Transformer is torch.nn.TransformerEncoder: 4 heads, feed-forward width 2 d, full attention.  Dropout is
off in both (with it, PyTorch's attention leaves its fast path and the ratio would flatter Megalodon).
``ratio`` is of times, ``cpu_ratio`` of CPU time of the process, for a machine that other programs share.
``percent_of_time`` says where the time of a step of Megalodon goes (on a CPU).
"""

import argparse
import json
import platform
import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.shares import shares
from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier, build_embedding
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS

TRANSFORMER_HEADS = 4
# The memory of a step settles in the second one: until then the system hands out and clears its pages.
WARM_UP = 2


@dataclass(frozen=True)
class Task:
    """One benchmark at its full length: what goes in, and how the attention is cut."""

    preset: str
    length: int
    batch: int
    chunk_size: int | None
    inputs: ClassifierInputs


# Every call of an operator costs as much here as what it computes.
SHORT = {"num_layers": 3, "model_dim": 64, "value_dim": 128, "z_dim": 64, "ffn_hidden_dim": 160}

TASKS: dict[str, Task] = {
    "listops": Task("megalodon_lra_listops", 2048, 4, 128, ClassifierInputs("tokens", 10, 17)),
    "text": Task("megalodon_lra_text", 4096, 2, 128, ClassifierInputs("tokens", 2, 256)),
    "retrieval": Task(
        "megalodon_lra_retrieval", 4096, 1, 128, ClassifierInputs("tokens", 2, 256, pair=True)
    ),
    "image": Task("megalodon_lra_image", 1024, 8, 128, ClassifierInputs("pixels", 10)),
    "pathfinder": Task("megalodon_lra_pathfinder", 1024, 8, 128, ClassifierInputs("pixels", 2)),
    "short": Task("short", 40, 32, None, ClassifierInputs("tokens", 10, 17)),
    "pathx": Task("megalodon_lra_pathx", 16384, 1, 4096, ClassifierInputs("pixels", 2)),
}


class TransformerClassifier(nn.Module):
    """torch.nn.TransformerEncoder with the same embedding kinds, mean pooling and a linear head."""

    def __init__(self, config: MegalodonConfig, inputs: ClassifierInputs, length: int) -> None:
        super().__init__()
        d = config.model_dim
        self.embedding = build_embedding(inputs, d)
        self.position = nn.Parameter(torch.randn(length, d) * 0.02)
        layer = nn.TransformerEncoderLayer(
            d, TRANSFORMER_HEADS, 2 * d, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(2 * d if inputs.pair else d, inputs.num_classes)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, L) -> (B, D)."""
        x_BLD = self.embedding(inputs) + self.position[: inputs.shape[1]]
        return self.encoder(x_BLD).mean(1)

    def forward(
        self,
        inputs: torch.Tensor,
        lengths: torch.Tensor,
        inputs2: torch.Tensor | None = None,
        lengths2: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Same arguments as :class:`SequenceClassifier`; the lengths are full and not used."""
        pooled = self.encode(inputs)
        if inputs2 is not None:
            pooled = torch.cat((pooled, self.encode(inputs2)), dim=-1)
        return self.head(pooled)


def make_batch(task: Task, device: torch.device) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random full-length inputs for ``task`` and random targets."""
    names = ("inputs", "inputs2") if task.inputs.pair else ("inputs",)
    net_input = {}
    for name in names:
        shape = (task.batch, task.length)
        if task.inputs.kind == "tokens":
            net_input[name] = torch.randint(1, task.inputs.vocab_size, shape, device=device)
        else:
            net_input[name] = torch.randn(shape, device=device)
        lengths = torch.full((task.batch,), task.length, device=device)
        net_input[name.replace("inputs", "lengths")] = lengths
    target = torch.randint(0, task.inputs.num_classes, (task.batch,), device=device)
    return net_input, target


class TrainStep:
    """One optimizer step of one model on one fixed batch, timed."""

    def __init__(
        self,
        model: nn.Module,
        batch: tuple[dict[str, torch.Tensor], torch.Tensor],
        bf16: bool = False,
    ) -> None:
        self.model = model.train()
        self.bf16 = bf16
        self.net_input, self.target = batch
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def __call__(self) -> None:
        start, cpu_start = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.target.device.type, torch.bfloat16, enabled=self.bf16):
            scores = self.model(**self.net_input)
        F.cross_entropy(scores.float(), self.target).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if self.target.is_cuda:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(time.process_time() - cpu_start)


def measure(name: str, repeats: int, device: torch.device, bf16: bool = False) -> dict[str, object]:
    """Time ``repeats`` steps of both models in turn, after ``WARM_UP`` steps of each."""
    task = TASKS[name]
    torch.manual_seed(0)
    sizes = (CLASSIFIER_PRESETS | {"short": SHORT})[task.preset]
    config = MegalodonConfig(**sizes, chunk_size=task.chunk_size)
    batch = make_batch(task, device)
    ours = TrainStep(SequenceClassifier(config, task.inputs).to(device), batch, bf16)
    transformer = TrainStep(
        TransformerClassifier(config, task.inputs, task.length).to(device), batch, bf16
    )
    pair = [ours, transformer]
    for _ in tqdm(range(WARM_UP + repeats), desc=name, unit="pair of steps", leave=False):
        for step in pair:
            step()
        pair.reverse()  # each comes as often after itself as after the other, whose memory it takes over
    tokens = sum(batch[0][key].sum().item() for key in batch[0] if key.startswith("lengths"))
    seconds, transformer_seconds = (
        statistics.median(s.seconds[WARM_UP:]) for s in (ours, transformer)
    )
    cpu, transformer_cpu = (statistics.median(s.cpu_seconds[WARM_UP:]) for s in (ours, transformer))
    return {
        "task": name,
        "batch": task.batch,
        "length": task.length,
        "chunk_size": task.chunk_size,
        "tokens_per_s": round(tokens / seconds),
        "transformer_tokens_per_s": round(tokens / transformer_seconds),
        "ratio": round(transformer_seconds / seconds, 2),
        "cpu_seconds": round(cpu, 4),
        "transformer_cpu_seconds": round(transformer_cpu, 4),
        "cpu_ratio": round(transformer_cpu / cpu, 2),
        **({} if device.type == "cuda" else {"percent_of_time": shares(ours)}),
        "bf16": bf16,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", choices=[*TASKS, "all"], metavar="TASK")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each model")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--bf16", action="store_true", help="matrix products in bfloat16, by autocast"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = list(TASKS) if "all" in args.tasks else args.tasks
    for name in names:
        record = measure(name, args.repeats, torch.device(args.device), args.bf16)
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
