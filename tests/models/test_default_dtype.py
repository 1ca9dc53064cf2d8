"""Whole models under another default dtype than float32: the same numbers, forward and backward."""

import pytest
import torch

from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegaConfig, MegalodonConfig
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.mega import MegaSequenceClassifier
from tests.models.lm_cases import SIZES, make_tokens

BATCH = 2


def images():
    kind = ClassifierInputs("patches", 5, image_size=(8, 12), patch_size=4, channels=2)
    return kind, (torch.randn(BATCH, 2, 8, 12, generator=draw(), dtype=torch.float32),)


def signal():
    lengths = torch.tensor([17, 9])
    values = torch.randn(BATCH, 17, generator=draw(), dtype=torch.float32)
    return ClassifierInputs("waveform", 5), (values, lengths)


def tokens():
    return ClassifierInputs("tokens", 3, vocab_size=11, padding_idx=0), (
        make_tokens(length=20),
        torch.tensor([13, 20]),
    )


def draw():
    return torch.Generator().manual_seed(1)


def classifier(make, **changes):
    kind, inputs = make()
    torch.manual_seed(0)
    model = SequenceClassifier(MegalodonConfig(**(SIZES | {"chunk_size": 8} | changes)), kind)
    return model, lambda: (model(*inputs),)


def mega(**changes):
    kind, inputs = tokens()
    torch.manual_seed(0)
    sizes = {"model_dim": 12, "num_layers": 2, "z_dim": 8, "value_dim": 16, "ffn_hidden_dim": 24}
    config = MegaConfig(**sizes, cema_ndim=4, chunk_size=8, cema_init="spread", **changes)
    model = MegaSequenceClassifier(config, kind)
    return model, lambda: (model(*inputs),)


def language_model(**changes):
    torch.manual_seed(0)
    model = CausalLM(MegalodonConfig(**(SIZES | changes), causal=True), 11)
    before, after = make_tokens(length=21).split([9, 12], dim=1)

    def run():
        scores, state = model(before)
        nll, _ = model.nll(after[:, :-1], after[:, 1:], state)
        return scores, nll, model(after[:, :1], state)[0]

    return model, run


MODELS = {
    "tokens": lambda: classifier(tokens),
    "waveform": lambda: classifier(signal, cema_memory=40),
    "images": lambda: classifier(images, chunk_size=None),
    "mega": lambda: mega(cema_memory=40, positions="rotary"),
    "mega, laplace": lambda: mega(
        cema_memory=40, attention_activation="laplace", norm_type="batch", prenorm=True
    ),
    "without ideas": lambda: classifier(
        tokens, moving_average="real", norm_type="layer", attention_scores="scaled"
    ),
    "dropout": lambda: classifier(tokens, dropout=0.2, attention_dropout=0.2, hidden_dropout=0.1),
    "language model": language_model,
    "language model, full attention": lambda: language_model(chunk_size=None, rescale_nffn=True),
}


def outputs_and_gradients(model, run):
    torch.manual_seed(7)  # of dropout
    outputs = run()
    loss = sum((output.double() ** 2).sum() for output in outputs)
    return *outputs, *torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_the_default_dtype_changes_nothing(name, default):
    model, run = MODELS[name]()
    truth = outputs_and_gradients(model, run)
    torch.set_default_dtype(default)
    try:
        found = outputs_and_gradients(model, run)
    finally:
        torch.set_default_dtype(torch.float32)
    for tensor, true_tensor in zip(found, truth, strict=True):
        assert tensor.dtype == true_tensor.dtype
        assert torch.equal(tensor, true_tensor)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["tokens", "waveform", "images", "mega", "without ideas"])
def test_models_are_made_in_the_default_dtype(name, default):
    """As PyTorch's own modules are."""
    torch.set_default_dtype(default)
    try:
        model, _ = MODELS[name]()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {default}
    assert all(parameter.isfinite().all() for parameter in model.parameters())
