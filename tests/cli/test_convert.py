"""Converting both ways: the same model, every file format, and bad files refused by name."""

import json
import os

import pytest
import safetensors.torch
import torch

from megalodon_tasks.cli.main import main
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation.checkpoint import load
from megalodon_tasks.models.released.names import config_to_released, to_released
from megalodon_tasks.models.released.shards import split_shards
from tests.cli.language_models import write_checkpoint, write_corpus
from tests.models.released.test_names import GOLDEN


@pytest.fixture(scope="module")
def golden():
    return torch.load(GOLDEN, weights_only=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder whose dictionary has the 40 symbols of the golden model."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "dict.txt").write_text("".join(f"w{i} 1\n" for i in range(36)))
    return folder


def write_release(folder, golden, shards=1, wrap=True):
    folder.mkdir()
    config = {"model": golden["config"]} if wrap else golden["config"]
    (folder / "config.json").write_text(json.dumps(config))
    about = {"model_parallel_size": shards, "dtype": "fp32"}
    (folder / "consolidate_config.json").write_text(json.dumps(about))
    for rank, part in enumerate(split_shards(golden["state"], shards)):
        name = "consolidated.pth" if shards == 1 else f"consolidated.{rank:02d}.pth"
        torch.save(part, folder / name)
    return folder


def write_safetensors(folder, golden):
    folder.mkdir()
    names = sorted(golden["state"])
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, inside in parts.items():
        tensors = {name: golden["state"][name] for name in inside}
        safetensors.torch.save_file(tensors, folder / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(golden["config"]))
    return folder


def write_single(path, golden, save):
    save(golden["state"], path)
    path.with_suffix(".json").write_text(json.dumps(golden["config"]))
    return path


SOURCES = {
    "release": lambda f, g: write_release(f / "r", g),
    "bare config": lambda f, g: write_release(f / "r", g, wrap=False),
    "two shards": lambda f, g: write_release(f / "r", g, 2),
    "several safetensors": lambda f, g: write_safetensors(f / "s", g),
    "safetensors": lambda f, g: write_single(f / "m.safetensors", g, safetensors.torch.save_file),
    "torch": lambda f, g: write_single(f / "m.pth", g, torch.save),
    "golden": lambda f, g: GOLDEN,
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_form_becomes_a_checkpoint_that_fairseq_loads(source, golden, data, tmp_path):
    made = SOURCES[source](tmp_path, golden)
    target = tmp_path / "out" / "checkpoint.pt"
    assert main(["convert", "from-released", str(made), str(target), "--data", str(data)]) == 0
    trained = load(target, device=torch.device("cpu"))
    with torch.no_grad():
        scores, _ = trained.language_model(golden["tokens"])
    torch.testing.assert_close(scores, golden["logits"], rtol=1e-4, atol=1e-4)
    assert trained.update == 0


@pytest.mark.parametrize("target", ["folder", "m.safetensors", "m.pth"])
def test_there_and_back(golden, data, tmp_path, target):
    checkpoint, back = tmp_path / "checkpoint.pt", tmp_path / target
    main(["convert", "from-released", str(GOLDEN), str(checkpoint), "--data", str(data)])
    assert main(["convert", "to-released", str(checkpoint), str(back)]) == 0
    again = tmp_path / "again.pt"
    main(["convert", "from-released", str(back), str(again), "--data", str(data)])
    first, second = (torch.load(path)["model"] for path in (checkpoint, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_tied_models_and_shards(tmp_path):
    data = write_corpus(tmp_path / "c")
    model = write_checkpoint(tmp_path / "tied.pt", data, share_emb=True)
    main(
        ["convert", "to-released", str(tmp_path / "tied.pt"), str(tmp_path / "r"), "--shards", "2"]
    )
    names = {"config.json", "consolidate_config.json", "consolidated.00.pth", "consolidated.01.pth"}
    assert set(os.listdir(tmp_path / "r")) == names
    about = json.loads((tmp_path / "r" / "consolidate_config.json").read_text())
    assert about == {"model_parallel_size": 2, "dtype": "fp32"}
    target = tmp_path / "again.pt"
    main(["convert", "from-released", str(tmp_path / "r"), str(target), "--data", str(data)])
    lm = load(target, device=torch.device("cpu")).language_model
    assert lm.output.weight is lm.embedding.weight
    assert torch.equal(lm.embedding.weight, model.embedding.weight)


def module_of(tensors):
    """A module with tensors of these names; those that share memory still do."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        owner = root
        for part in path:
            if part not in dict(owner.named_children()):
                owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
        owner.register_buffer(last, tensor)
    return root


def test_a_tied_checkpoint_as_safetensors_writes_models(tmp_path):
    data = write_corpus(tmp_path / "c")
    model = write_checkpoint(tmp_path / "tied.pt", data, share_emb=True)
    source, target = tmp_path / "m.safetensors", tmp_path / "again.pt"
    safetensors.torch.save_model(module_of(to_released(model)), str(source))
    source.with_suffix(".json").write_text(json.dumps(config_to_released(model)))
    assert "output.output.weight" not in safetensors.torch.load_file(source)
    main(["convert", "from-released", str(source), str(target), "--data", str(data)])
    lm = load(target, device=torch.device("cpu")).language_model
    assert lm.output.weight is lm.embedding.weight
    assert torch.equal(lm.embedding.weight, model.embedding.weight)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def piped(path):
    path.parent.mkdir()
    os.mkfifo(path)
    return path.parent


def without(folder, name):
    (folder / name).unlink()
    return folder


def changed(folder, golden, **tensors):
    write_release(folder, golden)
    torch.save(golden["state"] | tensors, folder / "consolidated.pth")
    return folder


def with_config(folder, golden, **settings):
    write_release(folder, golden)
    (folder / "config.json").write_text(json.dumps(golden["config"] | settings))
    return folder


def saved(path, content):
    torch.save(content, path)
    path.with_suffix(".json").write_text("{}")
    return path


BAD = {
    "has 1 of 2 model-parallel shards; missing: consolidated.00.pth": lambda f, g: without(
        write_release(f / "r", g, 2), "consolidated.00.pth"
    ),
    "has 1 of 2 model-parallel shards; missing: consolidated.01.pth": lambda f, g: without(
        write_release(f / "r", g, 2), "consolidated.01.pth"
    ),
    "lists files that are missing: b.safetensors": lambda f, g: without(
        write_safetensors(f / "s", g), "b.safetensors"
    ),
    "surplus layers.7.x": lambda f, g: changed(f / "r", g, **{"layers.7.x": torch.zeros(1)}),
    r"embed.weight has shape \(3, 24\)": lambda f, g: changed(
        f / "r", g, **{"embed.weight": torch.zeros(3, 24)}
    ),
    "missing layers.3.mega": lambda f, g: with_config(f / "r", g, num_layers=4),
    r"wz.weight has shape \(16, 24\), expected \(32, 24\)": lambda f, g: with_config(
        f / "r", g, z_dim=32
    ),
    "unknown keys in the released configuration: colour": lambda f, g: with_config(
        f / "r", g, colour=3
    ),
    "config.json is missing": lambda f, g: without(write_release(f / "r", g), "config.json"),
    "is not a torch file of plain tensors": lambda f, g: saved(f / "m.pth", {"a": Evil()}),
    "m.safetensors is a folder, a pipe or a device": lambda f, g: piped(f / "p" / "m.safetensors"),
    "consolidated.00.pth is a folder, a pipe": lambda f, g: piped(f / "p" / "consolidated.00.pth"),
    "is not a dict of tensors": lambda f, g: saved(f / "m.pth", {"a": 3}),
    "there is no such file or folder": lambda f, g: f / "nowhere",
    "holds no checkpoint": lambda f, g: f,
}


@pytest.mark.parametrize("message", BAD)
def test_bad_releases_are_refused_and_nothing_is_written(
    message, golden, data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    made, target = BAD[message](tmp_path, golden), tmp_path / "checkpoint.pt"
    with pytest.raises(UserError, match=message):
        main(["convert", "from-released", str(made), str(target), "--data", str(data)])
    assert not target.exists()
    assert not (tmp_path / "executed").exists()


def test_a_dictionary_of_another_size_is_refused(tmp_path):
    (tmp_path / "dict.txt").write_text("a 1\n")
    with pytest.raises(UserError, match="has 5 symbols, the checkpoint 40"):
        main(
            [
                "convert",
                "from-released",
                str(GOLDEN),
                str(tmp_path / "c.pt"),
                "--data",
                str(tmp_path),
            ]
        )


def test_what_has_no_released_form_is_refused(tmp_path, golden):
    target = str(tmp_path / "out")
    with pytest.raises(UserError, match="holds no language model of this project"):
        main(["convert", "to-released", str(GOLDEN), target])
    with pytest.raises(UserError, match="there is no such checkpoint"):
        main(["convert", "to-released", str(tmp_path / "nowhere.pt"), target])
    data = write_corpus(tmp_path / "c")
    write_checkpoint(tmp_path / "full.pt", data, chunk_size=None)
    with pytest.raises(UserError, match="no full attention"):
        main(["convert", "to-released", str(tmp_path / "full.pt"), target])
    write_checkpoint(tmp_path / "silu.pt", data, cema_activation="silu")
    with pytest.raises(UserError, match="cema_activation='silu': the released model has RMSNorm"):
        main(["convert", "to-released", str(tmp_path / "silu.pt"), target])
    state = torch.load(tmp_path / "full.pt")
    state["cfg"]["model"]["adaptive_cutoffs"] = "10,20"
    torch.save(state, tmp_path / "adaptive.pt")
    with pytest.raises(UserError, match="no adaptive embedding and softmax"):
        main(["convert", "to-released", str(tmp_path / "adaptive.pt"), target])
    write_checkpoint(tmp_path / "fine.pt", data)
    with pytest.raises(UserError, match="3 shards do not divide"):
        main(["convert", "to-released", str(tmp_path / "fine.pt"), target, "--shards", "3"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tokens", ["bytes", "sentencepiece"])
def test_hugging_face_and_back(tokens, tmp_path):
    data = write_corpus(tmp_path / "c", "--tokens", tokens, "--pieces", "280")
    model = write_checkpoint(tmp_path / "a.pt", data, {"bytes": 260, "sentencepiece": 384}[tokens])
    main(["convert", "to-hf", str(tmp_path / "a.pt"), str(tmp_path / "hf")])
    back = tmp_path / "b.pt"
    main(["convert", "from-hf", str(tmp_path / "hf"), str(back), "--data", str(data)])
    lm = load(back, device=torch.device("cpu")).language_model
    assert lm.config == model.config
    assert all(torch.equal(lm.state_dict()[n], t) for n, t in model.state_dict().items())


def edited(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_bad_folders_of_hugging_face_are_refused(golden, data, tmp_path):
    corpus = write_corpus(tmp_path / "c")
    write_checkpoint(tmp_path / "a.pt", corpus)
    folder, target = tmp_path / "hf", str(tmp_path / "out.pt")
    main(["convert", "to-hf", str(tmp_path / "a.pt"), str(folder)])
    back = ["convert", "from-hf", str(folder), target, "--data"]
    with pytest.raises(UserError, match="has 40 symbols, the checkpoint 260"):
        main([*back, str(data)])
    edited(folder, num_layers=9)
    with pytest.raises(UserError, match=r"does not fit config.json(?s:.*)stack.blocks.8"):
        main([*back, str(corpus)])
    edited(folder, num_layers=2, model_type="llama")
    for direction in ("from-hf", "from-released"):
        with pytest.raises(UserError, match="model_type='llama'"):
            main(["convert", direction, str(folder), target, "--data", str(corpus)])
    (folder / "model.safetensors").unlink()
    edited(folder, model_type="megalodon")
    with pytest.raises(UserError, match="holds no checkpoint"):
        main([*back, str(corpus)])
    with pytest.raises(UserError, match="has no config.json with model_type='megalodon'"):
        main(
            [
                "convert",
                "from-hf",
                str(write_release(tmp_path / "r", golden)),
                target,
                "--data",
                "x",
            ]
        )
    other = write_corpus(tmp_path / "p", "--tokens", "sentencepiece", "--pieces", "280")
    with pytest.raises(UserError, match="the model has 260 symbols, its tokenizer"):
        main(["convert", "to-hf", str(tmp_path / "a.pt"), str(folder), "--data", str(other)])
    assert not (tmp_path / "out.pt").exists()
