"""``megalodon report RUN --training-curve``: the picture of one run."""

import pytest
from matplotlib.axes import Axes

from megalodon_tasks.cli.main import main
from megalodon_tasks.errors import UserError
from tests.runs.records import result, write_record

VALID = [{"step": 3, "loss": 2.0, "accuracy": 20.0}, {"step": 6, "loss": 1.5, "accuracy": 30.0}]


@pytest.fixture
def labels(monkeypatch):
    """Labels of the axes and of the horizontal lines that are drawn."""
    shown = []
    monkeypatch.setattr(Axes, "set_ylabel", lambda axes, label: shown.append(label))
    draw_line = Axes.axhline

    def axhline(axes, *args, label, **kwargs):
        shown.append(label)
        return draw_line(axes, *args, label=label, **kwargs)

    monkeypatch.setattr(Axes, "axhline", axhline)
    return shown


def test_the_picture_lies_in_the_run_unless_a_file_is_named(tmp_path, capsys):
    run = write_record(tmp_path / "run", valid=VALID, train_inner=[{"step": 2, "loss": 9.0}])
    assert main(["report", str(run), "--training-curve"]) == 0
    picture = run / "training_curve.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"wrote {picture}\n"
    assert main(["report", str(run), "--training-curve", str(tmp_path / "other.png")]) == 0
    assert (tmp_path / "other.png").exists()
    assert {path.name for path in run.iterdir()} == {"metrics.jsonl", "training_curve.png"}


def test_the_best_constant_answer_is_that_of_the_last_evaluation(tmp_path, labels):
    results = [result(best_constant=10.0), result(best_constant=11.5)]
    run = write_record(tmp_path / "run", results, valid=VALID)
    main(["report", str(run), "--training-curve"])
    assert labels == ["loss (bits)", "accuracy (%)", "best constant answer (11.5 %)"]


def test_a_language_model_has_perplexity_in_place_of_accuracy(tmp_path, labels):
    lines = [{"step": step, "loss": 9 - step, "ppl": 2.0 ** (9 - step)} for step in (3, 6)]
    main(["report", str(write_record(tmp_path / "run", valid=lines)), "--training-curve"])
    assert labels == ["loss (bits)", "perplexity per token"]


def test_a_loss_that_is_not_finite_leaves_a_gap(tmp_path):
    lines = [{"step": step, "loss": loss} for step, loss in ((1, 2.0), (2, float("nan")), (3, 1.0))]
    run = write_record(tmp_path / "run", train=lines)
    assert main(["report", str(run), "--training-curve"]) == 0


def test_a_run_without_losses_is_named(tmp_path):
    run = write_record(tmp_path / "run", [result()])
    with pytest.raises(UserError, match="run: no losses are recorded"):
        main(["report", str(run), "--training-curve"])


@pytest.mark.parametrize("more", [["other"], ["--output", "page"]])
def test_a_curve_is_that_of_one_run_and_makes_no_page(tmp_path, more):
    run = write_record(tmp_path / "run", valid=VALID)
    with pytest.raises(UserError, match="--training-curve draws one run and takes no --output"):
        main(["report", str(run), *more, "--training-curve", str(tmp_path / "picture.png")])
