"""Write and read a language model as a folder in the form of Hugging Face; needs no transformers.

The folder holds ``config.json``, ``generation_config.json``, ``model.safetensors`` with our names after
``lm.``, and the tokenizer: ``tokenizer_config.json``, ``dict.txt``, and ``sentencepiece.model`` for
pieces.  ``megalodon_tasks.hf`` has the classes that transformers loads it with.
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from megalodon_tasks.data.corpus import DICTIONARY
from megalodon_tasks.data.dictionary import read_dictionary
from megalodon_tasks.data.tokenizers import Tokenizer, save_tokenizer, tokenizer_of
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.released.files import (
    CONFIG,
    read_json,
    read_weights,
    write_json,
    write_tensors,
)

MODEL_TYPE, ARCHITECTURE = "megalodon", "MegalodonForCausalLM"
PREFIX = "lm."
WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer_config.json"
TIED = f"{PREFIX}output.weight"
# Key of tokenizer_config.json with what the manifest of a corpus stores of its tokenizer.
DESCRIPTION = "tokenizer"


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write what ``AutoTokenizer`` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DICTIONARY).unlink(missing_ok=True)  # that of another model
    save_tokenizer(tokenizer, folder)
    content = {"tokenizer_class": "MegalodonTokenizer", DESCRIPTION: tokenizer.description()}
    write_json(folder / TOKENIZER, content)
    write_json(folder / CONFIG, {"model_type": MODEL_TYPE})


def write_folder(model: CausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model and its tokenizer.

    ``generate`` draws what ``megalodon sample`` draws: tokens of text, and the end of a document.
    Raises ``ValueError`` if the two have different numbers of symbols.
    """
    dictionary = tokenizer.dictionary()
    if len(dictionary) != model.vocab_size:
        raise ValueError(
            f"the model has {model.vocab_size} symbols, its tokenizer {len(dictionary)}; name the "
            "prepared data that the model was trained on by --data"
        )
    write_tokenizer(tokenizer, folder)
    special = {"bos_token_id": tokenizer.eos, "pad_token_id": dictionary.pad()}
    ends = tokenizer.eos if tokenizer.ends_document else None
    settings = {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        **asdict(model.config),
        "vocab_size": model.vocab_size,
        "scale_emb": model.scale_emb,
        "tie_word_embeddings": model.share_emb,
        **special,
        "eos_token_id": tokenizer.eos,
    }
    text = {*tokenizer.text_tokens(), tokenizer.eos}
    suppressed = [token for token in range(model.vocab_size) if token not in text]
    generation = {**special, "eos_token_id": ends, "suppress_tokens": suppressed}
    tensors = {PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    if model.share_emb:
        del tensors[TIED]
    write_tensors(folder / WEIGHTS, {n: t.detach().contiguous() for n, t in tensors.items()})
    write_json(folder / "generation_config.json", generation)
    write_json(folder / CONFIG, settings)


def is_folder(source: Path) -> bool:
    """Return whether ``source`` is such a folder.

    Raises ``ValueError`` for a folder of Hugging Face that holds another kind of model.
    """
    if not (source / CONFIG).is_file():
        return False
    model_type = read_json(source / CONFIG).get("model_type")
    if model_type not in (None, MODEL_TYPE):
        raise ValueError(
            f"{source} is a model of another architecture: {CONFIG} has model_type={model_type!r}, "
            f"expected {MODEL_TYPE!r}"
        )
    return model_type is not None


def read_folder(folder: Path) -> CausalLM:
    """Read the model.  Raises ``ValueError`` naming what is missing, damaged or does not fit."""
    if not is_folder(folder):
        raise ValueError(f"{folder} has no {CONFIG} with model_type={MODEL_TYPE!r}")
    settings = read_json(folder / CONFIG)
    names = [field.name for field in fields(MegalodonConfig)]
    missing = [name for name in (*names, "vocab_size") if name not in settings]
    if missing:
        raise ValueError(f"{folder / CONFIG} lacks {', '.join(missing)}")
    config = MegalodonConfig(**{name: settings[name] for name in names})
    tensors = read_weights(folder)
    if config.num_layers > len(tensors):
        raise ValueError(
            f"{folder / CONFIG}: num_layers={config.num_layers}, but there are {len(tensors)} tensors"
        )
    with torch.device("meta"):
        model = CausalLM(
            config,
            settings["vocab_size"],
            scale_emb=settings.get("scale_emb", False),
            share_emb=settings.get("tie_word_embeddings", False),
            padding_idx=settings.get("pad_token_id"),
        )
    if model.share_emb and TIED not in tensors and f"{PREFIX}embedding.weight" in tensors:
        tensors[TIED] = tensors[f"{PREFIX}embedding.weight"]
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{folder}: {WEIGHTS} does not fit {CONFIG}: {error}") from None
    if model.share_emb:  # assign=True has untied them
        model.output.weight = model.embedding.weight
    return model.requires_grad_()


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of the folder.  Raises ``ValueError`` if it has none."""
    for name in (TOKENIZER, DICTIONARY):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: the folder has no tokenizer")
    description: dict[str, Any] = read_json(folder / TOKENIZER).get(DESCRIPTION) or {}
    return tokenizer_of(folder, description, read_dictionary(folder / DICTIONARY))
