"""Train a SentencePiece vocabulary on text files.

The model loses nothing: text is not normalised, white space stays, and there is a byte piece for
whatever has no piece of its own (line breaks among others).  The result depends only on the files and
the sizes below.
"""

import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from megalodon_tasks.files import atomic_file, read_bytes
from megalodon_tasks.recipes.lm.text_files import decoded

SAMPLED_BYTES = 300_000_000
_LINES = 4_000_000
_LONGEST_LINE = 4192
_THREADS = 16  # affects the result: sums are taken per thread


def train_model(
    paths: Sequence[Path], out: Path, pieces: int, sampled_bytes: int = SAMPLED_BYTES
) -> None:
    """Write a unigram model of ``pieces`` pieces to ``out``, from files drawn up to ``sampled_bytes``.

    Raises ``ValueError`` if the text is too small or varied for so many pieces.
    """
    drawn = list(paths)
    random.Random(0).shuffle(drawn)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(drawn, sampled_bytes),
            model_writer=model,
            model_type="unigram",
            vocab_size=pieces,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            byte_fallback=True,
            character_coverage=0.9999,
            input_sentence_size=_LINES,
            shuffle_input_sentence=False,
            max_sentence_length=_LONGEST_LINE,
            bos_id=-1,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"a vocabulary of {pieces} pieces cannot be trained: {error}") from None
    with atomic_file(out) as stream:
        stream.write(model.getvalue())


def _lines(paths: Sequence[Path], limit: int) -> Iterator[str]:
    read = 0
    for path in paths:
        data = read_bytes(path)
        text, damage = decoded(data)
        if damage is None:
            yield from (line for line in text.splitlines() if line.strip())
        read += len(data)
        if read >= limit:
            return
