import itertools
import logging
import multiprocessing
import sys

import pytest
import torch
from fairseq import checkpoint_utils, options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import setup_task
from fairseq_cli import train as fairseq_train
from fairseq_cli import validate as fairseq_validate
from omegaconf import OmegaConf

from megalodon_tasks.cli import evaluate
from megalodon_tasks.data.sequences import ColumnSpec
from megalodon_tasks.errors import UserError
from megalodon_tasks.models.inputs import ClassifierInputs
from megalodon_tasks.recipes.lra.task import LraTextConfig, LraTextTask
from tests.data.prepared import spec_of, write_items, write_random

COMMAND = "megalodon prepare lra/listops SOURCE"
ITEMS, BATCH = 40, 7


@pytest.fixture
def data(tmp_path):
    return write_random(tmp_path / "data", counts=(ITEMS, 12, 12)).folder


def task_with(data, seed=1, **changes):
    fields = {"seed": seed, "train_subset": "train", "valid_subset": "valid"}
    cfg = OmegaConf.structured(LraTextConfig(_name="lra_text", **fields))
    return setup_task(OmegaConf.merge(cfg, {"data": data and str(data), **changes}))


def test_registered_task_is_ours(data):
    task = task_with(data)
    assert type(task) is LraTextTask
    assert task.source_dictionary is None
    assert task.target_dictionary is None


def test_inputs_describe_the_data(data):
    task = task_with(data)
    longest = max(task.prepared.split(name).info.max_length["inputs"] for name in ("train", "test"))
    assert task.inputs == ClassifierInputs("tokens", 3, 11, 0, longest)
    assert task.max_positions() == longest
    assert task_with(data, max_positions=2002).inputs.max_length == 2002


def test_two_columns_are_a_pair(tmp_path):
    columns = {"inputs": ColumnSpec("uint8"), "inputs2": ColumnSpec("uint8")}
    data = write_random(tmp_path, columns=columns).folder
    assert task_with(data).inputs.pair


def test_splits_are_loaded(data):
    task = task_with(data)
    for split in ("train", "valid", "test"):
        task.load_dataset(split, combine=False, epoch=1)
    assert [len(task.dataset(split)) for split in ("train", "valid", "test")] == [ITEMS, 12, 12]
    assert task.dataset("train").shuffle
    assert not task.dataset("test").shuffle
    with pytest.raises(UserError, match=f"{data} has no split 'dev'; it has train, valid, test"):
        task.load_dataset("dev")


def test_length_pool_is_of_training_alone(data):
    task = task_with(data, length_pool=20)
    for split in ("train", "valid"):
        task.load_dataset(split)
    sizes = task.dataset("train").sizes[task.dataset("train").ordered_indices()]
    assert (sizes[:-1] > sizes[1:]).sum() == 1  # two pools of the 40 items
    with pytest.raises(UserError, match="task.length_pool=-1 is negative"):
        task_with(data, length_pool=-1).load_dataset("train")


def empty(folder):
    folder.mkdir()


def truncated(folder):
    path = write_random(folder).folder / "train.inputs.bin"
    path.write_bytes(path.read_bytes()[:-1])


def nothing(folder):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "task.data: the data folder {data} does not exist; .* with: {command}"),
        (empty, "task.data: the data folder {data} is empty: manifest.json is missing; prepare"),
        (truncated, "task.data: {data}/train.inputs.bin has .* bytes, expected .*{command}"),
        (
            lambda folder: write_random(folder, benchmark="cifar"),
            "task.data: {data} holds data of the benchmark 'cifar', wanted listops or text or retrieval;"
            " .*{command}",
        ),
    ],
)
def test_bad_data_folder_is_named_with_the_remedy(tmp_path, make, message):
    make(tmp_path / "data")
    data = tmp_path / "data"
    with pytest.raises(UserError, match=message.format(data=data, command=f"{COMMAND} {data}")):
        task_with(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "task.data=None names no folder of prepared data; .*SOURCE DATA"),
        ({"benchmark": "list-ops"}, "task.benchmark='list-ops' is unknown .* it has listops"),
    ],
)
def test_bad_setting_is_named(data, changes, message):
    with pytest.raises(UserError, match=message):
        task_with(changes.pop("data", data), **changes)


def test_relative_folder_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}/here does not exist"):
        task_with("here")


def test_too_long_sequence_is_named(data):
    task = task_with(data, max_positions=3)
    with pytest.raises(UserError, match="split 'train' of .* but the limit is 3.*max_positions"):
        task.load_dataset("train")


def test_what_the_model_cannot_take_is_named(data):
    task = task_with(data)
    task.load_dataset("train")
    iterator = iterator_of(task, max_positions=2, ignore_invalid_inputs=True)
    with pytest.raises(UserError, match="the limit is 2"):
        len(iterator)


def iterator_of(task, epoch=1, **settings):
    """The iterator that fairseq's trainer asks for."""
    settings = {"max_positions": task.max_positions(), "data_buffer_size": 10, **settings}
    return task.get_batch_iterator(
        task.dataset("train"), max_sentences=BATCH, seed=1, epoch=epoch, **settings
    )


def ids(batches):
    return [batch["id"].tolist() for batch in batches]


@pytest.fixture
def data_workers():
    """The data workers started since the test began; ended with it, which torch would take long for."""
    before = set(multiprocessing.active_children())

    def started():
        return set(multiprocessing.active_children()) - before

    yield started
    for worker in started():
        worker.kill()
        worker.join()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("finished", [0, 2], ids=["at an epoch's start", "inside an epoch"])
def test_resumed_process_has_the_same_batches(data, data_workers, num_workers, finished):
    running = task_with(data)
    running.load_dataset("train")
    for epoch in (1, 2, 3):
        iterator = iterator_of(running, epoch, num_workers=num_workers)
        batches = iterator.next_epoch_itr()
        before = ids(itertools.islice(batches, finished))
        state = iterator.state_dict()
        rest = ids(batches)
    assert sorted(sum(before + rest, [])) == list(range(ITEMS))
    assert len(data_workers()) == num_workers, "the workers of earlier epochs are alive"

    resumed = task_with(data)
    resumed.load_dataset("train")
    iterator = iterator_of(resumed, state["epoch"], num_workers=num_workers)
    iterator.load_state_dict(state)
    assert ids(iterator.next_epoch_itr()) == rest
    following = [
        ids(iterator_of(task, 4, num_workers=num_workers).next_epoch_itr())
        for task in (running, resumed)
    ]
    assert following[0] == following[1] != rest


def test_training_split_may_be_evaluated_too(data):
    task = task_with(data, train_subset="valid", valid_subset="test,valid")
    task.load_dataset("valid")
    assert task.dataset("valid").shuffle
    settings = {"max_sentences": BATCH, "seed": 1}
    training = task.get_batch_iterator(task.dataset("valid"), **settings)
    batches = training.next_epoch_itr()
    next(batches)
    evaluation = task.get_batch_iterator(task.dataset("valid"), **settings)
    assert sorted(sum(ids(evaluation.next_epoch_itr(shuffle=False)), [])) == list(range(12))
    assert len(ids(batches)) == 1
    assert training.epoch == 1


MODEL = "--arch megalodon_lra_listops --model-dim 8 --value-dim 8 --z-dim 4 --ffn-hidden-dim 8"
TRAIN = f"""
--task lra_text --benchmark listops --criterion classification {MODEL} --num-layers 1 --cema-ndim 2
--batch-size 10 --required-batch-size-multiple 1 --cpu --num-workers 0 --optimizer adamw_groups
--lr 0.05 --lr-scheduler linear_decay --max-update 24 --seed 3 --log-format none
--best-checkpoint-metric accuracy --maximize-best-checkpoint-metric --keep-last-epochs 1
"""
VALIDATE = (
    "--task lra_text --valid-subset test --batch-size 5 --num-workers 0 --cpu --log-format json"
)


def run(main, parser, arguments, **options_of_main):
    root = logging.getLogger()
    level = root.level
    argv, sys.argv = sys.argv, ["fairseq"]  # fairseq looks at it for plasma
    try:
        parsed = options.parse_args_and_arch(parser, input_args=arguments)
        main(convert_namespace_to_omegaconf(parsed), **options_of_main)
    finally:
        sys.argv = argv
        root.setLevel(level)


def train(data, save_dir, *arguments):
    line = [str(data), *TRAIN.split(), "--save-dir", str(save_dir), *arguments]
    run(fairseq_train.main, options.get_training_parser(), line)


@pytest.fixture
def learnable(tmp_path):
    """The class of a sequence is its first token, less one."""
    items = [(label, {"inputs": torch.tensor([label + 1, 5, 6, 7]).numpy()}) for label in (0, 1, 2)]
    splits = dict.fromkeys(("train", "valid", "test"), items * 10)
    return write_items(tmp_path / "learnable", spec_of(), splits).folder


def test_train_and_validate_with_fairseq(learnable, tmp_path, monkeypatch):
    train(learnable, tmp_path / "run")
    best = tmp_path / "run" / "checkpoint_best.pt"
    state = checkpoint_utils.load_checkpoint_to_cpu(str(best))
    assert state["extra_state"]["best"] == 100.0
    assert state["cfg"]["task"]["benchmark"] == "listops"

    found = []
    reduce_metrics = LraTextTask.reduce_metrics

    def keep(self, logging_outputs, criterion):
        found.extend(logging_outputs)
        reduce_metrics(self, logging_outputs, criterion)

    monkeypatch.setattr(LraTextTask, "reduce_metrics", keep)
    line = [str(learnable), *VALIDATE.split(), "--path", str(best)]
    run(fairseq_validate.main, options.get_validation_parser(), line)
    assert sum(log["nsentences"] for log in found) == 30
    assert sum(int(log["correct"]) for log in found) == 30


@pytest.mark.parametrize("names", ["vocabulary", "classes"])
def test_data_of_other_names_than_those_of_the_checkpoint_are_refused(learnable, tmp_path, names):
    train(learnable, tmp_path / "run", "--max-update", "1")
    best = str(tmp_path / "run" / "checkpoint_best.pt")
    renamed = tuple(reversed(getattr(spec_of(), names)))
    other = write_random(tmp_path / "other", **{names: renamed}).folder
    count = len(renamed)
    with pytest.raises(UserError, match=f"model.{names}: .* trained with {count}:.* has {count}:"):
        evaluate.main([best, "--data", str(other), "--cpu"])
    assert (
        evaluate.main([best, "--data", str(write_random(tmp_path / "same").folder), "--cpu"]) == 0
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chunk-size", "0"], "model.chunk_size=0"),
        (["--num-heads", "3"], "model.num_heads=3 does not divide"),
        (["--label-smoothing", "1.5"], "criterion.label_smoothing=1.5"),
    ],
)
def test_impossible_model_or_criterion_is_a_user_error(learnable, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        train(learnable, tmp_path / "run", *arguments)
