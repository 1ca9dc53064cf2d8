"""Values that no setting can have, on fairseq's command line: one message, before anything is built."""

import copy

import pytest
import torch
from fairseq.dataclass.initialize import add_defaults
from omegaconf import OmegaConf

from megalodon_tasks.configuration import RECIPES, compose_configuration
from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat import model_size, setting_values
from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegalodonConfig
from tests.toy_plugin import runs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stop-time-hours", "nan"], "stop_time_hours=nan must be finite"),
        (["--weight-decay", "inf"], "optimizer.weight_decay=inf must be finite"),
        (["--batch-size", "-3"], "dataset.batch_size=-3 must be at least 1"),
        (["--batch-size", "0"], "dataset.batch_size=0 must be at least 1"),
        (
            ["--required-batch-size-multiple", "0"],
            "required_batch_size_multiple=0 must be at least 1",
        ),
        (["--log-interval", "0"], "common.log_interval=0 must be at least 1"),
        (["--seed", "-1"], "common.seed=-1 must be at least 0"),
        (["--clip-norm", "-1"], "optimization.clip_norm=-1.0 must be at least 0"),
        (["--max-epoch", "1" + "0" * 30], "optimization.max_epoch=10+ must be at most"),
        (["--num-workers", "100000"], "dataset.num_workers=100000 must be at most 1024"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        runs.train(tmp_path, *words)
    assert not any(tmp_path.iterdir())


def test_a_negative_number_that_stands_for_none_is_taken(tmp_path):
    runs.train(tmp_path, "--max-epoch", "1", "--patience", "-1", "--keep-last-epochs", "-1")


@pytest.fixture(scope="module")
def listops():
    words = ["task.data=DATA", "optimization.max_update=1"]
    return compose_configuration(RECIPES / "lra", "listops_demo", words)


def changed(config, *words):
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    config.merge_with_dotlist(list(words))
    setting_values.with_defaults(add_defaults, config)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model._name=megalodon_lra_listop", "there is no model of this name; did you mean mega"),
        ("task._name=7", "task._name=7: there is no task of this name; known are"),
        ("criterion._name=", "there is no criterion of this name"),
        ("optimizer._name=${nope}", "optimizer._name: Interpolation key 'nope' not found"),
        ("model.dropout=high", "^model.dropout: Value 'high' .* could not be converted to Float"),
        ("task.max_positions=[1]", "^task.max_positions: .* could not be converted to Integer"),
        ("task.max_position=3", "^task.max_position: Key 'max_position' not in"),
        ("optimizer.lr=[]", "optimizer.lr is an empty list"),
        ("checkpoint.save_dir=${nope}", "checkpoint.save_dir: Interpolation key 'nope' not found"),
        (
            "optimization.update_freq=[]",
            r"update_freq=\[\] is not a list of numbers, such as \[1\]",
        ),
    ],
)
def test_what_omegaconf_refuses_is_named(listops, word, message):
    with pytest.raises(UserError, match=message):
        changed(listops, word)


def test_the_recipe_itself_is_taken(listops):
    changed(listops)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_layers": 10**9}, "takes .* GB, and this machine has"),
        ({"num_layers": 2, "ffn_hidden_dim": 10**12}, "takes .* GB, and this machine has"),
        ({"num_layers": 2, "model_dim": 2**62}, "no model can be built from its settings"),
        ({"decoder_layers": 10**9}, "takes .* GB, and this machine has"),
        ({"num_layers": 0}, "model.num_layers=0 must be a positive integer"),
    ],
)
def test_sizes_that_no_machine_has_are_refused(sizes, message):
    def build(settings):
        decoder = settings.pop("decoder_layers", 1)  # which another kind of model has
        config = MegalodonConfig(**settings)
        config.validate()
        inputs = ClassifierInputs("tokens", num_classes=3, vocab_size=9)
        return torch.nn.ModuleList(SequenceClassifier(config, inputs) for _ in range(decoder))

    settings = {"num_layers": 2, "model_dim": 16, "value_dim": 16, "z_dim": 8} | sizes
    with pytest.raises(UserError, match=message):
        model_size._check_memory(build, settings)
