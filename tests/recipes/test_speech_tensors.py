"""Preparing Speech Commands from the processed tensors of Mega."""

import os

import numpy as np
import pytest
import torch

from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.recipes.speech import prepare_speech_commands
from megalodon_tasks.recipes.speech.prepare_speech_commands import Options, prepare
from tests.recipes.speech_files import write_tensors


def prepared(source, out, **others):
    assert prepare(source, out, **others)
    return PreparedDataset(out)


@pytest.mark.parametrize(
    "below", ["", "raw", "processed_data/raw", "SpeechCommands/processed_data/raw"]
)
def test_megas_tensors(tmp_path, below):
    tensors = write_tensors(tmp_path / "data" / below)
    dataset = prepared(tmp_path / "data", tmp_path / "out")
    assert (dataset.spec.columns["inputs"].dtype, dataset.spec.kind) == ("float32", "waveform")
    for split, name in (("train", "train"), ("valid", "val"), ("test", "test")):
        found = dataset.split(split)
        assert found.labels.tolist() == tensors[f"{name}_y"].tolist()
        for place, values in enumerate(tensors[f"{name}_X"]):
            np.testing.assert_array_equal(found.sequence("inputs", place), values[0].numpy())
    scale = dataset.spec.scale
    assert scale.mean == pytest.approx(float(tensors["train_X"].mean()), abs=1e-6)
    assert scale.std == pytest.approx(float(tensors["train_X"].std(correction=0)), rel=1e-5)


def test_tensors_that_were_divided_twice_are_scaled_up_and_named(tmp_path, capsys):
    write_tensors(tmp_path / "raw", scale=0.1)
    prepare_speech_commands.main([str(tmp_path), str(tmp_path / "out")])
    assert "was divided by 2^15 twice" in capsys.readouterr().out
    dataset = PreparedDataset(tmp_path / "out")
    train = dataset.split("train")
    inputs = np.stack([dataset.spec.scale.apply(train.sequence("inputs", n)) for n in range(40)])
    assert inputs.std() == pytest.approx(1.0, rel=1e-4)


def test_the_format_of_old_torch_is_read(tmp_path):
    tensors = write_tensors(tmp_path / "raw")
    path = tmp_path / "raw" / "val_X.pt"
    torch.save(tensors["val_X"], path, _use_new_zipfile_serialization=False)
    assert len(prepared(tmp_path, tmp_path / "out").split("valid")) == 10


def test_tensors_saved_as_parameters_are_read(tmp_path):
    tensors = write_tensors(tmp_path / "raw")
    for name in ("train_X", "val_X", "test_X"):
        trainable = torch.nn.Parameter(tensors[name])
        saved = trainable if name != "val_X" else trainable * 1
        torch.save(saved, tmp_path / "raw" / f"{name}.pt")
    assert len(prepared(tmp_path, tmp_path / "out").split("train")) == 40


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda x: x.to(torch.complex64)])
def test_tensors_of_another_kind_are_named(tmp_path, change):
    tensors = write_tensors(tmp_path / "raw")
    torch.save(change(tensors["test_X"]), tmp_path / "raw" / "test_X.pt")
    with pytest.raises(
        ValueError, match=r"test_X.pt holds a tensor of .*expected a dense one of real"
    ):
        prepare(tmp_path, tmp_path / "out")


def test_a_clip_that_is_not_finite_is_left_out(tmp_path):
    tensors = write_tensors(tmp_path / "raw")
    tensors["train_X"][7, 0, 3] = float("nan")
    torch.save(tensors["train_X"], tmp_path / "raw" / "train_X.pt")
    rejects = Rejects()
    dataset = prepared(tmp_path, tmp_path / "out", rejects=rejects)
    assert rejects.reasons == {
        f"{tmp_path / 'raw' / 'train_X.pt'}, clip 7": "holds values that are not finite"
    }
    assert len(dataset.split("train")) == 39
    assert np.isfinite(dataset.spec.scale.std)


BAD_TENSORS = {
    "val_X.pt is not a saved tensor": ("val_X", b"PK half a file"),
    r"train_X.pt holds torch.float32 \(40, 20, 161\), expected floats .* MFCC": (
        "train_X", torch.zeros(40, 20, 161),
    ),
    r"test_y.pt holds torch.int64 \(9,\), expected int64 \(10,\)": ("test_y", torch.zeros(9).long()),
    "train_y.pt: labels from 0 to 10, expected 0 to 9": ("train_y", torch.arange(40) % 11),
    "test_X.pt has clips of 49 samples": ("test_X", torch.zeros(10, 1, 49)),
    "val_y.pt holds dict, expected a tensor": ("val_y", {"y": torch.zeros(10)}),
    "val_y.pt is missing beside the other files": ("val_y", None),
    "train_X.pt is the same value throughout": ("train_X", torch.zeros(40, 1, 50)),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_TENSORS)
def test_other_tensors_are_refused_by_name(tmp_path, message):
    write_tensors(tmp_path / "raw")
    name, bad = BAD_TENSORS[message]
    path = tmp_path / "raw" / f"{name}.pt"
    if bad is None:
        path.unlink()
    elif isinstance(bad, bytes):
        path.write_bytes(bad)
    else:
        torch.save(bad, path)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_have_their_own_splits(tmp_path):
    write_tensors(tmp_path / "raw")
    with pytest.raises(ValueError, match="leave --splits, --lengths, --sample-rate and --seconds"):
        prepare(tmp_path, tmp_path / "out", Options(splits="official"))


def test_loading_a_tensor_runs_no_code(tmp_path):
    write_tensors(tmp_path / "raw")
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    torch.save(Payload(), tmp_path / "raw" / "val_y.pt")
    with pytest.raises(ValueError, match=r"val_y.pt is not a saved tensor"):
        prepare(tmp_path, tmp_path / "out")
    assert not marker.exists()
