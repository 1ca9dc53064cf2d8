"""Load a language model with its tokenizer, in any form that this project reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.data.tokenizers import Tokenizer, corpus_tokenizer
from megalodon_tasks.evaluation import checkpoint, hf_folder
from megalodon_tasks.models.language_model import LanguageModel
from megalodon_tasks.models.released.files import read_released, read_tensors
from megalodon_tasks.models.released.names import load_released


@dataclass(frozen=True)
class TextModel:
    """A language model in evaluation mode, and what turns text into its tokens."""

    model: LanguageModel
    tokenizer: Tokenizer


def load(
    source: Path,
    data: Path | None = None,
    device: torch.device | str | None = None,
    chunk_size: int | Literal["full"] | None = None,
) -> TextModel:
    """Load a checkpoint of fairseq, a release (folder, safetensors, torch file), or one of Hugging Face.

    data: prepared data whose tokenizer goes with the model, by default that of training, or the one in a
    folder of Hugging Face.  device: by default the GPU if there is one.  chunk_size: as in
    :func:`megalodon_tasks.evaluation.checkpoint.load`, for checkpoints of fairseq.
    Raises ``ValueError`` or :class:`UserError` for a model of another architecture, one without a
    tokenizer, and one whose tokenizer has another number of symbols.
    """
    if is_of_fairseq(source):
        trained = checkpoint.load(source, data, device, chunk_size=chunk_size)
        corpus = read_corpus(Path(trained.cfg.task.data))
        return TextModel(trained.language_model, corpus_tokenizer(corpus))
    if chunk_size is not None:
        raise ValueError(f"chunk_size={chunk_size} is for checkpoints of fairseq; {source} is none")
    if hf_folder.is_folder(source):
        model: LanguageModel = hf_folder.read_folder(source)
    else:
        model = load_released(*read_released(source))
    tokenizer = load_tokenizer(source, data)
    symbols = len(tokenizer.dictionary())
    if symbols != model.vocab_size:
        raise ValueError(
            f"{source} has {model.vocab_size} symbols, its tokenizer {symbols}; name the prepared data "
            "that the model was trained on by --data"
        )
    checkpoint.check_finite(source, model.state_dict())
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return TextModel(model.to(device).eval(), tokenizer)


def load_tokenizer(source: Path, data: Path | None = None) -> Tokenizer:
    """Load only the tokenizer; arguments and errors are those of :func:`load`."""
    if data is None and hf_folder.is_folder(source):
        return hf_folder.read_tokenizer(source)
    if data is None and not is_of_fairseq(source):
        raise ValueError(
            f"{source} is a release, which has no tokenizer: name the prepared data of its vocabulary "
            "by --data"
        )
    return corpus_tokenizer(read_corpus(data or checkpoint.data_of(source)))


def is_of_fairseq(source: Path) -> bool:
    """Return whether ``source`` is a checkpoint of a training run, which says what data it is of.

    Raises ``ValueError`` if it does not exist.
    """
    if not source.is_file():
        if not source.is_dir():
            raise ValueError(f"{source}: there is no such checkpoint or folder")
        return False
    return source.suffix != ".safetensors" and "cfg" in read_tensors(source)
