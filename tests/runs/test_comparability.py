"""Whether a result compares with the published number, and the reason where it does not."""

import functools

import pytest
from omegaconf import OmegaConf

from megalodon_tasks.configuration import find_recipe, training_configuration
from megalodon_tasks.runs import comparability, results
from megalodon_tasks.runs.record import METRICS, append
from tests.runs.records import start, write_record

BATCHES = {
    "lra/listops": {"items": 64}, "lra/pathx": {"items": 128}, "lm/pg19": {"items": 32},
    "imagenet/imagenet": {"items": 1024}, "lm/enwik8": {"tokens": 65_536},
    "lm/wikitext103": {"tokens": 147_456},
}  # fmt: skip


@functools.cache
def config_of(benchmark, *overrides):
    """The configuration that a run of the recipe is trained with."""
    recipe = find_recipe(benchmark)
    words = ["task.data=DATA", *overrides]
    return training_configuration(recipe.script.parent, recipe.config_name(False), words)


def result_of(benchmark="lra/listops", metric="accuracy", config=None, **changes):
    """A result of a faithful run, but for ``changes``."""
    chunk_size = (config or config_of(benchmark)).model.chunk_size
    planned = 125000
    result = {
        "benchmark": benchmark, "split": "test", "metric": metric, "value": 50.0, "n": 10, "loss": 1.0,
        "update": planned, "epoch": 1, "params": 3, "best_constant": None,
        "chunk_size": chunk_size, "evaluation_chunk_size": chunk_size,
        "data": {"origin": "release", "manifest": "abc", "differences": []},
        "training": {
            "updates": planned, "max_update": planned, "epochs": 1, "max_epoch": 0,
            "batch": BATCHES[benchmark],
            "manifest": "abc",
        },
    }  # fmt: skip
    return result | changes


def judged(result, *overrides):
    return comparability.judge(result, config_of(result["benchmark"], *overrides))


@pytest.mark.parametrize("benchmark", ["lra/listops", "lra/pathx"])
def test_a_faithful_run_compares(benchmark):
    found = judged(result_of(benchmark))
    expected = {"compared_with": benchmark, "comparable": True, "changed_settings": {}}
    assert found == expected


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model.dropout=0.3"], "model.dropout 0.3 (recipe: 0.1)"),
        (["optimization.lr=[0.01]"], "optimization.lr [0.01] (recipe: [0.001])"),
        (["optimizer.weight_decay=0"], "optimizer.weight_decay 0 (recipe: 0.01)"),
        (["lr_scheduler.warmup_updates=7"], "lr_scheduler.warmup_updates 7 (recipe: 3000)"),
        (["optimization.max_update=5"], "optimization.max_update 5 (recipe: 90000)"),
    ],
)
def test_each_changed_setting_is_a_reason(overrides, reason):
    assert judged(result_of(), *overrides)["comparable"] == reason


def test_another_architecture_is_the_first_reason():
    """Also where all other settings, which two architectures have in common, are the recipe's."""
    same = ["model._name=mega_lra_listops", "model.init_mode=he"]
    reason = "model._name mega_lra_listops (recipe: megalodon_lra_listops)"
    assert judged(result_of(), *same)["comparable"].split("; ")[0] == reason
    own_sizes = ["model._name=megalodon_classifier", "model.num_layers=6", "model.model_dim=80"]
    own_sizes += ["model.value_dim=160", "model.ffn_hidden_dim=200"]
    assert judged(result_of(), *own_sizes)["comparable"] is True


@pytest.mark.parametrize(
    "override",
    [
        "dataset.num_workers=0",
        "optimization.update_freq=[2]",
        "model.checkpoint_activations=true",
        "model.compile_blocks=true",
        "task.peak_flops=1e12",
    ],
)
def test_settings_without_effect_are_none(override):
    assert judged(result_of(), override)["comparable"] is True


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metric": "loss"}, "metric loss (published: accuracy)"),
        ({"split": "valid"}, "split valid (published: test)"),
        ({"task_overrides": {"sample_rate": 8000}}, "evaluated with task.sample_rate 8000"),
        ({"time_step": 2}, "evaluated at time step 2"),
        ({"evaluation_chunk_size": 64}, "evaluated with chunk size 64 (trained with null)"),
        ({"dynamic": {"rate": 0.1}}, "dynamic evaluation"),
        ({"segment_tokens": 1024}, "context cut after 1,024 tokens"),
        ({"update": 0}, "the checkpoint was not trained here"),
        (
            {"data": {"manifest": "other", "differences": []}},
            "evaluated on other data than it was trained on",
        ),
    ],
)
def test_each_difference_in_the_evaluation_is_a_reason(changes, reason):
    assert judged(result_of(**changes))["comparable"] == reason


@pytest.mark.parametrize(
    ("updates", "epochs", "expected"),
    [
        ((0, 0), (300, 300), True),
        ((0, 0), (12, 300), "trained for 12 of 300 epochs"),
        ((0, 0), (0, 300), "trained for 0 of 300 epochs"),
        ((0, 0), (None, 300), True),
        ((5000, 0), (299, 300), "trained for 299 of 300 epochs"),
    ],
)
def test_recipes_that_end_by_epoch_are_held_to_it(updates, epochs, expected):
    result = result_of("imagenet/imagenet")
    counts = dict(
        zip(("updates", "max_update", "epochs", "max_epoch"), (*updates, *epochs), strict=True)
    )
    assert judged(result | {"training": result["training"] | counts})["comparable"] == expected


@pytest.mark.parametrize("done", [0, 2])
def test_the_epochs_of_a_training_are_those_recorded_to_their_end(tmp_path, done):
    config = OmegaConf.create(
        {"common": {}, "dataset": {}, "optimization": {"max_epoch": 3}, "task": {}}
    )
    train = [{"step": 6 * epoch, "epoch": epoch} for epoch in range(1, done + 1)]
    inner = [{"step": 6 * done + 1, "epoch": done + 1}]
    write_record(tmp_path, config={}, train=train, train_inner=inner)
    found = comparability.describe_training(tmp_path, config)
    assert (found["epochs"], found["max_epoch"]) == (done, 3)


def test_batch_and_length_of_training_are_compared():
    training = {
        "updates": 10, "max_update": 90000, "epochs": 1, "max_epoch": 0, "batch": {"items": 512},
        "manifest": None,
    }  # fmt: skip
    found = judged(result_of(training=training))["comparable"]
    assert found == "trained for 10 of 90,000 updates; batch 512 items (recipe: 64 items)"


@pytest.mark.parametrize(
    ("dataset", "update_freq", "task", "processes", "expected"),
    [
        ({"batch_size": 2}, [8], {}, 8, {"items": 128}),
        ({"batch_size": 64, "max_tokens": 9}, None, {}, 1, {"items": 64}),
        ({"batch_size": None, "max_tokens": 6144}, [3], {}, 8, {"tokens": 147_456}),
        ({"batch_size": 64}, [1], {"effective_batch": 128}, None, {"items": 128}),
        ({"max_tokens": 10}, [1], {"effective_batch": 80}, 2, {"tokens": 80}),
        ({"batch_size": 64}, [1], {}, None, None),
    ],
)
def test_the_effective_batch(dataset, update_freq, task, processes, expected):
    config = {"dataset": dataset, "optimization": {"update_freq": update_freq}, "task": task}
    assert comparability.batch_of(config, processes) == expected


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ({"effective_batch": 256, "effective_batch_unit": "items"}, {"items": 256}),
        ({"effective_batch": 512, "effective_batch_unit": "tokens"}, {"tokens": 512}),
        ({"processes": 4}, {"items": 256}),
        ({}, None),
    ],
)
def test_the_batch_of_a_training_is_that_of_its_record(tmp_path, recorded, expected):
    sections = {"common": {}, "dataset": {"batch_size": 64}, "optimization": {}, "task": {}}
    config = OmegaConf.create(sections)
    append(tmp_path / METRICS, start(**recorded))
    found = comparability.describe_training(tmp_path, config)
    assert found["batch"] == expected
    assert found["updates"] == 0


# benchmark -> metric, and the chunk sizes in training and evaluation of the published number
CHUNKS = {
    "lm/enwik8": ("bits_per_byte", 2048, 4096),
    "lm/wikitext103": ("perplexity", 1024, 2048),
    "lm/pg19": ("word_perplexity", 2048, 2048),
}


@pytest.mark.parametrize("benchmark", CHUNKS)
def test_the_chunk_size_of_the_published_evaluation_compares_and_no_other(benchmark):
    metric, trained, evaluated = CHUNKS[benchmark]
    assert config_of(benchmark).model.chunk_size == trained
    published = "trained with" if trained == evaluated else "published:"
    for size in (1024, 2048, 4096, None):
        found = judged(result_of(benchmark, metric, evaluation_chunk_size=size))
        reason = f"evaluated with chunk size {size or 'null'} ({published} {evaluated:g})"
        assert found["comparable"] == (True if size == evaluated else reason)


def test_another_chunk_size_in_training_is_a_reason_at_the_published_evaluation():
    words = ["model.chunk_size=512", "task.eval_chunk_size=4096"]
    config = config_of("lm/enwik8", *words)
    result = result_of("lm/enwik8", "bits_per_byte", config, evaluation_chunk_size=4096)
    assert judged(result, *words)["comparable"].endswith("model.chunk_size 512 (recipe: 2048)")


def test_what_is_wrong_with_the_data_comes_first():
    data = {"manifest": "abc", "differences": ["generated data"]}
    found = judged(result_of(data=data), "model.dropout=0.3")["comparable"]
    assert found == "generated data; model.dropout 0.3 (recipe: 0.1)"


def test_many_reasons_are_counted():
    words = [f"model.{name}=0.3" for name in ("dropout", "attention_dropout", "hidden_dropout")]
    found = judged(result_of(split="valid", metric="loss"), *words)["comparable"]
    assert found.endswith("; and 1 more")


def test_a_chunk_size_that_was_published_has_its_own_row():
    chunked = config_of("lra/listops", "model.chunk_size=128")
    found = judged(result_of(config=chunked), "model.chunk_size=128")
    assert (found["compared_with"], found["comparable"]) == ("lra/listops-chunk128", True)
    other = config_of("lra/listops", "model.chunk_size=32")
    found = judged(result_of(config=other), "model.chunk_size=32")
    assert found["compared_with"] == "lra/listops"
    assert found["comparable"] == "model.chunk_size 32 (recipe: null)"


@pytest.mark.parametrize("benchmark", ["lra/listops-demo", "toy"])
def test_a_benchmark_without_a_published_number(benchmark):
    result = result_of() | {"benchmark": benchmark}
    found = comparability.judge(result, config_of("lra/listops"))
    assert found["compared_with"] is None
    assert f"no number is published for {benchmark}" in found["comparable"]


def test_reasons_stand_on_the_lines_of_the_published_numbers():
    result = result_of(split="valid", metric="loss")
    result |= judged(result)
    lines = results.summary(result)
    published = [line for line in lines if "arXiv" in line]
    assert len(published) > 10
    assert all("not comparable: metric loss (published: accuracy)" in line for line in published)
    (own,) = [line for line in published if line.split()[0] == "lra/listops"]
    assert own.endswith("; split valid (published: test)")


def test_a_comparable_result_says_with_which_number():
    result = result_of()
    result |= judged(result)
    lines = results.summary(result)
    chunked = [line for line in lines if "lra/listops-chunk128" in line]
    assert "not comparable: this result compares with lra/listops" in chunked[0]
    assert sum("not comparable" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, "; not comparable: dynamic evaluation, this result is without"),
        ({"dynamic": {"rate": 0.1}}, ""),
        ({"dynamic": {"rate": 0.1}, "split": "valid"}, "; not comparable: split valid"),
    ],
)
def test_numbers_of_dynamic_evaluation_compare_with_each_other(changes, note):
    result = result_of("lm/wikitext103", "perplexity", evaluation_chunk_size=2048) | changes
    result |= judged(result)
    lines = results.summary(result)
    (dynamic,) = [line for line in lines if "(dynamic evaluation)" in line]
    assert dynamic.partition("arXiv 1904.08378")[2].startswith(note)
    assert dynamic.endswith("arXiv 1904.08378") == (not note)
    (static,) = [line for line in lines if "Transformer-XL  " in line]
    assert ("not comparable" in static) == bool(changes)


def test_a_result_of_an_earlier_version_does_not_pass_as_comparable():
    result = {"benchmark": "lra/listops", "value": 63.0}
    assert "earlier version" in results.reason_against(result, "lra/listops")
