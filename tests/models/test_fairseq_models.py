"""The registered models: presets, adaptive embedding and softmax, states, padding."""

import functools
import itertools

import pytest
import torch
from fairseq import models
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from omegaconf import OmegaConf

from megalodon_tasks.models.fairseq_models import MegalodonLanguageModelConfig, build_language_model
from megalodon_tasks.models.presets import LM_PRESETS
from megalodon_tasks.models.released.names import load_released, to_released
from megalodon_tasks.models.state import Carried
from tests.models.lm_cases import SIZES, make_dictionary, make_model, make_tokens, pieces_of

# Vocabulary -> parameters.  The last four are those of the authors' models of these sizes; the first is
# the 252M of the paper's table 7, the second Mega's 39M, the third the 1.3B of its table 8.
COUNTS = {
    "megalodon_lm_wikitext103": (267_744, 252_182_528),
    "megalodon_lm_enwik8": (208, 39_117_312),
    "megalodon_lm_pg19": (32_128, 1_327_890_432),
    "megalodon_lm_200m": (32_000, 220_627_968),
    "megalodon_lm_1.3b": (32_000, 1_342_832_640),
    "megalodon_lm_7b": (32_000, 7_385_817_088),
}
ADAPTIVE = {"adaptive_cutoffs": "5,8", "scale_emb": True}
TIED = ADAPTIVE | {"share_emb": True}
ENDS = [{}, {"scale_emb": True, "share_emb": True}, ADAPTIVE, TIED]


class TaskOf:
    """As much of a task as a model and a criterion need."""

    def __init__(self, dictionary=None):
        self.source_dictionary = self.target_dictionary = dictionary or make_dictionary()


def registered(name, **changes):
    """The configuration that fairseq makes of ``model._name`` in a YAML, built for the toy task."""
    dataclass = models.MODEL_DATACLASS_REGISTRY[name]
    cfg = OmegaConf.merge(OmegaConf.structured(dataclass), {"_name": name, **changes})
    return models.build_model(cfg, TaskOf()), cfg


@pytest.mark.parametrize("name", LM_PRESETS)
def test_presets_have_the_published_sizes(name):
    vocabulary, expected = COUNTS[name]
    with torch.device("meta"):
        lm = build_language_model(MegalodonLanguageModelConfig(**LM_PRESETS[name]), vocabulary, 1)
    assert sum(p.numel() for p in lm.parameters()) == expected
    assert lm.stack.causal


@pytest.mark.parametrize("name", LM_PRESETS)
def test_presets_are_registered_with_their_sizes(name):
    small = SIZES | {"adaptive_cutoffs": "5"} if "adaptive_cutoffs" in LM_PRESETS[name] else SIZES
    model, cfg = registered(name, **small)
    assert type(model).__name__ == f"Model_{name}"
    defaults = models.MODEL_DATACLASS_REGISTRY[name]()
    assert {k: getattr(defaults, k) for k in LM_PRESETS[name]} == LM_PRESETS[name]
    assert cfg.rope_base == LM_PRESETS[name].get("rope_base", 10000.0)


@pytest.mark.parametrize("ends", ENDS)
def test_probabilities_sum_to_one(ends):
    model = make_model(**ends)
    probabilities = model.get_normalized_probs(model(make_tokens()), log_probs=False)
    assert probabilities.shape == (2, 15, 11)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones_like(probabilities[..., 0]))


@pytest.mark.parametrize("ends", ENDS)
def test_scores_and_losses_agree_with_the_probabilities(ends):
    model, tokens = make_model(**ends), make_tokens(length=16)
    source, target = tokens[:, :-1], tokens[:, 1:]
    log_probs = model.get_normalized_probs(model(source), log_probs=True)
    scores, _ = model.decoder.lm(source)
    # fairseq's log_softmax is single precision.
    torch.testing.assert_close(scores.log_softmax(-1).float(), log_probs.float())
    expected = -log_probs.gather(-1, target[..., None])[..., 0]
    nll, _ = model.decoder.lm.nll(source, target)
    torch.testing.assert_close(nll.float(), expected.float(), rtol=1e-5, atol=1e-5)


def test_fairseq_itself_leaves_out_the_second_word_of_a_band():
    """Without the patch its loss lacks words; see fairseq_compat/adaptive_loss.py."""
    model, source = make_model(**ADAPTIVE), make_tokens()
    criterion = AdaptiveLoss(TaskOf(), sentence_avg=False)
    for word, lacks in ((5, False), (6, True), (7, False), (9, True)):
        sample = {"net_input": {"src_tokens": source}, "target": torch.full_like(source, word)}
        patched, _, logged = criterion(model, sample)
        stock, _, theirs = AdaptiveLoss.forward.__wrapped__(criterion, model, sample)
        assert logged.keys() == theirs.keys()
        assert all(logged[key] == theirs[key] for key in logged.keys() - {"loss"})
        assert (stock.item() < patched.item() - 1) == lacks


@pytest.mark.parametrize("ends", ENDS)
def test_fairseq_criterion_gives_the_same_loss(ends):
    model, tokens = make_model(**ends), make_tokens(length=16)
    sample = {
        "net_input": {"src_tokens": tokens[:, :-1], "src_lengths": torch.tensor([15, 15])},
        "target": tokens[:, 1:].clone(),
        "ntokens": 30,
    }
    nll, _ = model.decoder.lm.nll(tokens[:, :-1], sample["target"])
    # The second row is shorter.
    sample["target"][1, 12:] = sample["net_input"]["src_tokens"][1, 12:] = 1
    criterion = AdaptiveLoss if "adaptive_cutoffs" in ends else CrossEntropyCriterion
    loss, _, logged = criterion(TaskOf(), sentence_avg=False)(model, sample)
    assert loss.item() == pytest.approx(nll[0].sum().item() + nll[1, :12].sum().item(), rel=1e-5)
    assert logged["nsentences"] == 2


@pytest.mark.parametrize("ends", ENDS[:2])
@pytest.mark.parametrize("reduce", [True, False])
def test_cross_entropy_is_that_of_fairseq(ends, reduce):
    """fairseq's own code computes it from the scores of all tokens (not for an adaptive softmax)."""
    model, tokens = make_model(**ends).train(), make_tokens(length=16)
    tokens[1, 13:] = 1
    sample = {
        "net_input": {"src_tokens": tokens[:, :-1]},
        "target": tokens[:, 1:].clone(),
        "ntokens": 27,
    }
    criterion = CrossEntropyCriterion(TaskOf(), sentence_avg=False)

    def run(forward):
        loss, size, logged = forward(model, sample, reduce=reduce)
        gradients = torch.autograd.grad(loss.sum(), tuple(model.parameters()))
        return [loss, size, *(logged[key] for key in sorted(logged)), *gradients]

    stock = functools.partial(CrossEntropyCriterion.forward.__wrapped__, criterion)
    for one, other in zip(run(criterion), run(stock), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_tied_adaptive_ends_share_weights_and_projections():
    tied, free = make_model(**TIED).decoder.lm, make_model(**ADAPTIVE).decoder.lm
    for band in (1, 2):
        embedding, projection = tied.embedding.weights_for_band(band)
        assert tied.output.tail[band - 1][2].weight is embedding
        assert tied.output.tail[band - 1][0].weight is projection
    assert free.output.tail[0][2].weight is not free.embedding.weights_for_band(1)[0]
    assert make_model().decoder.adaptive_softmax is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adaptive_cutoffs": "8,5"}, "adaptive_cutoffs='8,5' must be rising numbers"),
        ({"adaptive_cutoffs": "5,11"}, "between 0 and the size of the vocabulary, 11"),
        ({"adaptive_cutoffs": "five"}, "adaptive_cutoffs='five'"),
        ({"adaptive_cutoffs": "5,8", "adaptive_factor": 64.0}, "adaptive_factor=64.0 leaves no"),
        ({"adaptive_cutoffs": "5", "adaptive_factor": 0.5}, "adaptive_factor=0.5 must be at least"),
        ({"adaptive_dropout": 1.0}, "adaptive_dropout=1.0 must be in"),
        ({"chunk_size": 0}, "model.chunk_size=0"),
    ],
)
def test_impossible_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make_model(**changes)


def test_model_needs_a_dictionary():
    task = TaskOf()
    task.source_dictionary = None
    with pytest.raises(ValueError, match="TaskOf has no dictionary"):
        models.MODEL_REGISTRY["megalodon_lm"].build_model(MegalodonLanguageModelConfig(), task)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("lengths", [[1] * 14, [6, 1, 1, 1], [5, 4, 3]])
def test_incremental_state_reads_a_prompt_then_steps(ends, lengths):
    model, tokens, incremental = make_model(**ends), make_tokens(), {}
    outputs, read = [], 0
    for piece in pieces_of(tokens, lengths):
        read += piece.shape[1]
        # All tokens so far, as fairseq's generator passes them.
        outputs.append(model.decoder(tokens[:, :read], incremental_state=incremental)[0])
    expected, _ = model(tokens)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ends", ENDS)
def test_single_tokens_without_gradients_are_decoded(ends):
    """Single tokens, pieces, rows selected, a padded step and a step with gradients, in one sequence."""
    model, tokens, incremental = make_model(**ends), make_tokens(batch=3), {}
    tokens[2, 13:] = 1  # padding
    expected = model(tokens)[0].detach()
    order = torch.tensor([2, 0, 2])
    for start, read in itertools.pairwise([0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15]):
        with torch.set_grad_enabled(read == 11):
            scores, extra = model.decoder(tokens[:, :read], incremental_state=incremental)
        torch.testing.assert_close(scores, expected[:, start:read], rtol=1e-9, atol=1e-9)
        decoded = start > 0 and read - start == 1 and read not in (11, 14, 15)
        assert (extra["state"] is None) == decoded
        if read in (3, 7, 9):
            model.decoder.reorder_incremental_state(incremental, order)
            tokens, expected = tokens[order], expected[order]
            order = torch.tensor([1, 0, 2])


def test_incremental_state_refuses_to_read_twice():
    model, tokens, incremental = make_model(), make_tokens(), {}
    model.decoder(tokens, incremental_state=incremental)
    with pytest.raises(ValueError, match="got 1 tokens with an incremental state that has read 15"):
        model.decoder(tokens[:, -1:], incremental_state=incremental)


@pytest.mark.parametrize("read", [3, 4, 9])
def test_reordered_rows_continue_after_chunk_boundaries(read):
    model, tokens, incremental = make_model(), make_tokens(batch=3), {}
    model.decoder(tokens[:, :read], incremental_state=incremental)
    order = torch.tensor([2, 0, 0, 1])
    model.decoder.reorder_incremental_state_scripting(incremental, order)
    result, _ = model.decoder(tokens[order], incremental_state=incremental)
    expected = model(tokens)[0][order, read:]
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def test_state_continues():
    model, tokens = make_model(), make_tokens()
    expected, _ = model(tokens)
    _, extra = model(tokens[:, :6])
    assert extra["state"].norm.mean.requires_grad
    torch.testing.assert_close(model(tokens[:, 6:], state=extra["state"])[0], expected[:, 6:])


@pytest.mark.parametrize("packed", [False, True])
def test_each_model_of_an_ensemble_continues_from_its_own_carried_state(packed):
    tokens, carried = make_tokens(), Carried()
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[1, 4] = starts[0, 9] = packed
    models_ = [make_model(), make_model(rope_base=100.0)]
    for model in models_:
        model(tokens[:, :6], carried=carried, document_starts=starts[:, :6])
    for model in models_:
        model(tokens[:, 6:9], carried=carried, document_starts=starts[:, 6:9])
    for model in models_:
        expected, _ = model(tokens, document_starts=starts)
        piece = {"carried": carried, "document_starts": starts[:, 9:]}
        torch.testing.assert_close(model(tokens[:, 9:], **piece)[0], expected[:, 9:])


def test_a_carried_state_is_cut_from_the_graph_and_may_begin_anywhere():
    model, tokens, carried = make_model(), make_tokens(), Carried()
    model(tokens[:, :6], carried=carried)
    assert not carried.state.norm.mean.requires_grad
    restored = Carried(carried.state)
    expected, _ = model(tokens)
    torch.testing.assert_close(model(tokens[:, 6:], carried=restored)[0], expected[:, 6:])


def test_features_only_leaves_out_the_scores():
    model, tokens = make_model(), make_tokens()
    features, _ = model(tokens, features_only=True)
    assert features.shape == (2, 15, SIZES["model_dim"])
    torch.testing.assert_close(model.output_layer(features), model(tokens)[0])
    torch.testing.assert_close(model.extract_features(tokens)[0], features)


def test_right_padding_changes_nothing():
    model, tokens = make_model(), make_tokens()
    padded = torch.cat((tokens, torch.full((2, 5), 1)), 1)
    padded[1, 9:] = 1
    result, _ = model(padded)
    torch.testing.assert_close(result[0, :15], model(tokens)[0][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result[1, :9], model(tokens[1:, :9])[0][0], rtol=1e-9, atol=1e-9)


def test_left_padding_is_refused():
    model, tokens = make_model(), make_tokens()
    tokens[1, :3] = 1
    with pytest.raises(ValueError, match="row 1 has padding before a real token.*left_pad=False"):
        model(tokens)


def test_a_trained_model_has_the_released_form():
    model, tokens = make_model(scale_emb=True, swiglu=True), make_tokens()
    lm = model.decoder.lm
    config = SIZES | {"vocab_size": 11, "scale_emb": True}
    back = load_released(to_released(lm), config | {"swiglu": True})
    torch.testing.assert_close(back(tokens)[0], model(tokens)[0])
