"""``ddp_backend=fully_sharded``: an update of two processes is that of one, and its checkpoints load."""

import hashlib
import io
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


def spoil_a_byte(name):
    def spoil(folder):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 0x55
        (folder / name).write_bytes(content)

    return spoil


def spoil_with_another_process(folder):
    shards = [folder / f"__{rank}_0.distcp" for rank in range(2)]
    for path, content in zip(shards, [path.read_bytes() for path in reversed(shards)], strict=True):
        path.write_bytes(content)


def spoil_with_another_run(folder):
    """Put in place of a shard one that is whole, of the same shapes, with other numbers."""
    path = folder / "__1_0.distcp"
    content = bytearray(path.read_bytes())
    for place in pickle.loads((folder / ".metadata").read_bytes()).storage_data.values():
        if place.relative_path == path.name:
            part = slice(place.offset, place.offset + place.length)
            other = io.BytesIO()
            torch.save(torch.load(io.BytesIO(content[part])) + 1, other)
            assert len(other.getvalue()) == place.length
            content[part] = other.getvalue()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (spoil_a_byte("__0_0.distcp"), "__0_0.distcp"),
        (spoil_a_byte("__1_0.distcp"), "__1_0.distcp"),
        (spoil_a_byte(".metadata"), ".metadata"),
        (spoil_with_another_process, "__0_0.distcp"),
        (spoil_with_another_run, "__1_0.distcp"),
    ],
)
def test_damage_of_equal_size_is_found_before_a_number_is_made(trained, tmp_path, spoil, found):
    run = tmp_path / "run"
    shutil.copytree(trained / "two", run)
    spoil(run / "shards" / "6")
    message = f"damaged or incomplete .the checksum of {found} is wrong"
    with pytest.raises(UserError, match=message):
        last(run)
    with pytest.raises(UserError, match=message):
        load(run / "checkpoint_last.pt")


def test_torch_alone_does_not_find_it(trained, tmp_path):
    shutil.copytree(trained / "two", tmp_path / "run")
    spoil_with_another_run(tmp_path / "run" / "shards" / "6")
    sign(tmp_path / "run")
    before, changed_run = (last(folder)["model"] for folder in (trained / "two", tmp_path / "run"))
    assert any(not torch.equal(changed_run[name], tensor) for name, tensor in before.items())


def test_shards_that_python_3_13_wrote_are_read(trained, tmp_path):
    shutil.copytree(trained / "two", tmp_path / "run")
    path = tmp_path / "run" / "shards" / "6" / ".metadata"
    content = pickle.dumps(pickle.loads(path.read_bytes()), protocol=2)
    path.write_bytes(content.replace(b"cpathlib\n", b"cpathlib._local\n"))
    assert b"cpathlib._local\nPosixPath" in path.read_bytes()
    sign(tmp_path / "run")
    assert_same(last(tmp_path / "run"), last(trained / "two"))


def sign(run):
    """Give the checkpoint the checksums of the shards that are there now, as an attacker can."""
    state = torch.load(run / "checkpoint_last.pt")
    state["shards_sha256"] = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (run / "shards" / "6").iterdir()
    }
    torch.save(state, run / "checkpoint_last.pt")


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
        (
            spoil_with_path,
            "damaged or incomplete .*names ../../other.distcp, which has no checksum",
        ),
        (spoil_with_gap, "damaged or incomplete .*which has no checksum"),
    ],
)
def test_bad_shards_are_refused(trained, tmp_path, monkeypatch, spoil, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "two", tmp_path / "run")
    spoil(tmp_path / "run" / "shards" / "6")
    if (tmp_path / "run" / "shards" / "6").exists():
        sign(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        last(tmp_path / "run")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("checksums", "message"),
    [
        ({}, "has no checksums of them"),
        ("text", "has no checksums of them"),
        ({".metadata": "", "../checkpoint_last.pt": ""}, "has no checksums of them"),
        ({".metadata": "", "__0_0.distcp": ""}, "the checksum of .metadata is wrong"),
        ({".metadata": "", ".metadata.distcp": ""}, "has no checksums of them"),
        ({".metadata": "", "-.distcp": ""}, "-.distcp is missing"),
    ],
)
def test_checksums_are_needed(trained, tmp_path, checksums, message):
    shutil.copytree(trained / "two", tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoint_last.pt") | {"shards_sha256": checksums}
    torch.save(state, tmp_path / "run" / "checkpoint_last.pt")
    with pytest.raises(UserError, match=f"damaged or incomplete .*{message}"):
        last(tmp_path / "run")


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
    shutil.copytree(trained / "one", tmp_path / "one")  # the schedule of the first updates counts
    train(data, tmp_path / "one", *FOUR, *eight)
    assert_same(last(tmp_path / "two"), last(tmp_path / "one"))
    assert [p.name for p in (tmp_path / "two" / "shards").iterdir()] == ["8"]
