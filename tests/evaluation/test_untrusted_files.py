"""Files of others: no command runs code that one holds, or allocates what its settings ask for."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils

from megalodon_tasks.cli.main import main
from megalodon_tasks.errors import UserError
from tests.cli.language_models import write_checkpoint, write_corpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def pattern(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("pattern") / "checkpoint.pt"
    write_checkpoint(path, data)
    return torch.load(path)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


def code(marker, then):
    """An expression that makes the file ``marker``."""
    return f"__import__('pathlib').Path({str(marker)!r}).touch() or {then}"


def task_of_fairseq(data):
    return {"_name": "language_modeling", "data": str(data), "tokens_per_sample": 16}


# settings that fairseq evaluates as code, and what it does so for
ATTACKS = {
    "wav2vec": lambda marker, data: {
        "model": {"_name": "wav2vec", "conv_feature_layers": code(marker, "[(8, 8, 8)]")}
    },
    "wav2vec2": lambda marker, data: {
        "model": {"_name": "wav2vec2", "conv_feature_layers": code(marker, "[(8, 8, 8)]")}
    },
    "fconv_lm": lambda marker, data: {
        "model": argparse.Namespace(
            _name="fconv_lm", arch="fconv_lm", decoder_embed_dim=8, decoder_layers=code(marker, "[]"),
            decoder_attention="False", tokens_per_sample=16, max_target_positions=16,
        ),
        "task": task_of_fairseq(data),
    },
    "fconv_lm as a dictionary": lambda marker, data: {
        "model": {
            "_name": "fconv_lm", "decoder_embed_dim": 8, "decoder_layers": code(marker, "[]"),
            "decoder_attention": "False", "tokens_per_sample": 16, "max_target_positions": 16,
        },
    },
    "transformer_lm": lambda marker, data: {
        "model": {
            "_name": "transformer_lm", "character_embeddings": True, "decoder_layers": 1,
            "character_filters": code(marker, "[(1, 4)]"), "decoder_embed_dim": 8,
        },
    },
    "task": lambda marker, data: {
        "task": {"_name": "multilingual_translation", "data": code(marker, "''")}
    },
    "old task": lambda marker, data: {
        "task": {"_name": "megalodon_language_modeling", "task": "translation", "data": str(data)}
    },
    "criterion": lambda marker, data: {"criterion": {"_name": "wav2vec", "infonce": True}},
    "no name": lambda marker, data: {"model": {"fconv_lm": {"decoder_layers": code(marker, "[]")}}},
}  # fmt: skip
COMMANDS = (["evaluate", "--cpu"], ["inspect"], ["evaluate-lm", "--cpu"], ["sample", "--cpu"])


def write(path, pattern, **settings):
    torch.save({**pattern, "cfg": {**pattern["cfg"], **settings}}, path)
    return path


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_command_runs_code_in_the_settings(attack, pattern, data, marker, tmp_path):
    path = write(tmp_path / "checkpoint.pt", pattern, **ATTACKS[attack](marker, data))
    for command, *options in COMMANDS:
        with pytest.raises(UserError, match="which is not one of this project"):
            main([command, str(path), *options])
        assert not marker.exists()


def test_nor_do_fairseqs_own_tools(pattern, data, marker, tmp_path):
    attack = ATTACKS["fconv_lm"](marker, data)
    paths = [write(tmp_path / name, pattern, **attack) for name in ("a.pt", "b.pt")]
    good = write(tmp_path / "good.pt", pattern)
    for load in (
        checkpoint_utils.load_model_ensemble_and_task,
        checkpoint_utils.load_model_ensemble,
    ):
        with pytest.raises(UserError, match="b.pt: its settings name the model"):
            load([str(good), str(paths[1])])
    assert not marker.exists()
    stock = checkpoint_utils.load_model_ensemble_and_task.__wrapped__
    with pytest.raises(Exception):  # noqa: B017 (whatever it ends in, it has run the code)
        stock([str(paths[0])])
    assert marker.exists()


def test_the_user_may_trust_a_file_in_fairseqs_tools_only(
    pattern, data, marker, tmp_path, monkeypatch
):
    path = write(tmp_path / "checkpoint.pt", pattern, **ATTACKS["fconv_lm"](marker, data))
    monkeypatch.setenv("MEGALODON_TRUST_CHECKPOINTS", "1")
    with pytest.raises(UserError, match="which is not one of this project"):
        main(["evaluate", str(path), "--cpu"])
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017 (whatever it ends in, it has run the code)
        checkpoint_utils.load_model_ensemble_and_task([str(path)])
    assert marker.exists()


def test_settings_of_the_old_kind_are_not_read(pattern, data, marker, tmp_path):
    arguments = argparse.Namespace(
        arch="fconv_lm", decoder_layers=code(marker, "[]"), decoder_embed_dim=8,
        decoder_attention="False", **task_of_fairseq(data), task="language_modeling",
        criterion="cross_entropy", optimizer="adam", adam_betas=code(marker, "(0.9, 0.98)"),
    )  # fmt: skip
    path = tmp_path / "checkpoint.pt"
    torch.save({**pattern, "cfg": None, "args": arguments}, path)
    with pytest.raises(UserError, match="settings are not those of a training run of this project"):
        main(["evaluate", str(path), "--cpu"])
    assert not marker.exists()


def test_optimizers_of_a_file_are_not_built(pattern, marker, tmp_path):
    optimizer = {"_name": "adam", "adam_betas": code(marker, "(0.9, 0.98)")}
    path = write(tmp_path / "checkpoint.pt", pattern, optimizer=optimizer)
    main(["evaluate", str(path), "--cpu"])
    assert not marker.exists()


class Command:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("command", [*COMMANDS, ["convert"]])
def test_a_pickle_with_code_is_refused_without_pytorchs_advice(
    command, pattern, marker, data, tmp_path
):
    path = tmp_path / "checkpoint.pt"
    torch.save({**pattern, "extra": Command(marker)}, path)
    arguments = [command[0], str(path), *command[1:]]
    if command == ["convert"]:
        arguments = ["convert", "from-released", str(path), "out.pt", "--data", str(data)]
    with pytest.raises(UserError, match=r"holds .*\.system.* could run code") as caught:
        main(arguments)
    assert "weights_only" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"\x80\x02}q\x00.", b"\x80\x05K\x01.", b"cos\nsystem\n."])
def test_other_pickles_are_refused_without_pytorchs_advice(content, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        main(["evaluate", str(path)])
    assert "weights_only" not in str(caught.value)


HUGE = {
    "num_layers": 10_000_000,
    "num_layers ": "10000000",
    "model_dim": 10**9,
    "ffn_hidden_dim": 10**12,
    "value_dim": 2**40,
}


@pytest.mark.parametrize("field", HUGE)
@pytest.mark.parametrize("command", ["evaluate", "sample", "convert"])
def test_sizes_beyond_the_tensors_are_refused_before_anything_is_built(
    field, command, pattern, tmp_path
):
    model = {**pattern["cfg"]["model"], field.strip(): HUGE[field]}
    path = write(tmp_path / "checkpoint.pt", pattern, model=model)
    words = {"convert": ["convert", "to-released", str(path), str(tmp_path / "out")]}
    with pytest.raises(UserError, match=f"{path}.*(not fit|but it holds)"):
        main(words.get(command, [command, str(path), "--cpu"]))


def test_a_tensor_that_repeats_one_number_does_not_count_as_many(pattern, tmp_path):
    model = {**pattern["cfg"]["model"], "model_dim": 2**20}
    tensors = {name: torch.zeros(1).expand(2**40) for name in pattern["model"]}
    path = tmp_path / "checkpoint.pt"
    torch.save({**pattern, "model": tensors, "cfg": {**pattern["cfg"], "model": model}}, path)
    with pytest.raises(UserError, match="does not fit the model that its settings name"):
        main(["evaluate", str(path), "--cpu"])


@pytest.mark.parametrize("value", ["many", None, 1.5, [1], -1, 10**30])
def test_sizes_of_other_kinds_are_one_message(value, pattern, tmp_path):
    model = {**pattern["cfg"]["model"], "model_dim": value}
    path = write(tmp_path / "checkpoint.pt", pattern, model=model)
    with pytest.raises(
        UserError, match=f"{path}: (no model can be built from its|model.model_dim=-1)"
    ):
        main(["evaluate", str(path), "--cpu"])


def release(folder, count):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_layers": 1}))
    (folder / "consolidate_config.json").write_text(json.dumps({"model_parallel_size": count}))
    torch.save({"a": torch.ones(1)}, folder / "consolidated.00.pth")
    return folder


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (1_000_000_000, "1 of 1000000000 model-parallel shards; .* and 999999995 more"),
        ("2", "model_parallel_size='2' is not a whole number"),
    ],
)
def test_the_number_of_shards_in_a_file_makes_no_list(count, message, data, tmp_path):
    source = release(tmp_path / "release", count)
    with pytest.raises(UserError, match=message):
        main(["convert", "from-released", str(source), "out.pt", "--data", str(data)])


def test_a_shard_of_a_huge_number_makes_no_list(data, tmp_path):
    source = release(tmp_path / "release", 1)
    (source / "consolidated.00.pth").rename(source / "consolidated.999999999.pth")
    with pytest.raises(UserError, match="1 of 1000000000 model-parallel shards"):
        main(["convert", "from-released", str(source), "out.pt", "--data", str(data)])


@pytest.mark.parametrize("name", ["../secret.safetensors", "/secret.safetensors", "a/../../b"])
def test_an_index_names_only_files_beside_itself(name, data, tmp_path):
    (tmp_path / "release").mkdir()
    index = {"weight_map": {"a": name}}
    (tmp_path / "release" / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "release" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="may only name files beside itself"):
        main(["convert", "from-released", str(tmp_path / "release"), "o.pt", "--data", str(data)])


@pytest.mark.slow
def test_a_process_of_its_own_ends_in_one_message(pattern, data, marker, tmp_path):
    path = write(tmp_path / "checkpoint.pt", pattern, **ATTACKS["wav2vec2"](marker, data))
    command = [sys.executable, "-m", "megalodon_tasks", "evaluate", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not marker.exists()
