"""Models of every recipe in bfloat16 and float16: CEMA stays float32, results stay close."""

import copy

import pytest
import torch
from torch.nn import functional as F

from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.cema import ComplexEMA
from tests.models.lm_cases import SIZES, make_model, make_tokens
from tests.models.test_fairseq_seq2seq import build

LENGTH, BATCH = 12, 3
TOKENS = make_tokens(BATCH, LENGTH)
LENGTHS = torch.tensor([12, 7, 3])
IMAGES = torch.rand(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(2))
CLASSIFIERS = {
    "tokens": (ClassifierInputs("tokens", 3, vocab_size=11), (TOKENS, LENGTHS)),
    "pairs": (
        ClassifierInputs("tokens", 3, vocab_size=11, pair=True), (TOKENS, LENGTHS, TOKENS, LENGTHS)
    ),
    "pixels": (ClassifierInputs("pixels", 3), (IMAGES[:, 0].flatten(1),)),
    "waveform": (ClassifierInputs("waveform", 3), (IMAGES[:, 1].flatten(1), LENGTHS)),
    "patches": (ClassifierInputs("patches", 3, image_size=(8, 8), patch_size=4), (IMAGES,)),
}  # fmt: skip


def classifier(kind):
    inputs, arguments = CLASSIFIERS[kind]
    torch.manual_seed(0)
    return SequenceClassifier(MegalodonConfig(**SIZES), inputs), arguments


def language_model(**changes):
    return make_model(**changes).float(), (TOKENS,)


def seq2seq():
    return build().float(), (TOKENS, LENGTHS, TOKENS)


MODELS = {kind: lambda kind=kind: classifier(kind) for kind in CLASSIFIERS} | {
    "language model": language_model,
    "adaptive language model": lambda: language_model(adaptive_cutoffs="6,9"),
    "encoder-decoder": seq2seq,
}


def scores_and_gradients(model, arguments, scale):
    output = model(*arguments)
    scores = (output[0] if isinstance(output, tuple) else output).float()
    target = torch.arange(scores.flatten(0, -2).shape[0]) % scores.shape[-1]
    loss = F.cross_entropy(scores.flatten(0, -2), target)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
    return scores, torch.cat([g.float().flatten() / scale for g in gradients if g is not None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", MODELS)
def test_close_to_float32(kind, dtype):
    model, arguments = MODELS[kind]()
    rounded = copy.deepcopy(model).to(dtype)
    cast = [a.to(dtype) if a.is_floating_point() else a for a in arguments]
    expected = scores_and_gradients(model.train(), arguments, 1.0)
    actual = scores_and_gradients(rounded.train(), cast, 128.0)  # fairseq's first scale of the loss
    tolerance = {torch.bfloat16: 0.08, torch.float16: 0.01}[dtype]
    for one, other in zip(actual, expected, strict=True):
        assert one.isfinite().all()
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("cast", [torch.nn.Module.half, torch.nn.Module.bfloat16])
def test_only_cema_keeps_float32(cast):
    model, _ = classifier("tokens")
    double = cast(copy.deepcopy(model).double())
    model = cast(model)
    for module in [*model.modules(), *double.modules()]:
        kept = isinstance(module, ComplexEMA)
        for parameter in module.parameters(recurse=False):
            assert (parameter.dtype == torch.float32) == kept
    model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {p.dtype for p in model.float().parameters()} == {torch.float32}


def test_slow_decays_survive_bfloat16():
    """1 - |q| = sigmoid(alpha) sigmoid(delta) = 1e-4: lost if q or its logits were rounded."""
    cema = ComplexEMA(4, 2, bidirectional=False)
    with torch.no_grad():
        cema.alpha.fill_(0.0)
        cema.delta.fill_(-8.5171)
    x_BLD = torch.ones(1, 4000, 4)
    expected = cema(x_BLD)[0]
    actual = cema.bfloat16()(x_BLD.bfloat16())[0]
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=1e-2, atol=1e-2)
