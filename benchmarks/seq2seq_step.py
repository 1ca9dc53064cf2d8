"""A training step of the encoder-decoder beside fairseq's ``transformer_wmt_en_de``, in one process.

    python -m benchmarks.seq2seq_step wmt long
    python -m benchmarks.seq2seq_step long --threads 1 --layers 1 --repeats 3

Prints one JSON line per measurement: forward and backward on a fixed batch of random tokens, the two
models in turn.  ``ratio`` is how many times as fast as the Transformer Megalodon is, by the shortest
times, and ``cpu_ratio`` the same by CPU time of the process, for a machine that other programs share.

wmt   2,048 source and 2,048 target tokens in sentences of 32, 32,768 symbols, one matrix for all.
long  One pair of 4,096 bytes each, chunks of 512.

Both have dropout 0.1 after each branch, as the Transformer's preset, and none elsewhere.
"""

import argparse
import json
import platform
import time
from argparse import Namespace
from collections.abc import Callable

import torch
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerModel, base_architecture
from torch.nn import functional as F
from tqdm import tqdm

from megalodon_tasks.models.presets import SEQ2SEQ_PRESETS
from megalodon_tasks.models.seq2seq import Seq2Seq, Seq2SeqConfig

DROPOUT = 0.1
# name -> sentences, length, symbols, chunk
MEASUREMENTS = {"wmt": (64, 32, 32_768, None), "long": (1, 4096, 260, 512)}
TINY = {"wmt": (2, 5, 20, None), "long": (1, 12, 20, 4)}


def build_transformer(symbols: int, layers: int) -> TransformerModel:
    """Build fairseq's preset; its sizes are those of ``transformer_wmt_en_de``."""
    dictionary = Dictionary()
    for number in range(symbols - len(dictionary)):
        dictionary.add_symbol(f"w{number}")
    options = Namespace(share_all_embeddings=True, dropout=DROPOUT)
    options.encoder_layers = options.decoder_layers = layers
    options.max_source_positions = options.max_target_positions = 8192
    base_architecture(options)
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return TransformerModel.build_model(options, task)


def build_megalodon(symbols: int, layers: int, chunk: int | None) -> Seq2Seq:
    """Build the preset ``megalodon_wmt_en_de``."""
    sizes = SEQ2SEQ_PRESETS["megalodon_wmt_en_de"] | {"num_layers": layers, "chunk_size": chunk}
    config = Seq2SeqConfig(**sizes, share_all_embeddings=True, dropout=DROPOUT)
    return Seq2Seq(config, symbols, symbols, padding_idx=1)


def steps(
    batch: int, length: int, symbols: int, chunk: int | None, layers: int
) -> tuple[dict[str, Callable[[], None]], dict[str, int]]:
    """Return a training step of each model, and their numbers of parameters."""
    transformer = build_transformer(symbols, layers)
    megalodon = build_megalodon(symbols, layers, chunk)
    source, previous, target = torch.randint(4, symbols, (3, batch, length))
    lengths = torch.full((batch,), length)

    def train(model: torch.nn.Module, scores: Callable[[], torch.Tensor]) -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(scores().flatten(0, 1), target.flatten()).backward()

    functions = {
        "transformer": lambda: train(
            transformer, lambda: transformer(source, lengths, previous)[0]
        ),
        "megalodon": lambda: train(megalodon, lambda: megalodon(source, previous)),
    }
    models = {"transformer": transformer, "megalodon": megalodon}
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    return functions, counts


def measure(name: str, sizes: tuple, layers: int, repeats: int) -> dict[str, object]:
    """Time both models; the first round warms up."""
    functions, parameters = steps(*sizes, layers)
    wall: dict[str, list[float]] = {model: [] for model in functions}
    cpu: dict[str, list[float]] = {model: [] for model in functions}
    for _ in tqdm(range(repeats + 1), desc=name, unit="round", leave=False):
        for model, function in functions.items():
            clocks = time.perf_counter(), time.process_time()
            function()
            wall[model].append(time.perf_counter() - clocks[0])
            cpu[model].append(time.process_time() - clocks[1])
    seconds, used = ({m: min(taken[1:]) for m, taken in times.items()} for times in (wall, cpu))
    return {
        "batch": sizes[0],
        "length": sizes[1],
        "layers": layers,
        "parameters": parameters,
        "seconds": {model: round(value, 3) for model, value in seconds.items()},
        "ratio": round(seconds["transformer"] / seconds["megalodon"], 2),
        "cpu_seconds": {model: round(value, 3) for model, value in used.items()},
        "cpu_ratio": round(used["transformer"] / used["megalodon"], 2),
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=MEASUREMENTS, metavar="WHAT")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--layers", type=int, default=6, help="of each stack")
    parser.add_argument("--tiny", action="store_true", help="only see whether it runs")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    sizes = TINY if given.tiny else MEASUREMENTS
    for name in given.what:
        torch.manual_seed(0)
        found = measure(name, sizes[name], given.layers, given.repeats)
        run = {"repeats": given.repeats, "threads": given.threads, "device": platform.machine()}
        print(
            json.dumps({"measured": name} | found | run | {"torch": torch.__version__}), flush=True
        )


if __name__ == "__main__":
    main()
