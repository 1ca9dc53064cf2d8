"""The report on runs, through its command."""

import re
from html.parser import HTMLParser

import pytest

from megalodon_tasks.cli.main import main
from megalodon_tasks.data.provenance import describe_data
from megalodon_tasks.errors import UserError
from megalodon_tasks.recipes.lra.listops import prepare as prepare_listops
from megalodon_tasks.runs import comparability
from tests.recipes.test_listops import ROWS, write_files
from tests.runs.records import result, write_record
from tests.runs.test_comparability import config_of, result_of


class Tags(HTMLParser):
    """The page's tags must close in order, and it must load nothing from elsewhere."""

    VOID = {"meta", "img"}

    def __init__(self):
        super().__init__()
        self.open, self.sources = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


CURVE = [{"step": 1, "loss": 2.0, "accuracy": 20.0}, {"step": 2, "loss": 1.5, "accuracy": 30.0}]


@pytest.fixture
def make_run(tmp_path):
    """A function that leaves the files of a run in a folder."""

    def make(name, results=(), config=None):
        return write_record(tmp_path / name, results, config, valid=CURVE)

    return make


def made(tmp_path, *folders):
    assert main(["report", *map(str, folders), "--output", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert all(source.startswith("data:image/") for source in tags.sources)
    return page, (tmp_path / "page" / "report.md").read_text()


def section(markdown, title):
    """The lines of the table under a heading, as cells."""
    text = markdown.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if "---" not in line
    ]


def test_final_metrics_stand_beside_the_papers(tmp_path, make_run):
    old, new = result(value=1.0), result(value=51.25)
    _, markdown = made(
        tmp_path, make_run("run", results=[old, new, result(split="valid", value=9)])
    )
    lines = section(markdown, "Final metrics")[1:]
    assert [line[:2] for line in lines] == [["run", "51.25"], ["run", "9.00"]]
    published = {line[0]: line[1] for line in section(markdown, "Published")[1:]}
    assert published["lra/listops"] == "63.79"


def test_each_result_says_whether_it_compares_with_the_published_number(tmp_path, make_run):
    reasons = {
        "generated": "generated data",
        "subset": "subset: train has 10 items, the release 96,000",
        "whole": True,
    }
    for name, comparable in reasons.items():
        said = {"compared_with": "lra/listops", "comparable": comparable}
        make_run(f"runs/{name}", results=[result(**said)])
    make_run("runs/zold", results=[result()])
    _, markdown = made(tmp_path, tmp_path / "runs")
    lines = {line[0]: line[2:4] for line in section(markdown, "Final metrics")[1:]}
    assert lines["generated"] == ["63.79", "generated data"]
    assert lines["subset"] == ["63.79", reasons["subset"]]
    assert lines["whole"] == ["63.79", "yes"]
    assert lines["zold"][0] == "-"
    assert "earlier version" in lines["zold"][1]


def evaluated_on(folder, source, *options):
    """Leave the result of a faithful run in ``folder``, on data that is prepared from ``source``."""
    data = folder.with_name(f"data {folder.name}")
    assert main(["prepare", "lra/listops", str(source), str(data), *options]) == 0
    found = result_of("lra/listops", data=describe_data(data))
    found["training"] = found["training"] | {"manifest": found["data"]["manifest"]}
    found |= comparability.judge(found, config_of("lra/listops"))
    write_record(folder, [result() | found], valid=CURVE)


def test_runs_on_generated_subset_and_released_data(tmp_path, monkeypatch):
    """From the preparation of the data to the line of the report."""
    release, empty, runs = tmp_path / "release", tmp_path / "empty", tmp_path / "runs"
    write_files(release)
    empty.mkdir()
    options = "--generate --train 8 --valid 4 --test 4 --min-length 9 --max-length 40 --max-depth 5"
    evaluated_on(runs / "generated", empty, *options.split(), "--max-args", "4")
    evaluated_on(runs / "subset", release)
    counts = {split: len(lines) for split, lines in ROWS.items()}
    monkeypatch.setattr(prepare_listops, "RELEASED_COUNTS", counts)
    evaluated_on(runs / "released", release)
    page, markdown = made(tmp_path, runs)
    lines = {line[0]: line[2:4] for line in section(markdown, "Final metrics")[1:]}
    assert lines["generated"] == ["63.79", "generated data"]
    published, reason = lines["subset"]
    assert published == "63.79"
    assert reason.startswith("subset: train has ")
    assert lines["released"] == ["63.79", "yes"]
    assert reason in page


def test_differing_fields_are_shown_once(tmp_path, make_run):
    for seed in (1, 2):
        config = {
            "common": {"seed": seed}, "task": {"seed": seed, "data": f"d{seed}"},
            "model": {"chunk_size": None if seed == 1 else 64, "z_dim": 3},
            "checkpoint": {"save_dir": f"s{seed}"},
        }  # fmt: skip
        make_run(f"runs/{seed}", results=[result()], config=config)
    _, markdown = made(tmp_path, tmp_path / "runs")
    assert section(markdown, "What differs") == [
        ["run", "common.seed", "model.chunk_size"], ["1", "1", "null"], ["2", "2", "64"],
    ]  # fmt: skip


def test_equal_runs_and_runs_without_results(tmp_path, make_run):
    config = {"task": {"_name": "lra_text"}, "checkpoint": {"best_checkpoint_metric": "accuracy"}}
    make_run("runs/a", config=config)
    make_run("runs/b", config=config)
    page, markdown = made(tmp_path, tmp_path / "runs")
    assert "All runs have the same configuration." in markdown
    line = section(markdown, "Final metrics")[1]
    assert line[:6] == ["a", "not evaluated", "-", "-", "accuracy", "lra_text"]
    assert page.count("data:image/svg+xml") == 1


def test_one_picture_per_benchmark(tmp_path, make_run):
    make_run("runs/a", results=[result()])
    make_run("runs/b", results=[result(benchmark="lra/text")])
    page, _ = made(tmp_path, tmp_path / "runs")
    assert re.findall(r"Curves: (\S+)</h2>", page) == ["lra/listops", "lra/text"]


def test_names_are_escaped(tmp_path, make_run):
    page, markdown = made(tmp_path, make_run("a", results=[result(device="<b>|card</b>")]))
    assert "&lt;b&gt;|card&lt;/b&gt;" in page
    assert "&lt;b&gt;\\|card&lt;/b&gt;" in markdown
    assert "0123456789ab-dirty" in markdown


def test_a_run_with_only_results_and_a_torn_last_line(tmp_path):
    folder = write_record(tmp_path / "run", [result()])
    with open(folder / "results.jsonl", "a") as stream:
        stream.write('{"benchmark": "lra/li')
    _, markdown = made(tmp_path, folder)
    assert section(markdown, "Final metrics")[1][1] == "51.25"


def test_what_cannot_be_read_is_named(tmp_path, make_run):
    with pytest.raises(UserError, match="there is no such folder"):
        main(["report", str(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds metrics.jsonl or results.jsonl"):
        main(["report", str(tmp_path / "empty")])
    folder = make_run("run", results=[result(), result()])
    (folder / "results.jsonl").write_text("nonsense\n{}\n")
    with pytest.raises(UserError, match=r"results\.jsonl, line 1: not a JSON object: 'nonsense'"):
        main(["report", str(folder)])
    (folder / "results.jsonl").write_text('{"benchmark": "lra/listops"}\n')
    with pytest.raises(UserError, match=r"results\.jsonl, line 1: not a result"):
        main(["report", str(folder)])


def test_a_run_that_cannot_be_read_is_left_out_and_named(tmp_path, make_run, capsys):
    make_run("runs/good", results=[result(value=7.0)])
    with open(make_run("runs/torn", results=[result(value=8.0)]) / "results.jsonl", "a") as file:
        file.write('{"benchmark": "lra/lis')
    (make_run("runs/bad", results=[result()]) / "results.jsonl").write_text("nonsense\n")
    (tmp_path / "runs" / "sweep.json").write_text('{"recipe": ')
    page, markdown = made(tmp_path, tmp_path / "runs")
    said = capsys.readouterr().err
    for text in (page, markdown, said):
        assert "bad/results.jsonl, line 1: not a JSON object" in text
        assert "torn/results.jsonl, line 2 was cut short or damaged and is left out" in text
        assert "sweep.json is damaged" in text
    assert [line[:2] for line in section(markdown, "Final metrics")[1:]] == [
        ["good", "7.00"], ["torn", "8.00"],
    ]  # fmt: skip


def test_runs_in_two_sweeps_with_one_name_are_two(tmp_path, make_run):
    for folder in ("a/runs/x", "a/x", "b/runs/x"):
        make_run(folder, results=[result()], config={"common": {"seed": folder}})
    _, markdown = made(tmp_path, tmp_path / "a", tmp_path / "b")
    names = [line[0] for line in section(markdown, "What differs")[1:]]
    assert names == ["a/runs/x", "a/x", "b/x"]


@pytest.mark.parametrize(
    "missing", ["n", "update", "params", "versions", "commit", "date", "device"]
)
def test_a_line_without_a_number_has_its_row(tmp_path, make_run, missing):
    line = result()
    del line[missing]
    make_run("run", results=[line])
    _, markdown = made(tmp_path, tmp_path / "run")
    assert section(markdown, "Final metrics")[1][:2] == ["run", "51.25"]
