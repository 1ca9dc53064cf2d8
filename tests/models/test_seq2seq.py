"""The encoder-decoder in plain PyTorch against its equations; padding, states, sharing, bad input."""

import pytest
import torch

from megalodon_tasks.cuda_ops import use_backend
from megalodon_tasks.models.layers.cross_attention import GatedCrossAttention
from megalodon_tasks.models.seq2seq import Encoded, Seq2Seq, Seq2SeqConfig
from megalodon_tasks.models.state import reorder_state
from tests.models import seq2seq_reference
from tests.models.lm_cases import perturbed, pieces_of

PAD, EOS = 1, 2
SIZES = {
    "model_dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "z_dim": 8,
    "value_dim": 24,
    "ffn_hidden_dim": 20,
    "cema_ndim": 4,
    "norm_num_groups": 4,
    "chunk_size": 4,
}


def make_config(**changes):
    return Seq2SeqConfig(**(SIZES | changes))


def make_model(source=13, target=11, **changes):
    torch.manual_seed(0)
    return perturbed(Seq2Seq(make_config(**changes), source, target, PAD))


def draw(length, symbols, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, symbols, (length,), generator=generator)


SOURCES = [draw(n, 13, seed=n) for n in (7, 3, 10)]
TARGETS = [draw(n, 11, seed=20 + n) for n in (5, 9, 1)]


def padded(rows, left=False, more=0):
    longest = max(map(len, rows)) + more
    fill = [row.new_full((longest - len(row),), PAD) for row in rows]
    return torch.stack(
        [torch.cat((f, r) if left else (r, f)) for r, f in zip(rows, fill, strict=True)]
    )


def real(tokens):
    return tokens != PAD


FORMS = [
    {},
    {"chunk_size": None, "decoder_layers": 1},
    {"num_heads": 1, "chunk_size": 3, "norm_num_groups": 0},
    {"share_decoder_input_output_embed": True, "decoder_layers": 3},
    {"share_all_embeddings": True},
]


@pytest.mark.parametrize("changes", FORMS, ids=str)
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_scores_and_gradients_are_those_of_the_equations(changes, backend):
    sizes = (11, 11) if "share_all_embeddings" in changes else (13, 11)
    model = make_model(*sizes, **changes)
    named = dict(model.named_parameters())
    state = {name: named.get(name, tensor) for name, tensor in model.state_dict().items()}
    state["encoder.embedding.weight"] = model.encoder.embedding.weight
    state["decoder.embedding.weight"] = model.decoder.embedding.weight
    state["decoder.output.weight"] = model.decoder.output.weight
    sources = [row.clamp(max=sizes[0] - 1) for row in SOURCES]
    truths = [
        seq2seq_reference.scores(state, make_config(**changes), source, target)
        for source, target in zip(sources, TARGETS, strict=True)
    ]
    target = padded(TARGETS)
    with use_backend(backend):
        found = model(padded(sources, left=True), target)
    weights = torch.randn(11, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found[real(target)], torch.cat(truths), rtol=1e-9, atol=1e-10)
    losses = (found[real(target)] @ weights).sum(), (torch.cat(truths) @ weights).sum()
    grads, true_grads = (torch.autograd.grad(loss, list(named.values())) for loss in losses)
    for name, grad, true_grad in zip(named, grads, true_grads, strict=True):
        torch.testing.assert_close(
            grad, true_grad, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("backend", ["native", pytest.param("triton", marks=pytest.mark.slow)])
def test_kernels_agree_in_float32(backend):
    """``native`` has CEMA only; the other ops then take their default."""
    model, inputs = make_model(), (padded(SOURCES, left=True), padded(TARGETS))
    truth = model(*inputs)
    if backend == "triton":
        with use_backend("triton"):
            found = model.float()(*inputs)
    else:
        found = model.float()(*inputs)
    torch.testing.assert_close(found.double(), truth, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "source", [{"left": True}, {"more": 6}, {"left": True, "more": 9}], ids=str
)
@pytest.mark.parametrize("target", [{}, {"left": True}, {"left": True, "more": 5}], ids=str)
def test_padding_does_not_matter(source, target):
    model = make_model()
    alone = [model(s[None], t[None])[0] for s, t in zip(SOURCES, TARGETS, strict=True)]
    tokens = padded(TARGETS, **target)
    together = model(padded(SOURCES, **source), tokens)
    torch.testing.assert_close(together[real(tokens)], torch.cat(alone), rtol=1e-10, atol=1e-11)


def test_padding_in_the_middle_is_as_absent():
    model = make_model()
    row = torch.tensor([[PAD, 5, PAD, 6, 7, PAD, PAD, 2]])
    target = TARGETS[0][None]
    torch.testing.assert_close(model(row, target), model(torch.tensor([[5, 6, 7, 2]]), target))


def test_the_encoder_gives_zeros_at_padding_and_vectors_at_their_places():
    model, tokens = make_model(), padded(SOURCES, left=True)
    encoded = model.encoder(tokens)
    assert torch.equal(encoded.padding_mask, tokens == PAD)
    assert not encoded.vectors[tokens == PAD].any()
    torch.testing.assert_close(encoded.vectors[1, -3:], model.encoder(SOURCES[1][None]).vectors[0])


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
@pytest.mark.parametrize("pieces", [[1] * 11, [3, 5], [8]], ids=str)
def test_a_target_in_pieces_equals_the_whole(chunk_size, pieces):
    model = make_model(chunk_size=chunk_size)
    source = padded(SOURCES[:2], left=True)
    target = torch.stack([draw(12, 11, seed=1), draw(12, 11, seed=2)])
    sources, state = model.decoder.read_source(model.encoder(source)), None
    outputs = []
    for piece in pieces_of(target, pieces):
        x, state = model.decoder.features(piece, sources, state)
        outputs.append(model.decoder.output.scores(x))
    torch.testing.assert_close(torch.cat(outputs, 1), model(source, target))


def test_reordered_states_continue_the_rows_that_they_belong_to():
    model, order = make_model(), torch.tensor([2, 0, 2, 1])
    source, target = (
        padded(SOURCES, left=True),
        torch.stack([draw(9, 11, seed=n) for n in range(3)]),
    )
    sources, state = model.decoder.read_source(model.encoder(source)), None
    _, state = model.decoder.features(target[:, :6], sources, state)
    sources = model.decoder.read_source(model.encoder(source[order]))
    x, _ = model.decoder.features(target[order, 6:], sources, reorder_state(state, order))
    whole = model(source[order], target[order])
    torch.testing.assert_close(model.decoder.output.scores(x), whole[:, 6:])


def test_the_decoder_sees_the_whole_source_and_no_later_target():
    model, source, target = make_model(), SOURCES[2][None], draw(6, 11, seed=1)[None]
    before = model(source, target)
    for at in (0, -1):
        changed = source.clone()
        changed[0, at] = 4 if source[0, at] != 4 else 5
        assert (model(changed, target) != before).any(-1).all()
    later = target.clone()
    later[0, 4:] = 4
    torch.testing.assert_close(model(source, later)[:, :4], before[:, :4])


def test_checkpointed_activations_give_the_same_gradients():
    inputs = padded(SOURCES, left=True), padded(TARGETS)
    grads = []
    for checkpointed in (False, True):
        model = make_model(checkpoint_activations=checkpointed, dropout=0.1, attention_dropout=0.2)
        torch.manual_seed(3)
        model.train()(*inputs).square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*grads)


def test_dropout_acts_on_the_cross_branch():
    torch.manual_seed(0)
    for change in ("dropout", "hidden_dropout", "attention_dropout"):
        layer = GatedCrossAttention(make_config(**{change: 0.5}))
        source = layer.keys_and_values(torch.randn(2, 7, 16), None)
        y = torch.randn(2, 3, 16)
        assert not torch.equal(layer(y, source), layer(y, source)), change
        layer.eval()
        assert torch.equal(layer(y, source), layer(y, source)), change


def test_alignment_is_what_the_last_block_attends_with():
    model, target = make_model(), padded(TARGETS, left=True)
    source = padded(SOURCES, left=True)
    sources = model.decoder.read_source(model.encoder(source))
    x, weights = model.decoder.alignment(target, sources)
    torch.testing.assert_close(x, model.decoder.features(target, sources)[0])
    assert weights.shape == (3, 9, 10)
    torch.testing.assert_close(weights.sum(-1)[real(target)], torch.ones(15).double())
    assert not weights.transpose(1, 2)[~real(source)].any()
    alone = model.decoder.read_source(model.encoder(SOURCES[0][None]))
    _, expected = model.decoder.alignment(TARGETS[0][None], alone)
    torch.testing.assert_close(weights[0, -5:, -7:], expected[0])


def test_queries_and_keys_start_at_the_length_that_is_asked_for():
    layer = Seq2Seq(make_config(cross_scale=2.0), 13, 11, PAD).decoder.stack.blocks[0].cross
    source = layer.keys_and_values(torch.randn(2, 7, 16), None)
    lengths = source.key.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 2.0), rtol=1e-3, atol=0)


def test_shared_matrices_are_one():
    shared = make_model(11, 11, share_all_embeddings=True)
    assert shared.encoder.embedding.weight is shared.decoder.embedding.weight
    assert shared.decoder.output.weight is shared.decoder.embedding.weight
    tied = make_model(share_decoder_input_output_embed=True)
    assert tied.decoder.output.weight is tied.decoder.embedding.weight
    assert tied.encoder.embedding.weight is not tied.decoder.embedding.weight


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(2, 0, dtype=torch.int64), r"source has shape \(2, 0\)"),
        (torch.tensor([[4, 5], [PAD, PAD]]), "row 1 of the source is padding only"),
        (torch.tensor([[PAD]]), "row 0 of the source is padding only"),
    ],
)
def test_a_source_without_symbols_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        make_model().encoder(source)


def test_an_encoder_of_another_width_is_refused():
    with pytest.raises(ValueError, match="output has 12 features, this decoder reads 16"):
        make_model().decoder.read_source(Encoded(torch.zeros(1, 3, 12), None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_layers": 0}, "decoder_layers=0"),
        ({"cross_scale": 0.0}, "cross_scale=0.0 must be greater than 0"),
        ({"share_all_embeddings": True}, "source's has 13 symbols and the target's 11"),
        (
            {"model_dim": 18, "num_heads": 4, "norm_num_groups": 0},
            "num_heads=4 does not divide model.model_dim=18",
        ),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_model(**changes)
