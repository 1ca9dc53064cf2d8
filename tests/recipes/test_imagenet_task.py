"""The task within fairseq: what it refuses, exact resumption, damaged images, averaged weights."""

import logging
import math
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from fairseq.optim import FairseqOptimizer, lr_scheduler
from fairseq.tasks import setup_task
from omegaconf import OmegaConf

from megalodon_tasks import timm_model
from megalodon_tasks.cli.main import main
from megalodon_tasks.errors import UserError
from megalodon_tasks.models.classifier import ClassifierInputs
from megalodon_tasks.recipes.imagenet.task import ImagenetConfig, ImagenetTask
from tests.recipes.image_files import build_index, write_tree
from tests.recipes.test_configurations import RECIPES, layers
from tests.toy_plugin import runs

# 24 images, 4 updates an epoch
_TRAINING = """
--task imagenet --arch megalodon_imagenet_tiny --num-layers 2 --model-dim 16 --value-dim 16 --z-dim 8
--ffn-hidden-dim 24 --cema-ndim 2 --norm-num-groups 2 --image-size 16 --patch-size 8 --drop-path 0.2
--criterion classification --label-smoothing 0.1 --lr-scheduler cosine_by_epoch --warmup-epochs 1
--cosine-epochs 3 --spare-vectors --lr 0.01 --max-update 11 --batch-size-valid 4
"""
TRAINING = _TRAINING.split()


@pytest.fixture
def images(tmp_path):
    return write_tree(tmp_path / "images")


@pytest.fixture
def index(images, tmp_path, monkeypatch):
    build_index(images, tmp_path / "index")
    monkeypatch.chdir(tmp_path / "index")  # the toy plugin's runs read the data of this folder
    return tmp_path / "index"


def task_with(index, **changes):
    fields = {"seed": 1, "train_subset": "train", "valid_subset": "valid", "store_ema": False}
    cfg = OmegaConf.structured(ImagenetConfig(_name="imagenet", **fields))
    return setup_task(OmegaConf.merge(cfg, {"data": index and str(index), **changes}))


def test_registered_task_is_ours_and_describes_its_data(index):
    task = task_with(index)
    assert type(task) is ImagenetTask
    assert task.inputs == ClassifierInputs(
        "patches", num_classes=3, max_length=196, image_size=(224, 224), patch_size=16
    )
    assert task.max_positions() == 196
    assert task_with(index, image_size=32, patch_size=8).inputs.max_length == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 15}, "task.patch_size=15 does not divide task.image_size=224"),
        ({"image_size": 0}, "task.patch_size=16 does not divide task.image_size=0"),
        ({"hflip": 3.0}, "task.hflip=3.0"),
        ({"data": None}, "names no folder of prepared data; prepare a folder with: megalodon"),
        (
            {"data": "nowhere"},
            r"nowhere does not exist.*megalodon prepare imagenet/imagenet IMAGES",
        ),
    ],
)
def test_bad_settings_are_refused(index, changes, message):
    with pytest.raises(UserError, match=message):
        task_with(index, **changes)


def test_the_images_themselves_are_no_index(images, index):
    with pytest.raises(
        UserError, match=r"manifest.json is missing.*prepare imagenet/imagenet IMAGES"
    ):
        task_with(images)


def iterate(task, shards=1, shard=0, **changes):
    task.load_dataset("train")
    settings = {"max_sentences": 6, "num_shards": shards, "shard_id": shard, "seed": 1}
    return task.get_batch_iterator(task.dataset("train"), **(settings | changes))


def test_processes_share_an_epoch_and_see_the_views_of_an_image_at_one_step(index):
    ids = []
    for shard in range(2):
        batches = list(
            iterate(task_with(index, image_size=16, patch_size=8), 2, shard).next_epoch_itr()
        )
        assert [len(batch["id"]) for batch in batches] == [6, 6]
        ids.append([batch["id"] for batch in batches])
    for one, other in zip(*ids, strict=True):
        assert not set(one.tolist()) & set(other.tolist())
        # 12 consecutive places of the order are 4 or 5 images, three views each
        assert len(set((torch.cat([one, other]) % 24).tolist())) <= 5


def test_mixing_needs_pairs(index):
    with pytest.raises(UserError, match="dataset.batch_size=5 is odd, and mixup"):
        iterate(task_with(index), max_sentences=5)
    assert len(iterate(task_with(index, mix_prob=0.0), max_sentences=5)) == 4
    with pytest.raises(UserError, match="no batch of 26"):
        len(iterate(task_with(index), max_sentences=26))


def test_a_bad_policy_is_refused_where_it_is_used(index):
    task = task_with(index, auto_augment="nope")
    with pytest.raises(UserError, match="task.auto_augment='nope'"):
        task.load_dataset("train")
    task.load_dataset("valid")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_is_the_uninterrupted_one(index, tmp_path, workers):
    """Within an epoch, with drop path, mixing and repeated augmentation, and with other workers."""
    whole = runs.train(tmp_path / "whole", *TRAINING, "--save-interval-updates", "6")
    (tmp_path / "again").mkdir()
    middle = tmp_path / "whole" / "checkpoint_2_6.pt"
    shutil.copy(middle, tmp_path / "again" / "checkpoint_last.pt")
    arguments = [*TRAINING, "--save-interval-updates", "6", "--num-workers", str(workers)]
    resumed = runs.train(tmp_path / "again", *arguments)
    for key, fields in resumed.items():
        assert fields == whole[key], key
    states = [runs.state_of(tmp_path / name) for name in ("again", "whole")]
    runs.assert_equal(*states)


def test_a_run_survives_a_damaged_training_image_and_says_so(index, images, tmp_path, caplog):
    victim = sorted((images / "train").rglob("*.JPEG"))[4]
    victim.write_bytes(victim.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        runs.train(tmp_path / "run", *TRAINING)
    lines = [record.getMessage() for record in caplog.records]
    assert (
        sum(line.startswith(f"replaced by the next image: {victim} cannot") for line in lines) == 1
    )
    # at the end of each epoch, from that on which first draws the image
    counted = [int(line.split()[0]) for line in lines if "views were replaced so far" in line]
    assert counted == sorted(counted)
    assert counted[0] > 0
    assert lines.count("left out as damaged: 1") == len(counted)
    assert (tmp_path / "run" / "checkpoint_best.pt").is_file()


def test_a_damaged_validation_image_ends_the_run_in_one_message(index, images, tmp_path):
    victim = sorted((images / "val").rglob("*.JPEG"))[1]
    victim.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{victim} cannot be decoded .* would not compare"):
        runs.train(tmp_path / "run", *TRAINING)


def test_averaged_weights_are_validated_kept_and_resumed(index, tmp_path, capsys):
    averaging = [*TRAINING, "--store-ema", "--ema-decay", "0.5", "--save-interval-updates", "6"]
    events = runs.train(tmp_path / "run", *averaging)
    saved = torch.load(tmp_path / "run" / "checkpoint_last.pt")
    assert saved["cfg"]["task"]["store_ema"] is True
    raw, averaged = saved["model"], saved["extra_state"]["ema"]
    assert raw.keys() == averaged.keys()
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)

    task = task_with(index, image_size=16, patch_size=8)
    task.load_dataset("valid")
    batches = task.get_batch_iterator(task.dataset("valid"), max_sentences=6)
    (batch,) = batches.next_epoch_itr(shuffle=False)
    model = timm_model.from_checkpoint(tmp_path / "run" / "checkpoint_last.pt", ema=True)
    loss = torch.nn.functional.cross_entropy(model(batch["net_input"]["inputs"]), batch["target"])
    logged = float(events["valid", 11]["loss"])
    assert logged == pytest.approx(loss.item() / math.log(2), abs=2e-4)
    checkpoint = str(tmp_path / "run" / "checkpoint_last.pt")
    main(["evaluate", checkpoint, "--data", str(index), "--cpu", "--ema"])
    assert f"loss {logged:.3f})" in capsys.readouterr().out

    (tmp_path / "again").mkdir()
    middle = tmp_path / "run" / "checkpoint_2_6.pt"
    shutil.copy(middle, tmp_path / "again" / "checkpoint_last.pt")
    runs.train(tmp_path / "again", *averaging)
    again = torch.load(tmp_path / "again" / "checkpoint_last.pt")
    runs.assert_equal(again["extra_state"]["ema"], averaged)


def test_the_command_evaluates_a_checkpoint_on_the_validation_images(index, tmp_path, capsys):
    runs.train(tmp_path / "run", *TRAINING)
    checkpoint = tmp_path / "run" / "checkpoint_best.pt"
    main(["evaluate", str(checkpoint), "--data", str(index), "--split", "test", "--cpu"])
    printed = capsys.readouterr().out
    assert "accuracy on test (6 items" in printed
    assert "33.33" in printed
    with pytest.raises(UserError, match="holds no averaged weights; train with ema.store_ema=true"):
        main(["evaluate", str(checkpoint), "--data", str(index), "--cpu", "--ema"])


def scheduler(**changes):
    """The recipe's schedule with ``changes``."""
    recipe = layers(RECIPES / "imagenet" / "imagenet.yaml")
    settings = {
        **recipe.lr_scheduler, "cosine_epochs": None,
        "max_epoch": recipe.optimization.max_epoch, "lr": recipe.optimization.lr,
    }  # fmt: skip
    optimizer = FairseqOptimizer(SimpleNamespace())
    optimizer._optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.5)
    return lr_scheduler.build_lr_scheduler(OmegaConf.create(settings | changes), optimizer)


# Computed from Mega's code: 20 epochs of warm-up, then a cosine of 300 epochs that is cut off at 300.
RATES = {0: 1e-5, 10: 1.005e-3, 20: 2e-3, 100: 1.669e-3, 200: 6.92e-4, 250: 2.577e-4, 299: 2.507e-5}


def test_the_learning_rate_of_the_recipe_is_that_of_mega():
    schedule = scheduler()
    assert schedule.step_update(0) == RATES[0]
    for epoch, rate in RATES.items():
        assert schedule.step_begin_epoch(epoch + 1) == pytest.approx(rate, rel=1e-3)
        # the same for all updates of an epoch
        assert schedule.step_update(1251 * epoch + 700) == pytest.approx(rate, rel=1e-3)
    assert layers(RECIPES / "imagenet" / "imagenet.yaml").optimization.max_epoch == 300


def test_a_resumed_run_has_the_rate_of_its_epoch():
    """Whatever rates the optimizer held when it was saved."""
    schedule = scheduler(warmup_epochs=2, cosine_epochs=4, max_epoch=6)
    schedule.optimizer.set_lr(0.123)
    rates = [schedule.step_begin_epoch(epoch) for epoch in (5, 1, 3, 5)]
    assert rates == pytest.approx([1.0005e-3, 1e-5, 2e-3, 1.0005e-3])


def test_each_epoch_of_a_run_has_one_rate(index, tmp_path):
    events = runs.train(tmp_path / "run", *TRAINING)
    rates = [float(events["train", update]["lr"]) for update in (4, 8)]
    assert rates == pytest.approx([1e-5, 0.01])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_epochs": -1}, "warmup_epochs=-1 must be at least 0"),
        ({"max_epoch": 0}, "set optimization.max_epoch"),
        ({"cosine_epochs": 0}, "set optimization.max_epoch"),
        ({"lr": [0.1, 0.2]}, "takes one rate"),
    ],
)
def test_bad_schedules_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        scheduler(**changes)


def test_a_warm_up_beyond_the_end_is_pointed_out(caplog):
    scheduler(warmup_epochs=30, max_epoch=30)
    assert "never reaches its peak" in caplog.text


def test_top5_is_evaluated_where_there_are_many_classes(tmp_path, monkeypatch, capsys):
    classes = tuple(f"n{i:03d}" for i in range(100))
    build_index(write_tree(tmp_path / "images", 1, 1, classes), tmp_path / "index")
    monkeypatch.chdir(tmp_path / "index")
    runs.train(tmp_path / "run", *TRAINING, "--max-update", "2", "--batch-size-valid", "50")
    main(["evaluate", str(tmp_path / "run" / "checkpoint_best.pt"), "--cpu"])
    found = re.search(r"this checkpoint, top 5 +(\d+\.\d\d)", capsys.readouterr().out)
    # whole images of 100; untrained, so about 5
    assert 0.0 <= float(found[1]) < 50.0
    assert float(found[1]) == int(float(found[1]))
