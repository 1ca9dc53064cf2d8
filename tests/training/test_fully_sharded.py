"""``ddp_backend=fully_sharded``: an update of two processes is that of one, and its checkpoints load."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from torch.distributed import checkpoint as dcp

from megalodon_tasks.cli.main import main
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation.checkpoint import load
from megalodon_tasks.runs.record import read_run
from tests.recipes.lm_data import TRAIN, preprocess, train

ROOT = Path(__file__).resolve().parents[2]
FOUR = ("--effective-batch", "4")
SHARDED = (*FOUR, "--ddp-backend", "fully_sharded")


def start(data, save_dir, processes, *arguments):
    line = [sys.executable, "-m", "fairseq_cli.train", str(data), *TRAIN.split()]
    line += ["--user-dir", str(ROOT / "megalodon_tasks"), "--save-dir", str(save_dir), *arguments]
    line += ["--distributed-world-size", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process, status=0):
    output, _ = process.communicate(timeout=480)
    assert process.returncode == status, output[-3000:]
    return output


def last(save_dir):
    return checkpoint_utils.load_checkpoint_to_cpu(str(save_dir / "checkpoint_last.pt"))


def assert_same(actual, expected):
    assert actual["model"].keys() == expected["model"].keys()
    for name, tensor in expected["model"].items():
        torch.testing.assert_close(actual["model"][name], tensor, rtol=1e-3, atol=1e-4)
    states = [checkpoint["last_optimizer_state"]["state"] for checkpoint in (actual, expected)]
    assert states[0].keys() == states[1].keys()
    for number, values in states[1].items():
        moment = states[0][number]["exp_avg"]
        torch.testing.assert_close(moment, values["exp_avg"], rtol=1e-2, atol=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The data, and six updates of two processes and of one on it."""
    folder = tmp_path_factory.mktemp("sharded")
    data = preprocess(folder / "corpus", 40)
    sharded = start(data, folder / "two", 2, *SHARDED, "--checkpoint-activations")
    train(data, folder / "one", *FOUR)
    finish(sharded)
    return folder


def test_two_processes_train_as_one(trained):
    one, two = last(trained / "one"), last(trained / "two")
    assert_same(two, one)
    assert two["extra_state"]["train_iterator"]["processes"] == 2
    losses = [
        list(read_run(trained / name).valid["valid"].values())[-1]["loss"]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_file_itself_holds_no_parameter(trained):
    state = torch.load(trained / "two" / "checkpoint_last.pt")
    assert not [v for v in state["model"].values() if isinstance(v, torch.Tensor)]
    assert [p.name for p in (trained / "two" / "shards").iterdir()] == ["6"]


def test_one_process_resumes_what_two_wrote(trained, tmp_path):
    data = trained / "corpus" / "bin"
    for name in ("one", "two"):
        shutil.copytree(trained / name, tmp_path / name)
        train(data, tmp_path / name, *FOUR, "--max-update", "8", "--keep-last-epochs", "0")
    assert_same(last(tmp_path / "two"), last(tmp_path / "one"))


def test_consolidated_into_one_file(trained, tmp_path, capsys):
    source, target = trained / "two" / "checkpoint_last.pt", tmp_path / "whole" / "whole.pt"
    main(["convert", "consolidate", str(source), str(target)])
    assert "parameters" in capsys.readouterr().out
    state = torch.load(target)
    assert "shards" not in state
    assert_same(state, last(trained / "two"))
    loaded = [load(path).model.state_dict() for path in (source, target)]
    torch.testing.assert_close(loaded[0], loaded[1], rtol=0, atol=0)


def test_one_file_has_nothing_to_consolidate(trained, tmp_path):
    source = trained / "one" / "checkpoint_last.pt"
    with pytest.raises(UserError, match="nothing to consolidate"):
        main(["convert", "consolidate", str(source), str(tmp_path / "whole.pt")])


class Command:
    """What must not be run from a checkpoint."""

    def __reduce__(self):
        return (os.system, ("touch executed",))


def spoil_nothing(folder):
    shutil.rmtree(folder)


def spoil_with_code(folder):
    (folder / ".metadata").write_bytes(pickle.dumps(Command()))


def spoil_with_cut(folder):
    path = folder / ".metadata"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_with_bytes(folder):
    shutil.rmtree(folder)
    dcp.save({"model/x": "text"}, checkpoint_id=folder, no_dist=True)


def spoil_with_path(folder):
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../../other.distcp"
    path.write_bytes(pickle.dumps(metadata))


def spoil_with_gap(folder):
    next(folder.glob("*.distcp")).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_nothing, "shards/6, which holds none; copy that folder too"),
        (spoil_with_code, r"damaged or incomplete .*it names (posix|os).system"),
        (spoil_with_cut, "damaged or incomplete .*its .metadata cannot be read"),
        (spoil_with_bytes, "damaged or incomplete .*it names .*BytesStorageMetadata"),
        (spoil_with_path, "damaged or incomplete .*files outside of the folder"),
        (spoil_with_gap, "damaged or incomplete"),
    ],
)
def test_bad_shards_are_refused(trained, tmp_path, monkeypatch, spoil, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "two", tmp_path / "run")
    spoil(tmp_path / "run" / "shards" / "6")
    with pytest.raises(UserError, match=message):
        last(tmp_path / "run")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["../shards/6", "/etc/x", "shards/../../x", "shards/6/x", 3])
def test_shards_lie_beside_their_checkpoint(trained, tmp_path, name):
    state = torch.load(trained / "two" / "checkpoint_last.pt") | {"shards": name}
    torch.save(state, tmp_path / "checkpoint_last.pt")
    with pytest.raises(UserError, match="belong into .*, which holds none"):
        last(tmp_path)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (["--store-ema"], "ema.store_ema"),
        (["--cpu-offload"], "distributed_training.cpu_offload"),
        (["--chunk-parallel", "2"], "task.chunk_parallel"),
    ],
)
def test_what_does_not_go_with_shards_is_refused(trained, tmp_path, settings, name):
    with pytest.raises(UserError, match=f"{name} does not go with .*fully_sharded"):
        train(trained / "corpus" / "bin", tmp_path, *SHARDED, *settings)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--bf16", "--fp16"])
def test_16_bits_with_shards(trained, tmp_path, flag):
    """Masters are compared: they add what a rounded parameter hides."""
    data = trained / "corpus" / "bin"
    sharded = start(data, tmp_path / "two", 2, *SHARDED, flag, "--fp32-reduce-scatter")
    train(data, tmp_path / "one", *FOUR, flag)
    finish(sharded)
    one, two = (last(tmp_path / name)["last_optimizer_state"]["masters"] for name in ("one", "two"))
    assert len(one) == len(two)
    for actual, expected in zip(two, one, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["one", "two"])
def test_two_processes_resume_whole_and_sharded_checkpoints(trained, tmp_path, before):
    data = trained / "corpus" / "bin"
    eight = ("--max-update", "8", "--keep-last-epochs", "0")
    shutil.copytree(trained / before, tmp_path / "two")
    finish(start(data, tmp_path / "two", 2, *SHARDED, *eight))
    train(data, tmp_path / "one", *FOUR, "--max-update", "8")
    assert_same(last(tmp_path / "two"), last(tmp_path / "one"))
    assert [p.name for p in (tmp_path / "two" / "shards").iterdir()] == ["8"]
