"""Translate a split with beam search and compare with its references."""

import math
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import sacrebleu
import torch
from fairseq import utils
from fairseq.models import FairseqEncoderDecoderModel

from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation.checkpoint import Trained


class Sentence(NamedTuple):
    """A source, its reference and its translation, with byte pairs joined; the number in its split."""

    number: int
    source: str
    reference: str
    translation: str


@dataclass(frozen=True)
class Search:
    """Settings of fairseq's generator.  max_tokens: of a batch.  remove_bpe: the mark of byte pairs."""

    beam: int = 5
    lenpen: float = 1.0
    max_len_a: float = 0.0
    max_len_b: int = 200
    max_tokens: int = 4000
    remove_bpe: str | None = None

    def __post_init__(self) -> None:
        if self.max_len_a + self.max_len_b < 1:
            raise ValueError(
                f"max_len_a={self.max_len_a} and max_len_b={self.max_len_b} leave no token for the "
                "translation of a short source; one of them must be at least 1"
            )


@dataclass(frozen=True)
class Score:
    """loss: bits per token of the references.  exact: percentage of equal sentences.  bleu: 0 to 100."""

    loss: float
    bleu: float
    exact: float
    sentences: list[Sentence]


@torch.inference_mode()
def evaluate(trained: Trained, split: str, search: Search) -> Score:
    """Translate ``split``; BLEU is that of its tokens, as published for WMT16 English-German.

    Raises :class:`UserError` for a checkpoint of another kind of model.
    """
    task: Any = trained.task
    if not isinstance(trained.model, FairseqEncoderDecoderModel):
        raise UserError(
            f"{trained.path}: holds a {type(trained.model).__name__}, no encoder-decoder"
        )
    task.load_dataset(split)
    dataset = task.dataset(split)
    longest = int(max(map(dataset.num_tokens, range(len(dataset)))))
    if longest > search.max_tokens:
        raise UserError(
            f"--max-tokens {search.max_tokens}: the longest pair of {split} has {longest} tokens; "
            "allow at least so many"
        )
    batches = task.get_batch_iterator(
        dataset,
        max_tokens=search.max_tokens,
        max_positions=trained.model.max_positions(),
    ).next_epoch_itr(shuffle=False)
    generator = task.build_generator([trained.model], Namespace(**vars(search)))
    sentences, loss, tokens = [], 0.0, 0
    for batch in batches:
        sample: Any = utils.apply_to_sample(lambda tensor: tensor.to(trained.device), batch)
        scores = trained.model.get_normalized_probs(
            trained.model(**sample["net_input"]), log_probs=True
        )
        target, pad = sample["target"], task.target_dictionary.pad()
        nll = -scores.gather(-1, target[..., None])[..., 0].double()
        loss += nll.masked_fill(target == pad, 0.0).sum().item()
        tokens += int((target != pad).sum())
        sentences += _translations(
            task, generator.generate([trained.model], sample), sample, search
        )
    sentences.sort()
    found, expected = [s.translation for s in sentences], [s.reference for s in sentences]
    return Score(
        loss=loss / tokens / math.log(2),
        bleu=sacrebleu.corpus_bleu(found, [expected], tokenize="none", force=True).score,
        exact=100 * sum(map(str.__eq__, found, expected)) / len(sentences),
        sentences=sentences,
    )


def _translations(
    task: Any, found: list[Any], sample: dict[str, Any], search: Search
) -> Iterator[Sentence]:
    pad = task.target_dictionary.pad()
    rows = zip(
        sample["id"].tolist(),
        sample["net_input"]["src_tokens"],
        sample["target"],
        found,
        strict=True,
    )
    for number, source, target, hypotheses in rows:
        texts = [
            dictionary.string(utils.strip_pad(symbols, pad).int().cpu(), search.remove_bpe)
            for dictionary, symbols in (
                (task.source_dictionary, source),
                (task.target_dictionary, target),
                (task.target_dictionary, hypotheses[0]["tokens"]),
            )
        ]
        yield Sentence(number, *texts)
