"""After use in any mode, dtype or device, and after copying, a model trains as if it were new."""

import copy

import pytest
import torch
from torch._subclasses import FakeTensorMode

from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.decoding import Decoder
from megalodon_tasks.models.layers.rotary import RotaryEmbedding
from tests.models.lm_cases import CHUNK, SIZES, make_lm, make_tokens

TOKENS = make_tokens(length=CHUNK)
INPUTS = ClassifierInputs("tokens", num_classes=3, vocab_size=11)


def make_classifier():
    torch.manual_seed(0)
    return SequenceClassifier(MegalodonConfig(**SIZES), INPUTS).double().eval()


MODELS = {"classifier": make_classifier, "language model": make_lm}


def scores(model, tokens=TOKENS):
    output = model(tokens)
    return output[0] if isinstance(output, tuple) else output


def in_inference_mode(model):
    with torch.inference_mode():
        scores(model)
    return model


def without_gradients(model):
    with torch.no_grad():
        scores(model)
    return model


def in_single_precision(model):
    scores(model.float())
    return model.double()


def in_half_precision(model):
    scores(model.bfloat16())
    return model.double()


def with_fake_tensors(model):
    with FakeTensorMode(allow_non_fake_inputs=True):
        scores(model)
    return model


def on_the_meta_device(model):
    parameters = copy.deepcopy(model.state_dict())
    scores(model.to("meta"), TOKENS.to("meta"))
    model.to_empty(device="cpu").load_state_dict(parameters)
    return model


def under_a_default_device(model):
    scores(model)
    with torch.device("meta"):
        scores(model)
    return model


def copied(model):
    scores(model)
    return copy.deepcopy(in_inference_mode(model))


def loaded(model):
    parameters = in_inference_mode(model).state_dict()
    model.load_state_dict(parameters, assign=True)
    return model


def after_decoding(model):
    """Prepare a decoder in inference mode and use it, where the model has one."""
    with torch.inference_mode():
        output = model(TOKENS)
        if isinstance(output, tuple):
            Decoder(model, output[1])(TOKENS[:, :1])
    return model


USES = [
    after_decoding,
    in_inference_mode,
    without_gradients,
    in_single_precision,
    in_half_precision,
    with_fake_tensors,
    on_the_meta_device,
    under_a_default_device,
    copied,
    loaded,
]


def gradients(model):
    loss = scores(model.train()).square().sum()
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", MODELS)
def test_training_after_use_is_that_of_a_new_model(kind, use):
    model = use(MODELS[kind]())
    new = MODELS[kind]()
    new.load_state_dict(model.state_dict())
    for one, other in zip(gradients(model), gradients(new), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for item in value.values() for t in tensors_in(item)]
    if isinstance(value, (list, tuple, set)):
        return [t for item in value for t in tensors_in(item)]
    return []


@pytest.mark.parametrize("kind", MODELS)
def test_modules_hold_no_tensors_but_parameters_and_buffers(kind):
    """Whatever else a module held would keep the mode, dtype and device of the call that made it."""
    model = in_inference_mode(MODELS[kind]())
    for name, module in model.named_modules():
        known = {"_parameters", "_buffers", "_modules"}
        attributes = {key: item for key, item in vars(module).items() if key not in known}
        assert not tensors_in(attributes), (name, attributes.keys())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 7), (3, 16), (1_000_000, 5)])
def test_turns_are_powers_of_a_rotation(start, length, dtype):
    rotary = RotaryEmbedding(8, 10_000.0)
    turns = rotary.turns(start, length, torch.empty(0, dtype=dtype))
    position = torch.arange(start, start + length, dtype=torch.float64)
    angle = position[:, None] * 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    tolerance = 1e-6 if dtype == torch.complex64 else 1e-9
    expected = torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(turns.to(torch.complex128), expected, rtol=0, atol=tolerance)
    assert turns.dtype == dtype
