"""Numbers on the command line: what is accepted, and what the messages say."""

import argparse

import pytest

from megalodon_tasks.cli.main import main
from megalodon_tasks.option_types import LARGEST, real, whole


def parse(kind, text):
    parser = argparse.ArgumentParser(prog="program")
    parser.add_argument("--n", type=kind)
    return parser.parse_args([f"--n={text}"]).n


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (whole(1), "1", 1),
        (whole(0), str(LARGEST), LARGEST),
        (real(), "-1e3", -1000.0),
        (real(0, 1), "1", 1.0),
    ],
)
def test_accepted(kind, text, value):
    assert parse(kind, text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (whole(1), "0", "--n: 0 must be at least 1"),
        (whole(0), "9" * 40, f"exceeds {LARGEST}"),
        (whole(0, 8), "9", "9 exceeds 8"),
        (whole(0), "1.5", "'1.5'"),
        (real(), "nan", "nan must be a finite number\n"),
        (real(0), "-1", "-1 must be a finite number of at least 0"),
        (real(0, 1), "inf", "inf must be a finite number from 0 to 1"),
        (real(), "seven", "'seven'"),
    ],
)
def test_refused(capsys, kind, text, message):
    with pytest.raises(SystemExit, match="2"):
        parse(kind, text)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "x", "--temperature=nan"], "nan must be a finite number"),
        (["sample", "x", "--top-p=2"], "2 must be a finite number from 0 to 1"),
        (["evaluate", "x", "--num-workers=-1"], "-1 must be at least 0"),
        (["evaluate", "x", "--batch-size=0"], "0 must be at least 1"),
        (["evaluate-translation", "x", "--lenpen=1e9"], "1e9 must be a finite number"),
        (["prepare", "lm/text", "x", "y", "--workers=100000"], "100000 exceeds 1024"),
        (["prepare", "lra/text", "x", "y", "--max-rejects=-1"], "-1 must be at least 0"),
    ],
)
def test_commands_refuse_at_once(capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert message in capsys.readouterr().err
