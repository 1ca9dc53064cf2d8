"""Small folders of binarised text, and fairseq's commands run on them inside the test process."""

import logging
import random
import sys
from pathlib import Path

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import eval_lm as fairseq_eval_lm
from fairseq_cli import generate as fairseq_generate
from fairseq_cli import interactive as fairseq_interactive
from fairseq_cli import preprocess as fairseq_preprocess
from fairseq_cli import train as fairseq_train

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]

MODEL = """--arch megalodon_lm --model-dim 16 --num-layers 2 --num-heads 2 --z-dim 8 --value-dim 16
--ffn-hidden-dim 24 --cema-ndim 2 --norm-num-groups 4 --chunk-size 8 --scale-emb --share-emb"""
TRAIN = f"""--task megalodon_language_modeling {MODEL} --criterion cross_entropy --cpu --num-workers 0
--required-batch-size-multiple 1 --tokens-per-sample 8 --optimizer adamw_groups --lr 0.01
--lr-scheduler linear_decay --max-update 6 --seed 3 --log-format none --keep-last-epochs 1
--best-checkpoint-metric ppl --batch-size 2"""


def write_lines(path: Path, lines: int, seed: int, blank_every: int = 0) -> None:
    """Lines of 1 to 12 words; with ``blank_every`` each so-manieth line is empty."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(lines)]
    if blank_every:
        texts = ["" if i % blank_every == blank_every - 1 else t for i, t in enumerate(texts)]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def preprocess(folder: Path, lines: int = 60, blank_every: int = 0, *arguments: str) -> Path:
    """A folder as ``fairseq-preprocess --only-source`` writes it, with three splits."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for seed, split in enumerate(("train", "valid", "test")):
        count = lines if split == "train" else lines // 3
        write_lines(raw / split, count, seed, blank_every)
    words = ["--only-source", "--destdir", str(folder / "bin"), "--workers", "1", *arguments]
    for split in ("train", "valid", "test"):
        words += [f"--{split}pref", str(raw / split)]
    quietly(lambda: fairseq_preprocess.main(options.get_preprocessing_parser().parse_args(words)))
    return folder / "bin"


def quietly(command):
    """Run ``command`` with the logging level and ``sys.argv`` put back afterwards."""
    root = logging.getLogger()
    level, argv = root.level, sys.argv
    sys.argv = ["fairseq"]  # fairseq looks at it for plasma
    try:
        return command()
    finally:
        sys.argv = argv
        root.setLevel(level)


def parsed(parser, words: list[str]):
    """The configuration that a command of fairseq's makes of its arguments."""
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=words))


def train(data: Path, save_dir: Path, *arguments: str) -> None:
    """``fairseq-train`` on ``data``; later arguments win."""
    words = [str(data), *TRAIN.split(), "--save-dir", str(save_dir), *arguments]
    quietly(lambda: fairseq_train.main(parsed(options.get_training_parser(), words)))


def eval_lm(data: Path, checkpoint: Path, *arguments: str) -> dict[str, float]:
    """``fairseq-eval-lm`` on the test split: ``loss`` in bits per token, and ``perplexity``."""
    words = f"{data} --task megalodon_language_modeling --path {checkpoint} --gen-subset test --cpu"
    words = [*words.split(), "--num-workers", "0", "--log-format", "none", *arguments]
    return quietly(lambda: fairseq_eval_lm.main(parsed(options.get_eval_lm_parser(), words)))


def generate(data: Path, checkpoint: Path, *arguments: str) -> None:
    """``fairseq-generate``; what it prints goes to stdout."""
    words = f"{data} --task megalodon_language_modeling --path {checkpoint} --gen-subset test --cpu"
    words = [*words.split(), "--num-workers", "0", "--log-format", "none", *arguments]
    quietly(lambda: fairseq_generate.main(parsed(options.get_generation_parser(), words)))


def interactive(data: Path, checkpoint: Path, *arguments: str) -> None:
    """``fairseq-interactive``, reading ``--input``; what it prints goes to stdout."""
    words = f"{data} --task megalodon_language_modeling --path {checkpoint} --cpu"
    words = [*words.split(), *arguments]
    parser = options.get_interactive_generation_parser()
    quietly(lambda: fairseq_interactive.main(parsed(parser, words)))
