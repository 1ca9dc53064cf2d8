"""The task speech_commands: what the model hears, at which rate, and a short run at both rates."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from megalodon_tasks.cli.main import main
from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.errors import UserError
from megalodon_tasks.recipes.speech.prepare_speech_commands import Options, prepare
from megalodon_tasks.recipes.speech.task import SpeechCommandsConfig, SpeechCommandsTask
from tests.recipes.run_scripts import ROOT
from tests.recipes.speech_files import write_release, write_tensors
from tests.recipes.test_configurations import layers

SAMPLES = 800


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips of 0.05 seconds, 140 / 30 / 30."""
    folder = tmp_path_factory.mktemp("speech")
    write_release(folder / "raw")
    options = Options(splits="official", lengths="fit", seconds=SAMPLES / 16_000)
    prepare(folder / "raw", folder / "prepared", options)
    return folder / "prepared"


def task_of(data, **settings):
    settings = {"train_subset": "train", "valid_subset": "valid", "seed": 1} | settings
    return SpeechCommandsTask(SpeechCommandsConfig(data=data and str(data), **settings))


def inputs_of(task, split="test"):
    task.load_dataset(split)
    dataset = task.dataset(split)
    return torch.stack([dataset[place]["inputs"] for place in range(len(dataset))])


def amplitudes(data, split):
    clips = PreparedDataset(data).split(split)
    return np.stack([clips.sequence("inputs", n) for n in range(len(clips))]) / 32_768


def test_samples_have_one_mean_and_one_deviation(data):
    task = task_of(data, normalisation="global")
    assert (task.inputs.kind, task.inputs.num_classes) == ("waveform", 10)
    train, test = amplitudes(data, "train"), amplitudes(data, "test")
    found = inputs_of(task)
    assert found.dtype == torch.float32
    expected = (test - train.mean()) / train.std()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "divisor"),
    [({}, 1), ({"normalisation": "per_step"}, 1), ({"normalisation": "per_step_twice"}, 32_768)],
)
def test_each_time_step_has_its_own_as_published(data, settings, divisor):
    """By default, and in the recipe."""
    train, test = (amplitudes(data, split) / divisor for split in ("train", "test"))
    expected = (test - train.mean(0)) / (train.std(0, ddof=1) + 1e-5)
    found = inputs_of(task_of(data, **settings))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
    recipe = layers(ROOT / "recipes" / "speech" / "sc_raw.yaml")
    assert recipe.task.normalisation == task_of(data).cfg.normalisation == "per_step"


@pytest.mark.parametrize("normalisation", ["global", "per_step"])
def test_half_the_rate_is_every_second_sample(data, normalisation):
    whole = inputs_of(task_of(data, normalisation=normalisation))
    task = task_of(data, normalisation=normalisation, sample_rate=8_000)
    assert torch.equal(inputs_of(task), whole[:, ::2])
    dataset = task.dataset("test")
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["net_input"]["lengths"].tolist() == [400, 400]
    assert dataset.size(0) == 400


@pytest.mark.parametrize("rate", [8_000, 6_000])
def test_a_low_pass_filter_may_come_before(data, rate):
    whole = inputs_of(task_of(data, normalisation="global"))
    task = task_of(data, sample_rate=rate, resampling="lowpass", normalisation="global")
    found = inputs_of(task)
    torch.testing.assert_close(found, resample(whole, 16_000, rate), rtol=1e-4, atol=1e-5)
    assert task.dataset("test").size(0) == found.shape[1] == SAMPLES * rate // 16_000


def test_odd_numbers_of_steps_are_counted_right(data):
    task = task_of(data, sample_rate=16_000 // 32)
    assert inputs_of(task).shape[1] == task.dataset("test").size(0) == 25
    task = task_of(data, sample_rate=125)
    assert inputs_of(task).shape[1] == task.dataset("test").size(0) == 7


@pytest.mark.parametrize("settings", [{"normalisation": "global"}, {"sample_rate": 8_000}])
def test_data_workers_get_paths_and_no_samples(data, settings):
    task = task_of(data, **settings)
    expected = inputs_of(task)
    sent = pickle.dumps(task.dataset("test"))
    assert len(sent) < 20_000
    assert torch.equal(pickle.loads(sent)[3]["inputs"], expected[3])


@pytest.mark.parametrize("normalisation", ["per_step", "per_step_twice"])
def test_tensors_of_mega_are_heard_as_they_are(tmp_path, normalisation):
    """They are what the published numbers stand on."""
    tensors = write_tensors(tmp_path / "raw", scale=0.1)
    prepare(tmp_path, tmp_path / "out")
    found = inputs_of(task_of(tmp_path / "out", normalisation=normalisation), "train")
    assert torch.equal(found, tensors["train_X"][:, 0])


def test_tensors_of_mega_may_be_heard_at_unit_scale(tmp_path):
    tensors = write_tensors(tmp_path / "raw", scale=0.1)
    prepare(tmp_path, tmp_path / "out")
    found = inputs_of(task_of(tmp_path / "out", normalisation="global"), "train")
    assert found.std().item() == pytest.approx(1.0, rel=1e-2)
    task = task_of(tmp_path / "out", sample_rate=8_000)
    assert inputs_of(task, "train").shape == (40, tensors["train_X"].shape[2] // 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 7_000}, "task.sample_rate=7000 does not divide 16000, .* or task.resampling"),
        ({"sample_rate": 32_000}, "task.sample_rate=32000 must be from 1 to 16000"),
        ({"sample_rate": 0}, "task.sample_rate=0 must be from 1 to 16000"),
        ({"resampling": "nearest"}, "task.resampling='nearest' is none of subsample, lowpass"),
        (
            {"normalisation": "none"},
            "task.normalisation='none' is none of per_step, per_step_twice, global",
        ),
        ({"data": None}, "megalodon prepare speech/sc_raw SOURCE DATA"),
        ({"benchmark": "listops"}, "'listops' is unknown to this task; it has sc_raw"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(data, settings, message):
    with pytest.raises(UserError, match=message):
        task_of(**{"data": data, **settings})


SMALL = {
    "model.model_dim": 8, "model.num_layers": 1, "model.value_dim": 16, "model.z_dim": 8,
    "model.ffn_hidden_dim": 16, "model.cema_ndim": 4, "model.chunk_size": 50,
    "dataset.batch_size_valid": 30, "optimization.max_update": 4, "common.cpu": "true",
}  # fmt: skip


def test_a_run_is_evaluated_at_both_rates(data, tmp_path):
    command = [
        sys.executable, "-m", "megalodon_tasks", "train", "--config-dir",
        ROOT / "recipes" / "speech", "--config-name", "sc_raw", "--data", data, "--save-dir", tmp_path,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += [f"{field}={value}" for field, value in SMALL.items()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    evaluation = [str(tmp_path / "checkpoint_best.pt"), "--recipe", "speech/sc_raw", "--cpu"]
    lengths = tmp_path / "predictions.csv"
    half = ["--task-override", "sample_rate=8000", "--time-step", "2"]
    for options, length in ((half, "400"), ([], "800")):
        assert main(["evaluate", *evaluation, *options, "--predictions", str(lengths)]) == 0
        header, first = lengths.read_text().splitlines()[:2]
        assert dict(zip(header.split(","), first.split(","), strict=True))["length"] == length
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [record["n"] for record in records] == [30, 30]
    assert [record["time_step"] for record in records] == [2, 1]
    assert records[0]["task_overrides"] == {"sample_rate": 8000}
