"""Every validation counts for the best checkpoint and for early stopping, and only this run's do."""

import math

import pytest
import torch

from megalodon_tasks.errors import UserError
from tests.toy_plugin import runs

EVERY_2 = ("--validate-interval-updates", "2", "--max-update", "14", "--no-epoch-checkpoints")
SCORES = [16.7, 18.0, 21.7, 19.0, 17.5, 20.0, 18.3, 18.2, 18.1]


@pytest.fixture
def train(monkeypatch):
    """Train on given scores; return the updates at which validations took place."""

    def run(folder, scores, *arguments):
        remaining, steps = iter(scores), []

        def validate(cfg, trainer, *more):
            steps.append(trainer.get_num_updates())
            return [next(remaining)]

        monkeypatch.setattr(runs.fairseq_train, "validate", validate)
        runs.train(folder, *arguments)
        return steps

    return run


@pytest.fixture
def run_of_an_epoch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("epoch")
    runs.train(folder, "--max-epoch", "1")
    return folder


def best_of(folder):
    state = runs.state_of(folder, "checkpoint_best.pt")
    return state["updates"], state["best"]


@pytest.mark.parametrize(("best", "larger_is_better"), [(21.7, True), (16.7, False)])
def test_scores_between_two_saves_count(train, tmp_path, monkeypatch, best, larger_is_better):
    if not larger_is_better:
        settings = [s for s in runs.SETTINGS if s != "--maximize-best-checkpoint-metric"]
        monkeypatch.setattr(runs, "SETTINGS", settings)
    steps = train(tmp_path, SCORES, *EVERY_2, "--save-interval", "9")
    assert best_of(tmp_path) == (steps[SCORES.index(best)], best)
    assert runs.state_of(tmp_path)["best"] == best
    names = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert names == ["checkpoint_best.pt", "checkpoint_last.pt"]


def test_epochs_between_two_saves_count(train, tmp_path):
    steps = train(tmp_path, [50.0, 70.0, 60.0, 55.0], "--save-interval", "3", "--max-epoch", "4")
    assert best_of(tmp_path) == (steps[1], 70.0)


def test_several_best_checkpoints_are_of_all_validations(train, tmp_path):
    train(tmp_path, SCORES, *EVERY_2, "--save-interval", "9", "--keep-best-checkpoints", "2")
    names = [path.name for path in tmp_path.glob("checkpoint.best_accuracy_*.pt")]
    assert sorted(name[25:29] for name in names) == ["20.0", "21.7"]


def test_early_stopping_leaves_the_best_of_all(train, tmp_path):
    steps = train(tmp_path, [80.0, 60.0, 50.0, 99.0], *EVERY_2, "--patience", "2")
    assert steps == [2, 4, 6]
    assert best_of(tmp_path) == (2, 80.0)


@pytest.mark.parametrize("scores", [[math.nan, 50.0, 40.0], [50.0, math.nan, 40.0]])
def test_a_score_that_is_not_a_number_is_never_the_best(train, tmp_path, scores):
    steps = train(tmp_path, scores, "--max-epoch", "3")
    assert best_of(tmp_path) == (steps[scores.index(50.0)], 50.0)


def test_early_stopping_compares_with_numbers(train, tmp_path):
    scores = [math.nan, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0]
    steps = train(tmp_path, scores, *EVERY_2, "--patience", "2")
    assert best_of(tmp_path) == (steps[-1], 90.0)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_resumed_run_continues_to_count_towards_patience(train, tmp_path, parts):
    train(tmp_path, [80.0, 70.0, 60.0][:parts], "--max-epoch", str(parts), "--patience", "3")
    later = [70.0, 60.0, 50.0, 40.0, 30.0][parts - 1 :]
    steps = train(tmp_path, later, "--max-update", "60", "--patience", "3")
    assert steps[-1] == 24
    assert best_of(tmp_path) == (6, 80.0)


@pytest.mark.parametrize("option", ["--restore-file", "--finetune-from-model"])
def test_another_run_starts_without_a_best_score(train, tmp_path, option):
    train(tmp_path / "pretraining", [90.0], "--max-epoch", "1")
    last = tmp_path / "pretraining" / "checkpoint_last.pt"
    state = torch.load(last)
    state["extra_state"]["previous_training_time"] = 1e6
    torch.save(state, last)
    start = (option, str(last), "--patience", "2", "--stop-time-hours", "1", "--max-epoch", "3")
    steps = train(tmp_path / "run", [30.0, 40.0, 20.0], *start)
    assert best_of(tmp_path / "run") == (steps[1], 40.0)


def test_its_own_checkpoint_keeps_the_best_score(train, tmp_path):
    train(tmp_path, [90.0, 80.0], "--max-epoch", "2")
    own = ("--restore-file", str(tmp_path / "checkpoint2.pt"))
    train(tmp_path, [85.0], *own, "--max-epoch", "3")
    assert best_of(tmp_path) == (6, 90.0)


@pytest.mark.parametrize("option", ["--restore-file", "--finetune-from-model", "--continue-once"])
def test_a_missing_start_is_an_error(run_of_an_epoch, tmp_path, option):
    with pytest.raises(UserError, match=r"=gone\.pt: there is no such file; name a checkpoint"):
        runs.train(tmp_path / "run", option, "gone.pt")
    (run_of_an_epoch / "checkpoint_last.pt").unlink()
    with pytest.raises(UserError, match=f"did you mean {run_of_an_epoch / 'checkpoint1.pt'}"):
        runs.train(run_of_an_epoch, option, "checkpoint1.pt")


def test_two_starts_and_resets_of_a_finetuned_model_are_refused(run_of_an_epoch, tmp_path):
    file = str(run_of_an_epoch / "checkpoint1.pt")
    with pytest.raises(UserError, match="both name the checkpoint to start from"):
        runs.train(tmp_path / "run", "--restore-file", file, "--finetune-from-model", file)
    with pytest.raises(UserError, match="checkpoint.reset_meters does not go with"):
        runs.train(tmp_path / "run", "--reset-meters", "--finetune-from-model", file)


@pytest.mark.parametrize(
    "setting",
    [("--disable-validation",), ("--validate-after-updates", "99"), ("--validate-interval", "9")],
)
def test_a_run_without_a_score_says_that_there_is_no_best(tmp_path, caplog, setting):
    runs.train(tmp_path, "--max-epoch", "2", *setting)
    notices = [r.getMessage() for r in caplog.records if "no best checkpoint" in r.getMessage()]
    assert len(notices) == 1
    assert f"{tmp_path}: there is no best checkpoint" in notices[0]
    assert not (tmp_path / "checkpoint_best.pt").exists()


def test_a_run_with_a_score_does_not_say_so(tmp_path, caplog):
    runs.train(tmp_path, "--max-epoch", "2")
    assert "no best checkpoint" not in caplog.text
