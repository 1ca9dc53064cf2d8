"""Peak memory of reading one document of a language model's test split, by its length.

    python -m benchmarks.lm_memory                     # 20,000 and 2,000,000 tokens
    python -m benchmarks.lm_memory --lengths 10000 100000 --piece 1024

Each length is read in a process of its own, as ``megalodon evaluate-lm`` does it: tokens from
disk, state carried, sums by context length.  Prints one JSON line with the peak resident memory of each
and the ratio of the largest to the smallest.  The model has 4 layers, d 256, z 128, v 512, chunk 512.
"""

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.evaluation.language_model import return_large_buffers
from megalodon_tasks.evaluation.long_context import Position, Totals, read_document
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.recipes.lm import prepare_text

CONFIG = MegalodonConfig(
    model_dim=256, num_layers=4, num_heads=1, z_dim=128, value_dim=512, ffn_hidden_dim=512,
    chunk_size=512, norm_num_groups=8, causal=True,
)  # fmt: skip
VOCABULARY = 260


def prepare_document(folder: Path, length: int) -> Path:
    """Prepare a corpus whose test split is one document of ``length`` random letters."""
    draw = np.random.default_rng(0)
    for split, letters in (("train", 100), ("validation", 100), ("test", length)):
        (folder / "text" / split).mkdir(parents=True)
        text = draw.integers(ord("a"), ord("z") + 1, letters, np.uint8).tobytes()
        (folder / "text" / split / "document.txt").write_bytes(text)
    with contextlib.redirect_stdout(sys.stderr):
        return prepare_text.main([str(folder / "text"), str(folder / "data"), "--workers", "1"])


def read(folder: Path, piece: int) -> dict[str, float]:
    """Read the document; return tokens, seconds and peak resident memory (MB) of this process."""
    return_large_buffers()
    torch.manual_seed(0)
    model = CausalLM(CONFIG, VOCABULARY).eval()
    split = read_corpus(folder).split("test")
    totals, started = Totals(), time.perf_counter()
    length = int(split.offsets[-1])
    for start, nll_L, _ in read_document(model, split.tokens, length, piece, 2, Position()):
        totals.add(start, nll_L)
    unit = 1024**2 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, else KiB
    return {
        "tokens": totals.tokens,
        "seconds": round(time.perf_counter() - started, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1),
        "nats_per_token": totals.nll / totals.tokens,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lm_memory", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[20_000, 2_000_000])
    parser.add_argument("--piece", type=int, default=2048, help="tokens read at a time")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(read(options.folder, options.piece)))
        return
    found = []
    for length in options.lengths:
        with tempfile.TemporaryDirectory() as folder:
            data = prepare_document(Path(folder), length)
            command = [sys.executable, "-m", "benchmarks.lm_memory", "--folder", str(data)]
            command += ["--piece", str(options.piece)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    peaks = [one["peak_mb"] for one in found]
    print(json.dumps({"piece": options.piece, "runs": found, "ratio": max(peaks) / min(peaks)}))


if __name__ == "__main__":
    main()
