"""Prepared decoding against ordinary calls of the model: exact, in any order of rows, never stale."""

import contextlib
import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from megalodon_tasks.models import captured_steps, decoding
from megalodon_tasks.models.decoding import Decoder
from megalodon_tasks.models.state import map_state, reorder_state
from tests.models.lm_cases import CHUNK, make_lm, make_tokens

LENGTH = 3 * CHUNK + 3
MODELS = {
    "plain": {},
    "full attention": {"chunk_size": None},
    "one step per chunk": {"chunk_size": 1},
    "swiglu, scaled": {"swiglu": True, "rescale_nffn": True, "share_emb": True},
    "silu after cema": {"cema_activation": "silu", "num_heads": 1},
    "a group per feature": {"norm_num_groups": 0, "scale_emb": False},
}


def decoded(decoder, tokens):
    """Return the scores after each of ``tokens`` (B, L), read one by one."""
    return torch.cat([decoder(tokens[:, at : at + 1]) for at in range(tokens.shape[1])], dim=1)


def after(lm, tokens, steps):
    with torch.no_grad():
        return Decoder(lm, lm(tokens[:, :steps])[1])


def relative(result, expected):
    return ((result.double() - expected).norm() / expected.norm()).item()


def assert_equal_states(one, other):
    ours, theirs = [], []
    map_state(one, ours.append)
    map_state(other, theirs.append)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prompt", [1, CHUNK - 1, CHUNK, CHUNK + 2])
@pytest.mark.parametrize("name", MODELS)
def test_scores_and_states_are_those_of_the_model(name, prompt, monkeypatch):
    monkeypatch.setattr(decoding, "FEWEST_STEPS", 2)  # so that full attention has to grow
    lm, tokens = make_lm(**MODELS[name]), make_tokens(length=LENGTH)
    decoder = after(lm, tokens, prompt)
    with torch.no_grad():
        expected, state = lm(tokens)
    scores = decoded(decoder, tokens[:, prompt:])
    torch.testing.assert_close(scores, expected[:, prompt:], rtol=1e-9, atol=1e-9)
    assert_equal_states(decoder.state(), state)


def test_single_precision_is_within_its_rounding():
    lm, tokens = make_lm(), make_tokens(batch=3, length=60)
    with torch.no_grad():
        expected = lm(tokens)[0][:, 5:]
    scores = decoded(after(copy.deepcopy(lm).float(), tokens, 5), tokens[:, 5:])
    assert scores.dtype == torch.float32
    assert relative(scores, expected) < 1e-5


@pytest.mark.parametrize("way", ["autocast", "parameters"])
def test_half_precision_is_within_its_rounding(way):
    lm, tokens = make_lm(), make_tokens(batch=3, length=20)
    with torch.no_grad():
        expected = lm(tokens)[0][:, 5:]
    half = copy.deepcopy(lm).to(torch.float32 if way == "autocast" else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        decoder = after(half, tokens, 5)
        scores = decoded(decoder, tokens[:, 5:])
        ordinary = half(tokens)[0][:, 5:]
    assert scores.dtype == ordinary.dtype == torch.bfloat16
    assert relative(scores, expected) < max(2e-2, 1.2 * relative(ordinary, expected))
    half(tokens[:, -1:], decoder.state())


def test_autocast_around_the_steps_changes_nothing():
    lm, tokens = make_lm().float(), make_tokens(length=9)
    plain, around = after(lm, tokens, 3), after(lm, tokens, 3)
    expected = [plain.features(tokens[:, at : at + 1]) for at in range(3, 9)]
    with torch.autocast("cpu", torch.bfloat16):
        features = [around.features(tokens[:, at : at + 1]) for at in range(3, 9)]
    torch.testing.assert_close(features, expected, rtol=0, atol=0)


def test_nothing_but_its_owner_holds_a_decoder():
    """Its memory, which may be large, is freed at once, without a search for cycles."""
    decoder = after(make_lm(), make_tokens(), 3)
    decoder(make_tokens(length=1))
    gone = weakref.ref(decoder)
    gc.disable()
    try:
        del decoder
        assert gone() is None
    finally:
        gc.enable()


def test_a_state_can_be_taken_out_and_put_back_at_any_step():
    lm, tokens = make_lm(), make_tokens(length=LENGTH)
    expected, decoder = lm(tokens)[0], after(lm, tokens, 1)
    for at in range(1, LENGTH - 1):
        scores = decoder(tokens[:, at : at + 1])
        torch.testing.assert_close(scores[:, 0], expected[:, at], rtol=1e-9, atol=1e-9)
        taken = decoder.state()
        ordinary, _ = lm(tokens[:, at + 1 :], taken)
        torch.testing.assert_close(ordinary, expected[:, at + 1 :], rtol=1e-9, atol=1e-9)
        before = map_state(taken, torch.clone)
        decoder(tokens[:, at + 1 : at + 2])  # does not write to the state that was taken
        assert_equal_states(taken, before)
        decoder = Decoder(lm, taken)


@pytest.mark.parametrize("lengths", [[6, 3, 5], [4, 8, 1]])
def test_prompts_of_unequal_length(lengths):
    """Padded prompts continue as in ordinary calls: padded keys stay hidden until the chunk ends."""
    lm, tokens = make_lm(), make_tokens(batch=3, length=20)
    padded = torch.arange(8) >= torch.tensor(lengths)[:, None]
    with torch.no_grad():
        _, state = lm.features(tokens[:, :8], padding_mask_BL=padded)
        _, part = lm.features(tokens[:, :6], padding_mask_BL=padded[:, :6])
        for start, state_then in ((8, state), (6, part)):
            expected, end = lm(tokens[:, start:], state_then)
            decoder = Decoder(lm, state_then)
            scores = decoded(decoder, tokens[:, start:])
            torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)
            assert_equal_states(decoder.state()._replace(blocks=()), end._replace(blocks=()))
        decoder = Decoder(lm, part)
        _, end = lm(tokens[:, 6:7], part)
        decoder(tokens[:, 6:7])
        assert_equal_states(decoder.state(), end)


@pytest.mark.parametrize("padded", [False, True])
def test_rows_can_be_selected_after_any_step(padded):
    """Repeated, dropped and swapped rows, and batches that grow and shrink, as in beam search."""
    draw = torch.Generator().manual_seed(0)
    lm, tokens = make_lm(), make_tokens(batch=4, length=3)
    mask = torch.arange(3) >= torch.tensor([3, 2, 3, 1])[:, None] if padded else None
    with torch.no_grad():
        _, state = lm.features(tokens, padding_mask_BL=mask)
        decoder = Decoder(lm, state)
        for step, batch in enumerate([4, 4, 4, 4, 4, 4, 6, 6, 6, 3, 3, 3, 3, 5, 5, 5]):
            rows = len(state.norm.count)
            order = torch.randint(rows, (batch,), generator=draw)
            order = torch.randperm(rows, generator=draw) if step in (1, 8) else order
            state, token = (
                reorder_state(state, order),
                make_tokens(batch=batch, length=1) + step % 5,
            )
            decoder.reorder(order)
            expected, state = lm(token % 11, state)
            torch.testing.assert_close(decoder(token % 11), expected, rtol=1e-9, atol=1e-9)
    assert_equal_states(decoder.state(), state)


def write(lm):
    with torch.no_grad():
        lm.stack.blocks[1].attention.cema.alpha += 0.1


def write_matrix(lm):
    with torch.no_grad():
        lm.output.weight[3, 3] = 7.0


def load(lm):
    lm.load_state_dict(make_lm().state_dict())


def load_by_assignment(lm):
    lm.load_state_dict(make_lm().state_dict(), assign=True)


def convert(lm):
    lm.float()


def replace(lm):
    norm = lm.stack.blocks[0].attention.norm
    norm.weight = nn.Parameter(norm.weight.detach() + 1)


def optimize(lm):
    optimizer = torch.optim.SGD(lm.parameters(), lr=0.1)
    lm(make_tokens())[0].sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "change", [write, write_matrix, load, load_by_assignment, convert, replace, optimize]
)
def test_a_changed_parameter_is_noticed(change):
    lm, tokens = make_lm(), make_tokens(length=9)
    decoder = after(lm, tokens, 3)
    decoder(tokens[:, 3:4])
    change(lm)
    with pytest.raises(ValueError, match="parameter of the model has changed"):
        decoder(tokens[:, 4:5])
    scores = Decoder(lm, decoder.state())(tokens[:, 4:5])
    assert torch.isfinite(scores).all()


def test_training_mode_is_refused():
    lm, tokens = make_lm(), make_tokens(length=5)
    decoder = after(lm, tokens, 3)
    lm.train()
    with pytest.raises(ValueError, match="training=True"):
        decoder(tokens[:, 3:4])
    with pytest.raises(ValueError, match="training=True"):
        Decoder(lm, decoder.state())


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_an_interrupted_step_is_not_continued(error):
    def interrupt(module, inputs):
        raise error

    lm, tokens = make_lm(), make_tokens(length=5)
    with torch.no_grad():
        _, state = lm(tokens[:, :3])
    lm.stack.blocks[1].attention.v_proj.register_forward_pre_hook(interrupt)
    decoder = Decoder(lm, state)
    with pytest.raises(error):
        decoder(tokens[:, 3:4])
    for then in (decoder.state, lambda: decoder(tokens[:, 3:4])):
        with pytest.raises(ValueError, match="was interrupted"):
            then()


@pytest.mark.parametrize("tokens", [torch.ones(2, 2), torch.ones(3, 1), torch.ones(2)])
def test_tokens_of_another_shape_are_refused(tokens):
    decoder = after(make_lm(), make_tokens(), 3)
    with pytest.raises(ValueError, match=r"expected \(2, 1\)"):
        decoder(tokens.long())


def test_a_token_outside_the_vocabulary_is_refused_and_not_read():
    lm, tokens = make_lm(), make_tokens()
    decoder = after(lm, tokens, 3)
    with pytest.raises(ValueError, match="token id 11 is out of range"):
        decoder(torch.tensor([[4], [11]]))
    expected = lm(tokens[:, :4])[0][:, 3:].detach()
    torch.testing.assert_close(decoder(tokens[:, 3:4]), expected)


@pytest.mark.parametrize(
    "other",
    [{"num_layers": 1}, {"model_dim": 20}, {"cema_ndim": 2}, {"chunk_size": 9}, {"z_dim": 4}]
    + [{"value_dim": 8}, {"num_heads": 1}, {"norm_num_groups": 2}],
)
def test_a_state_of_another_model_is_refused(other):
    _, state = make_lm(**other)(make_tokens(length=8)[:, :7])
    with pytest.raises(ValueError, match="the state"):
        Decoder(make_lm(), state)


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, contextlib.nullcontext])
@pytest.mark.parametrize("then", [torch.inference_mode, torch.no_grad, contextlib.nullcontext])
def test_modes_of_the_caller_may_change(first, then):
    lm, tokens = make_lm(), make_tokens(length=LENGTH)
    expected = lm(tokens)[0].detach()
    with first():
        decoder = Decoder(lm, lm(tokens[:, :2])[1])
        decoded(decoder, tokens[:, 2:7])
    with then():
        decoder.reorder(torch.tensor([1, 1]))
        scores = decoded(decoder, tokens[[1, 1], 7:])
        scores += 0.0  # an inference tensor would refuse this outside of its mode
        assert not scores.requires_grad
        torch.testing.assert_close(scores, expected[[1, 1], 7:], rtol=1e-9, atol=1e-9)
    lm(tokens, decoder.state() if then is not torch.inference_mode else None)[0].sum().backward()


@pytest.mark.parametrize("half", [False, True])
def test_changed_layers_are_called_as_they_are(half):
    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 1.5

    lm, tokens = make_lm(), make_tokens()
    attention = lm.stack.blocks[0].attention
    attention.v_proj = Adapted(*reversed(attention.v_proj.weight.shape)).double()
    lm.stack.blocks[1].feed_forward.fc1.register_forward_hook(lambda m, inputs, output: -output)
    expected = lm(tokens)[0].detach()[:, 3:]
    lm = lm.float() if half else lm
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        scores = decoded(after(lm, tokens, 3), tokens[:, 3:])
    assert relative(scores, expected) < (3e-2 if half else 1e-9)


class Recorded(TorchDispatchMode):
    """Stand for a CUDA graph: replay the same operations on the same tensors, without the program."""

    WAITS = ("_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def pool(self):
        return None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(word in func.name() for word in self.WAITS), func
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        self.replays += 1
        if self.replays == 1:
            return  # unlike a GPU's, this recording has run the step
        for func, args, kwargs, result in self.calls:
            new = func(*args, **kwargs)
            if isinstance(result, torch.Tensor) and not func._schema.is_mutable:
                result.copy_(new)
            elif isinstance(result, tuple):
                for old, value in zip(result, new, strict=True):
                    old.copy_(value)


@pytest.mark.parametrize("chunk_size", [CHUNK, 7, None])
def test_a_recorded_step_serves_all_later_steps(chunk_size, monkeypatch):
    """The path of CUDA graphs with a recording in their place: fixed addresses, no wait for values."""
    monkeypatch.setattr(decoding, "CAPTURING", {"cpu"})
    monkeypatch.setattr(decoding, "STEPS_PER_GRAPH", 4)
    monkeypatch.setattr(captured_steps, "STEPS_BEFORE_CAPTURE", 1)
    monkeypatch.setattr(decoding, "FEWEST_STEPS", 8)
    recordings = []
    monkeypatch.setattr(
        torch.cuda, "CUDAGraph", lambda: recordings.append(Recorded()) or recordings[-1]
    )
    monkeypatch.setattr(torch.cuda, "graph", lambda recording, pool: recording)
    lm, tokens = make_lm(chunk_size=chunk_size), make_tokens(batch=3, length=40)
    decoder = after(lm, tokens, 2)
    scores = [decoded(decoder, tokens[:, 2:20])]
    order = torch.tensor([2, 0, 2])
    decoder.reorder(order)
    scores.append(decoded(decoder, tokens[order, 20:]))
    with torch.no_grad():
        first, state = lm(tokens[:, :20])
        expected = first[:, 2:], lm(tokens[order, 20:], reorder_state(state, order))[0]
    torch.testing.assert_close(scores, list(expected), rtol=1e-9, atol=1e-9)
    assert sum(recording.replays for recording in recordings) > 2 * len(recordings)


@pytest.mark.gpu
@pytest.mark.parametrize("chunk_size", [300, None])
def test_graphs_on_a_gpu(chunk_size):
    lm, tokens = make_lm(chunk_size=chunk_size), make_tokens(batch=3, length=700)
    order = torch.tensor([2, 0, 2])
    with torch.no_grad():
        first, state = lm(tokens[:, :400])
        second, _ = lm(tokens[order, 400:], reorder_state(state, order))
    decoder = after(lm.float().cuda(), tokens.cuda(), 2)
    scores = decoded(decoder, tokens[:, 2:400].cuda())
    decoder.reorder(order.cuda())
    later = decoded(decoder, tokens[order, 400:].cuda())
    assert relative(scores.cpu(), first[:, 2:]) < 1e-5
    assert relative(later.cpu(), second) < 1e-5
