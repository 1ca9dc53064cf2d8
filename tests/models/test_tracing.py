"""Whole models under what traces or transforms them: compilers, export, ONNX, second derivatives."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from megalodon_tasks.cuda_ops import native, use_backend
from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.state import state_from_plain, state_to_plain

TINY = {
    "model_dim": 12,
    "num_layers": 1,
    "z_dim": 8,
    "value_dim": 16,
    "ffn_hidden_dim": 24,
    "cema_ndim": 4,
    "chunk_size": 8,
    "norm_num_groups": 3,
}
TOKENS = torch.arange(42).view(2, 21) % 11
LENGTHS = torch.tensor([21, 13])


def classifier():
    torch.manual_seed(0)
    inputs = ClassifierInputs("tokens", num_classes=3, vocab_size=11)
    return SequenceClassifier(MegalodonConfig(**TINY), inputs).eval(), (TOKENS, LENGTHS)


def language_model():
    torch.manual_seed(0)
    return CausalLM(MegalodonConfig(**TINY, causal=True), 11).eval(), (TOKENS,)


MODELS = [classifier, pytest.param(language_model, marks=pytest.mark.slow)]


def tensors(result):
    """The tensors of a result, real."""
    leaves = [leaf for leaf in tree_leaves(result) if leaf is not None]
    return [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in leaves]


def assert_close(found, truth, tolerance):
    assert len(found) == len(truth)
    for value, true_value in zip(found, truth, strict=True):
        torch.testing.assert_close(value, true_value, rtol=tolerance, atol=tolerance)


def gradients(model, result, **options):
    loss = sum(out.square().sum() for out in tensors(result) if out.requires_grad)
    parameters = list(model.parameters())
    return torch.autograd.grad(loss, parameters, materialize_grads=True, **options)


@pytest.mark.parametrize("build", MODELS)
def test_compiles_without_a_graph_break(build):
    model, inputs = build()
    torch.compiler.reset()
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(*inputs)
    truth = model(*inputs)
    assert_close(tensors(found), tensors(truth), 1e-5)
    assert_close(gradients(model, found), gradients(model, truth), 1e-4)


@pytest.mark.parametrize("build", [classifier, language_model])
def test_hessian_vector_products(build):
    model, inputs = build()
    model.double()
    products = []
    for backend in ("reference", "torch"):
        with use_backend(backend), sdpa_kernel(SDPBackend.MATH):
            grads = gradients(model, model(*inputs), create_graph=True)
            along = sum((grad * grad.detach()).sum() for grad in grads if grad.requires_grad)
            parameters = list(model.parameters())
            products.append(torch.autograd.grad(along, parameters, materialize_grads=True))
    assert any(product.abs().max() > 1e-3 for product in products[0])
    for found, truth in zip(*reversed(products), strict=True):
        assert (found - truth).norm() <= 1e-7 * max(truth.norm(), 1.0)


@pytest.mark.skipif(native.why_not(native.CEMA) is not None, reason="no C compiler")
@pytest.mark.parametrize("build", [classifier, language_model])
def test_second_derivatives_are_refused_by_default(build):
    """The default backend of a CPU has none."""
    model, inputs = build()
    with sdpa_kernel(SDPBackend.MATH):
        grads = gradients(model, model(*inputs), create_graph=True)
        total = sum(grad.sum() for grad in grads if grad.requires_grad)
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                with pytest.raises(RuntimeError, match="no second derivative.*use_backend"):
                    torch.autograd.grad(total, parameter, retain_graph=True)


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exported_programs_hold_operators_of_pytorch_only(build, strict):
    model, inputs = build()
    program = torch.export.export(model, inputs, strict=strict)
    assert_close(tensors(program.module()(*inputs)), tensors(model(*inputs)), 1e-5)
    calls = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert calls
    assert not [name for name in calls if "megalodon" in name]


class Step(torch.nn.Module):
    """One step of a language model, with the state as dicts and lists of tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, state):
        scores, state = self.model(tokens, state_from_plain(state))
        return scores, state_to_plain(state)


def a_step():
    model, (tokens,) = language_model()
    with torch.no_grad():
        _, state = model(tokens)
    return Step(model).eval(), (tokens[:, :1], state_to_plain(state))


@pytest.mark.slow
@pytest.mark.parametrize("build", [classifier, a_step])
@pytest.mark.filterwarnings("ignore")
def test_onnx(build, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, inputs = build()
    # The last argument holds keywords: without it a state would be taken for them.
    program = torch.onnx.export(model, (*inputs, {}), dynamo=True, verbose=False)
    assert not {node.op_type for node in program.model.graph} & {"Loop", "Scan", "If"}
    program.save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    names = [value.name for value in session.get_inputs()]
    fed = dict(zip(names, [value.numpy() for value in tensors(inputs)], strict=True))
    found = [torch.from_numpy(value) for value in session.run(None, fed)]
    assert_close(found, tensors(model(*inputs)), 1e-4)


PROGRAMS = {
    "ops": """
        from megalodon_tasks.cuda_ops import cema, rms_norm, sequence_norm
        from tests.cuda_ops.cases import Cema, cast

        leaves = cast(Cema(), Cema(mask="random", state=True).leaves(), torch.float32)
        inputs = tuple(leaves.values())

        def function(*tensors):
            y, state = cema(**dict(zip(leaves, tensors)))
            return sequence_norm(rms_norm(y), y[0, 0], y[0, 1], 3), torch.view_as_real(state)

        check(function, inputs, inputs)
    """,
    "models": """
        from tests.models.test_tracing import classifier, language_model

        for build in (classifier, language_model):
            model, inputs = build()
            check(model, inputs, list(model.parameters()))
    """,
    "timm": """
        from megalodon_tasks.timm_model import MegalodonVision
        from tests.models.test_tracing import TINY

        model = MegalodonVision(TINY, img_size=32, num_classes=3)
        check(model.eval(), (torch.randn(2, 3, 32, 32),), list(model.parameters()))
    """,
}
PREAMBLE = """
    import torch
    from torch.utils._pytree import tree_leaves

    def grads(result, leaves):
        outs = [out for out in tree_leaves(result) if out is not None and out.requires_grad]
        loss = sum((torch.view_as_real(o) if o.is_complex() else o).square().sum() for o in outs)
        return outs[0], *torch.autograd.grad(loss, leaves, materialize_grads=True)

    def check(function, inputs, leaves):
        found = grads(torch.compile(function, fullgraph=True)(*inputs), leaves)
        truth = grads(function(*inputs), leaves)
        largest = max(grad.norm() for grad in truth[1:])
        for value, true_value in zip(found, truth):
            assert (value - true_value).norm() <= 1e-4 * max(true_value.norm(), 0.01 * largest)
        print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_inductor_as_the_first_call_of_a_process(program):
    """Forward and backward, without a graph break."""
    code = textwrap.dedent(PREAMBLE) + textwrap.dedent(PROGRAMS[program])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout
