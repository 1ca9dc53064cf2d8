"""The encoder-decoder and the encoder as models of fairseq: presets, generation, heads, bad input."""

import argparse

import pytest
import torch
from fairseq import models
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator, SequenceGeneratorWithAlignment
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import OmegaConf
from torch import nn

from megalodon_tasks.errors import UserError
from megalodon_tasks.models.presets import SEQ2SEQ_PRESETS
from megalodon_tasks.models.seq2seq import Seq2Seq, Seq2SeqConfig
from tests.models.lm_cases import perturbed
from tests.models.test_seq2seq import PAD, SIZES, SOURCES, TARGETS, draw, padded, real

# With a joined vocabulary of 32,768 symbols and one matrix for all.
COUNTS = {"megalodon_wmt_en_de": 61_513_728, "megalodon_wmt_en_de_big": 211_107_840}
LONGEST = 12


def dictionary_of(size):
    dictionary = Dictionary()
    for word in range(size - len(dictionary)):
        dictionary.add_symbol(f"w{word}")
    return dictionary


class PairTask:
    """As much of a task as a model needs."""

    def __init__(self, source=13, target=11):
        self.source_dictionary, self.target_dictionary = map(dictionary_of, (source, target))


def build(name="megalodon", task=None, **changes):
    """Build what fairseq makes of ``model._name`` in a YAML, in double precision."""
    dataclass = models.MODEL_DATACLASS_REGISTRY[name]
    cfg = OmegaConf.merge(OmegaConf.structured(dataclass), {"_name": name, **SIZES, **changes})
    torch.manual_seed(0)
    return perturbed(models.build_model(cfg, task or PairTask()))


def translation_task(source=13, target=11, **changes):
    cfg = OmegaConf.merge(OmegaConf.structured(TranslationConfig), changes)
    return TranslationTask(cfg, *map(dictionary_of, (source, target)))


@pytest.mark.parametrize("name", SEQ2SEQ_PRESETS)
def test_presets_have_their_sizes(name):
    with torch.device("meta"):
        config = Seq2SeqConfig(**SEQ2SEQ_PRESETS[name], share_all_embeddings=True)
        model = Seq2Seq(config, 32768, 32768, PAD)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    defaults = models.MODEL_DATACLASS_REGISTRY[name]()
    assert {k: getattr(defaults, k) for k in SEQ2SEQ_PRESETS[name]} == SEQ2SEQ_PRESETS[name]
    assert type(build(name)).__name__ == f"Model_{name}"


class WithoutState(nn.Module):
    """The same model without an incremental decoder, so that the generator passes all tokens."""

    def __init__(self, model):
        super().__init__()
        self.model, self.encoder = model, model.encoder
        self.decoder = self.Whole(model.decoder)

    class Whole(nn.Module):
        def __init__(self, decoder):
            super().__init__()
            self.whole = decoder

        def forward(self, tokens, encoder_out):
            return self.whole(tokens, encoder_out)

    def get_normalized_probs(self, *args, **kwargs):
        return self.model.get_normalized_probs(*args, **kwargs)

    def max_decoder_positions(self):
        return LONGEST


SOURCE = padded(SOURCES, left=True)


def generate(model, source=SOURCE, kind=SequenceGenerator, **settings):
    settings = {"beam_size": 3, "max_len_b": LONGEST - 1, "max_len_a": 0, "min_len": 4} | settings
    generator = kind([model], dictionary_of(11), **settings)
    lengths = (source != PAD).sum(1)
    sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}
    return generator.generate([model], sample)


def assert_same(result, expected):
    for ours, theirs in zip(result, expected, strict=True):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one["positional_scores"], other["positional_scores"])


@pytest.mark.parametrize("settings", [{}, {"beam_size": 4, "len_penalty": 0.5}, {"beam_size": 1}])
@pytest.mark.parametrize("changes", [{}, {"chunk_size": None}])
def test_beam_search_equals_the_one_without_state(settings, changes, monkeypatch):
    model, orders = build(**changes), []
    reorder = type(model.decoder).reorder_incremental_state
    monkeypatch.setattr(
        type(model.decoder),
        "reorder_incremental_state",
        lambda self, state, order: orders.append(order.tolist()) or reorder(self, state, order),
    )
    assert_same(generate(model, **settings), generate(WithoutState(model), **settings))
    # Beams did change places, or nothing was tested.
    assert settings.get("beam_size") == 1 or any(order != sorted(set(order)) for order in orders)


def test_a_translation_does_not_depend_on_the_batch():
    model = build()
    together = generate(model)
    for row, source in enumerate(SOURCES):
        assert_same(generate(model, source[None]), together[row : row + 1])


@pytest.mark.parametrize("rows", [[0, 0, 0, 1, 1, 1], [0, 1]])
def test_source_keys_are_copied_only_where_rows_change(rows):
    """Beams of a sentence change places without a copy; sentences that are done leave."""
    model = build()
    out = model.encoder(SOURCE)
    out = model.encoder.reorder_encoder_out(out, torch.tensor(rows))
    state = {}
    model.decoder(torch.full((len(rows), 1), 2), out, state)
    sources = model.decoder.get_incremental_state(state, "stack")["sources"]
    same = torch.arange(len(rows))
    same[: rows.count(0)] = same[: rows.count(0)].flip(0)
    assert model.encoder.reorder_encoder_out(out, same) is out
    model.decoder.reorder_incremental_state(state, same)
    assert model.decoder.get_incremental_state(state, "stack")["sources"] is sources
    fewer = torch.tensor([len(rows) - 1])
    model.decoder.reorder_incremental_state(state, fewer)
    kept = model.decoder.get_incremental_state(state, "stack")["sources"]
    torch.testing.assert_close(kept[0].key, sources[0].key[fewer])
    assert model.encoder.reorder_encoder_out(out, fewer)["encoder_out"][0].shape[1] == 1


def test_the_state_does_not_grow_with_the_target():
    model, state = build(), {}
    out = model.encoder(SOURCE)
    tokens = torch.cat([torch.full((3, 1), 2), draw(30, 11, seed=1).expand(3, 30)], dim=1)
    sizes = []
    for length in range(1, 30):
        model.decoder(tokens[:, :length], out, state)
        blocks = model.decoder.get_incremental_state(state, "stack")["state"].blocks
        sizes.append(blocks[0].attention.key.shape[1])
    assert max(sizes) < SIZES["chunk_size"]


def test_alignments_are_weights_over_the_source_as_it_was_given():
    model = build()
    found = generate(model, kind=SequenceGeneratorWithAlignment, print_alignment="soft")
    for row, hypotheses in enumerate(found):
        length = len(SOURCES[row])
        tokens = hypotheses[0]["tokens"]  # the last is the end symbol
        previous = torch.cat([torch.tensor([2]), tokens[:-1]])[None]
        sources = model.decoder.plain.read_source(model.encoder.plain(SOURCES[row][None]))
        _, weights = model.decoder.plain.alignment(previous, sources)
        soft = torch.tensor([[float(x) for x in line] for line in hypotheses[0]["alignment"]])
        assert soft.shape == (len(tokens), length)
        torch.testing.assert_close(soft, weights[0].float(), atol=1e-5, rtol=1e-4)


def test_weights_are_computed_in_evaluation_only():
    model, inputs = build(), (SOURCE, None, padded(TARGETS))
    assert model(*inputs)[1]["attn"] == [None]
    with torch.no_grad():
        assert model(*inputs)[1]["attn"][0].shape == (3, 9, 10)
        assert model.train()(*inputs)[1]["attn"] == [None]


def test_probabilities_sum_to_one_and_features_precede_the_output():
    model = build()
    output = model(SOURCE, None, padded(TARGETS))
    total = model.get_normalized_probs(output, log_probs=False).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))
    features, _ = model(SOURCE, None, padded(TARGETS), features_only=True)
    torch.testing.assert_close(model.decoder.output_layer(features), output[0])


def test_limits_are_those_of_the_task():
    task = translation_task(max_source_positions=9, max_target_positions=7)
    model = build(task=task)
    assert model.max_positions() == (9, 7)
    with pytest.raises(UserError, match="source has 10 symbols, the limit is 9"):
        model.encoder(SOURCE)
    assert build().max_positions()[0] > 10**9


def test_an_encoder_of_the_same_width_can_be_exchanged():
    """The decoder reads any encoder_out of fairseq's form, with no more than these two entries."""
    model = build()
    out = model.encoder(SOURCE)
    other = {name: out[name] for name in ("encoder_out", "encoder_padding_mask")}
    state, tokens = {}, torch.full((3, 1), 2)
    expected, _ = model.decoder(tokens, out)
    torch.testing.assert_close(model.decoder(tokens, other, state)[0], expected)
    model.decoder.reorder_incremental_state(state, torch.tensor([2, 1, 0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SOURCE, None, None), "batch has no prev_output_tokens"),
        ((torch.full((2, 3), PAD), None, padded(TARGETS)), "row 0 of the source is padding only"),
        ((SOURCE[:, :0], None, padded(TARGETS)), "without a symbol"),
    ],
)
def test_batches_that_cannot_be_translated_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        build()(*arguments)


def test_a_target_without_end_symbol_is_refused_where_fairseq_moved_it():
    model = build(task=translation_task())
    ended = torch.tensor([[2, 5, 6], [2, 7, PAD]])
    model(SOURCE[:2], None, ended)
    model(SOURCE[:2], None, torch.tensor([[2, 5, 6], [PAD, 2, 7]]))
    with pytest.raises(UserError, match="row 1 of the target starts with 'w3', not with .*</s>"):
        model(SOURCE[:2], None, torch.tensor([[2, 5, 6], [7, 8, PAD]]))


def test_a_decoder_refuses_an_encoder_of_another_width_and_read_tokens():
    model = build()
    wide = {"encoder_out": [torch.zeros(4, 1, 20)], "encoder_padding_mask": []}
    with pytest.raises(UserError, match="output has 20 features, this decoder reads 16"):
        model.decoder(torch.tensor([[2]]), wide)
    with pytest.raises(UserError, match="encoder_out=None"):
        model.decoder(torch.tensor([[2]]))
    state, out = {}, model.encoder(SOURCE[:1])
    model.decoder(torch.tensor([[2, 5]]), out, state)
    for tokens in ([[2, 5]], [[2, 5, PAD]]):
        with pytest.raises(UserError, match=r"state that has read 2"):
            model.decoder(torch.tensor(tokens), out, state)


class NoTarget(PairTask):
    def __init__(self):
        super().__init__()
        self.target_dictionary = None


def language_modelling():
    return LanguageModelingTask(
        OmegaConf.structured(LanguageModelingConfig), dictionary_of(11), dictionary_of(11)
    )


@pytest.mark.parametrize("task", [NoTarget, language_modelling])
def test_tasks_without_a_target_sequence_are_refused(task):
    with pytest.raises(UserError, match=r"has no target sequence; use a task of pairs"):
        build(task=task())


def test_one_matrix_for_two_dictionaries_is_refused():
    with pytest.raises(UserError, match="of 13 symbols, and the target's, of 11, differ"):
        build(share_all_embeddings=True)
    task = PairTask(11, 11)
    task.target_dictionary.symbols[7] = "other"
    with pytest.raises(UserError, match="of 11 symbols, and the target's, of 11, differ"):
        build(task=task, share_all_embeddings=True)


@pytest.mark.parametrize("side", ["source", "target"])
def test_checkpoints_of_other_dictionaries_are_refused(side):
    state = build().state_dict()
    build().load_state_dict(dict(state))
    task = PairTask(**{side: 20})
    with pytest.raises(
        UserError, match=f"the {side} dictionary of the checkpoint has 1[13] symbols"
    ):
        build(task=task).load_state_dict(dict(state))
    task = PairTask()
    getattr(task, f"{side}_dictionary").symbols[-1] = "other"
    with pytest.raises(UserError, match=f"the {side} dictionary of the checkpoint differs"):
        build(task=task).load_state_dict(dict(state))


def test_the_encoder_by_itself_returns_its_vectors_in_place():
    model, tokens = build("megalodon_encoder"), SOURCE
    vectors, extra = model(tokens)
    assert vectors.shape == (3, 10, 16)
    assert not vectors[~real(tokens)].any()
    alone, _ = model(SOURCES[1][None])
    torch.testing.assert_close(vectors[1, -3:], alone[0])
    order = torch.tensor([2, 2, 0])
    moved = model.encoder.reorder_encoder_out(extra["encoder_out"], order)
    torch.testing.assert_close(moved["encoder_out"][0], vectors[order].transpose(0, 1))
    assert torch.equal(moved["encoder_padding_mask"][0], ~real(tokens)[order])


def test_heads_do_not_see_padding():
    model = build("megalodon_encoder")
    model.register_classification_head("sentiment", num_classes=4)
    model.double().eval()
    scores, _ = model(SOURCE, classification_head_name="sentiment")
    for row, source in enumerate(SOURCES):
        alone, _ = model(source[None], features_only=True, classification_head_name="sentiment")
        torch.testing.assert_close(scores[row : row + 1], alone)
    total = model.get_normalized_probs((scores, None), log_probs=False).sum(-1)
    torch.testing.assert_close(total, torch.ones(3))
    with pytest.raises(UserError, match=r"head 'topic'; registered are \['sentiment'\]"):
        model(SOURCE, classification_head_name="topic")


def test_a_new_head_starts_on_a_trained_encoder():
    trained, fresh = build("megalodon_encoder"), build("megalodon_encoder")
    fresh.register_classification_head("sentiment", num_classes=4)
    before = fresh.classification_heads["sentiment"].head.proj.weight.clone()
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.classification_heads["sentiment"].head.proj.weight, before)


def test_an_encoder_of_a_task_without_text_is_refused():
    with pytest.raises(UserError, match="Namespace has no source dictionary"):
        build("megalodon_encoder", task=argparse.Namespace())
