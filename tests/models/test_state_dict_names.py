"""The names in a state_dict are those that models/README.md promises."""

import re
from itertools import product
from pathlib import Path

import pytest

from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegaConfig, MegalodonConfig
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.mega import MegaSequenceClassifier
from megalodon_tasks.models.seq2seq import Seq2Seq, Seq2SeqConfig
from megalodon_tasks.models.transformer import TransformerConfig, TransformerStack

README = Path(__file__).parents[2] / "models" / "README.md"
SIZES = {"num_layers": 1, "swiglu": True, "rescale_nffn": True}
MEGA = [
    {"norm_type": "scale", "positions": "rotary"},
    {"norm_type": "layer", "positions": "simple", "prenorm": True},
    {"norm_type": "batch", "positions": "rope"},
]


def documented_names() -> set[str]:
    """Return all names of the README's table, braces expanded, with 0 for the block's number."""
    table = README.read_text().split("## Names in a `state_dict`")[1]
    names = set()
    for row in re.findall(r"^\| (.+?) \|", table, re.MULTILINE):
        for pattern in re.findall(r"`([^`]+)`", row):
            parts = re.split(r"\{([^}]*)\}", pattern.replace("{i}", "0"))
            choices = [p.split(",") if i % 2 else [p] for i, p in enumerate(parts)]
            names.update("".join(choice) for choice in product(*choices))
    return names


def build_all() -> set[str]:
    tokens = {"vocab_size": 5, "num_classes": 2}
    encoder, decoder = MegalodonConfig(**SIZES), MegalodonConfig(**SIZES, causal=True)
    models = [
        SequenceClassifier(encoder, ClassifierInputs("tokens", **tokens)),
        SequenceClassifier(encoder, ClassifierInputs("pixels", num_classes=2)),
        SequenceClassifier(encoder, ClassifierInputs("tokens", pair=True, **tokens)),
        SequenceClassifier(
            encoder, ClassifierInputs("patches", num_classes=2, image_size=(16, 16))
        ),
        CausalLM(decoder, vocab_size=5),
        *(
            MegaSequenceClassifier(
                MegaConfig(num_layers=1, **choice), ClassifierInputs("pixels", 2)
            )
            for choice in MEGA
        ),
        CausalLM(
            TransformerConfig(num_layers=1, causal=True), vocab_size=5, stack_type=TransformerStack
        ),
    ]
    names = {name for model in models for name in model.state_dict()}
    pair = Seq2Seq(Seq2SeqConfig(**SIZES), 5, 5, padding_idx=1)
    return names | {
        name.removeprefix("encoder.").removeprefix("decoder.") for name in pair.state_dict()
    }


def test_documented_names_are_the_real_ones():
    assert documented_names() == build_all()


@pytest.mark.parametrize("bidirectional", [True, False])
def test_documented_rows_of_cema(bidirectional):
    config = MegalodonConfig(**SIZES, causal=not bidirectional)
    model = SequenceClassifier(config, ClassifierInputs("pixels", num_classes=2))
    rows = model.state_dict()["stack.blocks.0.attention.cema.alpha"].shape[0]
    assert rows == config.model_dim * (2 if bidirectional else 1)
