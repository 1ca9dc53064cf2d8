"""The classifier in plain PyTorch: padding, pairs, input kinds, dropout, parameter counts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import EncoderConfig, MegalodonConfig
from megalodon_tasks.models.embeddings import PatchEmbedding
from megalodon_tasks.models.heads import PairHead
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS

TINY = {
    "model_dim": 12,
    "num_layers": 2,
    "z_dim": 8,
    "value_dim": 16,
    "ffn_hidden_dim": 24,
    "cema_ndim": 4,
    "chunk_size": 8,
}
TOKENS = ClassifierInputs("tokens", num_classes=3, vocab_size=11, padding_idx=0)


def make_model(inputs: ClassifierInputs = TOKENS, **changes) -> SequenceClassifier:
    torch.manual_seed(0)
    return SequenceClassifier(MegalodonConfig(**(TINY | changes)), inputs).double().eval()


def test_padding_changes_no_score():
    model = make_model()
    tokens = torch.randint(1, 11, (1, 13))
    expected = model(tokens, torch.tensor([13]))
    batch = torch.zeros(2, 20, dtype=torch.long)
    batch[0, :13] = tokens
    batch[1] = torch.randint(1, 11, (20,))
    together = model(batch, torch.tensor([13, 20]))
    torch.testing.assert_close(together[:1], expected, rtol=1e-9, atol=1e-9)


class ScalingStack(nn.Module):
    """A stack of another architecture, which scales its input."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.chunk_size = config.chunk_size
        self.time_step = 1

    def forward(self, x_BLD, padding_mask_BL=None, state=None):
        assert padding_mask_BL is None
        return x_BLD * self.chunk_size * self.time_step, None


def test_the_stack_is_exchangeable():
    class ScalingClassifier(SequenceClassifier):
        stack_type = ScalingStack

    config = EncoderConfig(model_dim=12, chunk_size=8)
    model = ScalingClassifier(config, ClassifierInputs("waveform", 5)).double()
    signal = torch.randn(2, 17, dtype=torch.float64)
    expected = model.head(model.pool(8 * model.embedding(signal)))
    torch.testing.assert_close(model(signal), expected)
    model.set_time_step(4)
    assert (model.stack.chunk_size, model.stack.time_step) == (2, 4)


@pytest.mark.parametrize("kind", ["pixels", "waveform"])
def test_real_valued_inputs(kind):
    model = make_model(ClassifierInputs(kind, num_classes=5))
    scores = model(torch.randn(2, 17, dtype=torch.float64), torch.tensor([17, 17]))
    assert scores.shape == (2, 5)


def test_images_are_patches_in_order_with_positions():
    inputs = ClassifierInputs("patches", 5, image_size=(8, 12), patch_size=4, channels=2)
    model = make_model(inputs)
    images = torch.randn(3, 2, 8, 12, dtype=torch.float64)
    assert model(images).shape == (3, 5)
    embedded = model.embedding(images)
    assert embedded.shape == (3, 6, 12)
    second_row_first = images[:, :, 4:8, 0:4].flatten(1) @ model.embedding.proj.weight.flatten(1).T
    expected = second_row_first + model.embedding.proj.bias + model.embedding.position[3]
    torch.testing.assert_close(embedded[:, 3], expected)


@pytest.mark.parametrize("shape", [(2, 12, 8), (3, 8, 12), (2, 16, 24)])
def test_images_of_another_shape_are_refused(shape):
    inputs = ClassifierInputs("patches", 5, image_size=(8, 12), patch_size=4, channels=2)
    with pytest.raises(ValueError, match=r"images have shape .* built for \(2, 8, 12\)"):
        make_model(inputs)(torch.randn(1, *shape, dtype=torch.float64))


@pytest.mark.parametrize("size", [(225, 224), (224, 0)])
def test_a_patch_must_divide_the_image(size):
    with pytest.raises(ValueError, match="patch_size=16 does not divide the image size"):
        make_model(ClassifierInputs("patches", 5, image_size=size))


def test_position_vectors_take_no_decay_and_have_the_deviation_of_the_width():
    torch.manual_seed(0)
    embedding = PatchEmbedding(256, (224, 224))
    assert embedding.position.param_group == "no_weight_decay"
    assert embedding.position.std().item() == pytest.approx(0.88 * 256**-0.5, rel=0.02)
    assert embedding.position.abs().max().item() <= 2 * 256**-0.5


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="inputs.kind='smell'"):
        make_model(ClassifierInputs("smell", num_classes=2))


def test_pairs_take_both_sides_with_lengths_of_their_own():
    model = make_model(ClassifierInputs("tokens", 2, vocab_size=11, pair=True))
    a, b = torch.randint(1, 11, (2, 9)), torch.randint(1, 11, (2, 14))
    len_a, len_b = torch.tensor([9, 5]), torch.tensor([14, 14])
    scores = model(a, len_a, b, len_b)
    assert scores.shape == (2, 2)
    assert (scores - model(b, len_b, a, len_a)).abs().max() > 1e-6
    with pytest.raises(ValueError, match="pass inputs2 and lengths2"):
        model(a, len_a)


def test_dropout_of_the_pair_head_acts_on_the_joined_vectors_and_the_hidden_layer():
    """As in the authors' code: ``proj(dropout(gelu(hidden(dropout(joined)))))``."""
    torch.manual_seed(0)
    head = PairHead(4, 3, dropout=0.5, init_mode="he").train()
    a_BD, b_BD = torch.randn(2, 5, 4)
    torch.manual_seed(1)
    found = head(a_BD, b_BD)
    torch.manual_seed(1)
    joined = F.dropout(torch.cat((a_BD, b_BD, a_BD * b_BD, a_BD - b_BD), -1), 0.5)
    expected = head.head.proj(F.dropout(F.gelu(head.hidden(joined)), 0.5))
    torch.testing.assert_close(found, expected)


def test_dropout_acts_in_training_only():
    model = make_model(dropout=0.3, hidden_dropout=0.2, attention_dropout=0.2)
    tokens, lengths = torch.randint(1, 11, (2, 13)), torch.tensor([13, 13])
    torch.testing.assert_close(model(tokens, lengths), model(tokens, lengths))
    model.train()
    assert (model(tokens, lengths) - model(tokens, lengths)).abs().max() > 1e-6


# What the data set of each benchmark holds (text and retrieval: the characters of the literature's
# vocabularies, 135 and 98, and three special ones), the exact count of this implementation, and the
# count that follows from the authors' code after the gate's removal with feed-forward width 2.5 d, in
# thousands.
COUNTS = {
    "megalodon_lra_listops": (ClassifierInputs("tokens", 10, 17), 569_920, 571),
    "megalodon_lra_text": (ClassifierInputs("tokens", 2, 138), 927_360, 930),
    "megalodon_lra_retrieval": (ClassifierInputs("tokens", 2, 101, pair=True), 1_434_624, 1440),
    "megalodon_lra_image": (ClassifierInputs("pixels", 10), 2_792_800, 2800),
    "megalodon_lra_pathfinder": (ClassifierInputs("pixels", 2), 1_356_288, 1360),
    "megalodon_lra_pathx": (ClassifierInputs("pixels", 2), 246_080, 246),
    # feed-forward width 2 d, which gives the 300K that the paper states; big is published only for Mega
    "megalodon_sc_raw_base": (ClassifierInputs("waveform", 10), 304_560, 305),
    "megalodon_sc_raw_big": (ClassifierInputs("waveform", 10), 425_952, 426),
    "megalodon_imagenet_base": (ClassifierInputs("patches", 1000), 90_711_016, 90_730),
    # published nowhere: base's rule at width 192, where the classifier is 3 % of all
    "megalodon_imagenet_tiny": (ClassifierInputs("patches", 1000), 6_200_296, 6_200),
}


@pytest.mark.parametrize("preset", CLASSIFIER_PRESETS)
def test_parameter_counts_of_the_presets(preset):
    inputs, exact, published_thousands = COUNTS[preset]
    with torch.device("meta"):
        model = SequenceClassifier(MegalodonConfig(**CLASSIFIER_PRESETS[preset]), inputs)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == exact
    assert count / 1000 == pytest.approx(published_thousands, rel=0.01)
