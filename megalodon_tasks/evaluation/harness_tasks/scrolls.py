"""Prompts and measures of SCROLLS (arXiv 2201.03533) for table 2 of arXiv 2404.08801.

All measures are in percent.  A prediction counts with the answer that it fits best.
"""

# pyright: reportMissingImports=false

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer

ROUGE = ("rouge1", "rouge2", "rougeL")


def questions(rows: Iterable[dict[str, Any]]) -> Dataset:
    """Return one document per question: its text as ``context``, ``question`` and all ``answers``."""
    documents: dict[str, dict[str, Any]] = {}
    for row in rows:
        question, separator, context = row["input"].partition("\n\n")
        if not separator:
            raise ValueError(
                f"row {row['id']!r} has no empty line between the question and the text"
            )
        new = {"id": row["id"], "context": context, "question": question, "answers": []}
        documents.setdefault(row["id"], new)["answers"].append(row["output"])
    return Dataset.from_list(list(documents.values()))


def best_f1(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return the F1 of the words that prediction and answer share, as SQuAD counts them."""
    return {"f1": 100 * max(_f1(results[0], answer) for answer in document["answers"])}


def _f1(prediction: str, answer: str) -> float:
    first, second = _words(prediction), _words(answer)
    shared = sum((Counter(first) & Counter(second)).values())
    return 2 * shared / (len(first) + len(second)) if shared else 0.0


def _words(text: str) -> list[str]:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def rouge(document: dict[str, Any], results: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, with stemming."""
    scorer = RougeScorer(ROUGE, use_stemmer=True)
    scores = scorer.score_multi(document["answers"], results[0])
    return {"geometric_rouge": tuple(100 * scores[name].fmeasure for name in ROUGE)}


def geometric_mean(scores: Sequence[tuple[float, ...]]) -> float:
    """Return the geometric mean of the three averages over all documents."""
    averages = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
    return math.prod(averages) ** (1 / len(averages))
