"""benchmarks/RESULTS.md has a row for every figure asked of the ops, and says of each what follows."""

import re
from pathlib import Path

import pytest

from benchmarks.ops import HEADER
from benchmarks.ops_figures import FIGURES

PAGE = Path(__file__).resolve().parents[2] / "benchmarks" / "RESULTS.md"
TEXT = PAGE.read_text(encoding="utf-8")
OPS = TEXT[: TEXT.index("\n## Models")]


def figure_rows(text):
    """The cells of the rows ``| figure | asked | measured | verdict |`` of a text, in order."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in rows]
    return [row for row in cells if len(row) == 4 and row[1].startswith(("at least", "at most"))]


def test_every_figure_of_the_ops_has_its_row():
    asked = [[row["figure"], row["asked"]] for row in (figure.row([]) for figure in FIGURES)]
    assert [row[:2] for row in figure_rows(OPS)] == asked


@pytest.mark.parametrize("row", figure_rows(TEXT), ids=lambda row: row[0])
def test_the_verdict_follows_from_the_number(row):
    _, asked, measured, verdict = row
    if measured == "-":
        assert verdict == "not measured"
        return
    limit, number = float(asked.split()[-1]), float(measured)
    if number == limit:  # as printed, that is to three digits
        assert verdict in ("reached", "missed")
        return
    assert verdict == ("reached" if (number > limit) == asked.startswith("at least") else "missed")


def test_the_table_of_cases_has_the_columns_that_the_command_prints():
    assert "\n".join(HEADER) in TEXT
    rows = re.findall(r"^\| (?:cema|timestep_norm|sequence_norm|chunk_attention) \|.*$", TEXT, re.M)
    assert rows
    assert {row.count("|") for row in rows} == {HEADER[1].count("|")}
