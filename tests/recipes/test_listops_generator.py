import collections
import json
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest

from megalodon_tasks.recipes.lra.listops import generator as listops_generator
from megalodon_tasks.recipes.lra.listops.feasibility import (
    check_feasible,
    count_distinct,
    length_probabilities,
)
from megalodon_tasks.recipes.lra.listops.generator import Settings, generate, lines_of
from megalodon_tasks.recipes.lra.listops.prepare import main
from megalodon_tasks.recipes.lra.listops.release import FILES, read_rows
from megalodon_tasks.recipes.lra.listops.sampling import Grammar, sample_expressions

SHORT = Grammar(min_length=9, max_length=40, max_depth=5, max_args=4)
SMALL = Settings(train=60, valid=20, test=20, seed=3, grammar=SHORT)


# The definition, read aloud: draw whole trees, keep those of a right length.


def literal_tree(rng, grammar, depth=1):
    if depth < grammar.max_depth and rng.random() < 0.25:
        count = rng.randint(2, grammar.max_args)
        arguments = [literal_tree(rng, grammar, depth + 1) for _ in range(count)]
        return (rng.choice(("[MIN", "[MAX", "[MED", "[SM")), arguments)
    return rng.randint(0, 9)


def literal_length(tree):
    return 1 if isinstance(tree, int) else 2 + sum(map(literal_length, tree[1]))


def literal_value(tree):
    if isinstance(tree, int):
        return tree
    values = [literal_value(argument) for argument in tree[1]]
    operations = {"[MIN": min, "[MAX": max, "[SM": lambda v: sum(v) % 10}
    return operations.get(tree[0], lambda v: int(np.median(v)))(values)


def literal_text(tree):
    if isinstance(tree, int):
        return str(tree)
    text = tree[0]
    for part in [*map(literal_text, tree[1]), "]"]:
        text = f"( {text} {part} )"
    return text


def literal_sample(count, grammar, seed=0):
    rng = random.Random(seed)
    kept = []
    while len(kept) < count:
        tree = literal_tree(rng, grammar)
        if grammar.min_length < literal_length(tree) < grammar.max_length:
            kept.append(f"{literal_text(tree)}\t{literal_value(tree)}")
    return kept


def fast_sample(count, grammar, seed=0):
    rng = np.random.default_rng(seed)
    kept = []
    while len(kept) < count:
        expressions = sample_expressions(rng, 2048, grammar)
        kept += [line.decode().rstrip("\n") for line in lines_of(expressions, grammar.max_args)]
    return kept[:count]


def features(line):
    """What a distribution is compared by: each is one category of one expression."""
    source, target = line.split("\t")
    symbols = source.split()
    depth = deepest = 0
    arguments = [[]]
    counts = []
    for symbol in symbols:
        if symbol.startswith("["):
            depth += 1
            deepest = max(deepest, depth)
            arguments[-1].append(symbol)
            arguments.append([])
        elif symbol == "]":
            depth -= 1
            counts.append(len(arguments.pop()))
        elif symbol not in "()":
            arguments[-1].append(symbol)
    plain = [symbol for symbol in symbols if symbol not in "()"]
    return {
        "length": len(plain),
        "target": target,
        "deepest": deepest,
        "operators": len(counts),
        "first count": counts[0],
        "last count": counts[-1],
        "root": plain[0],
        "second": plain[1],
        "middle": plain[len(plain) // 2],
    }


def chi_square(a, b):
    """Statistic and degrees of freedom for equal distributions of two samples of equal size."""
    counts = [collections.Counter(sample) for sample in (a, b)]
    common, rare = [], np.zeros(2)
    for category in set(a) | set(b):
        pair = np.array([count[category] for count in counts], dtype=float)
        if pair.sum() < 20:
            rare += pair
        else:
            common.append(pair)
    if rare.sum() >= 20:
        common.append(rare)
    return sum((x - y) ** 2 / (x + y) for x, y in common), max(len(common) - 1, 1)


@pytest.mark.parametrize(
    "grammar",
    [SHORT, Grammar(2, 30, 3, 10), Grammar(15, 25, 10, 3)],
    ids=["short", "shallow", "deep"],
)
def test_distribution_is_that_of_rejection_sampling(grammar):
    slow, fast = (
        [features(line) for line in f(4000, grammar)] for f in (literal_sample, fast_sample)
    )
    for name in slow[0]:
        statistic, freedom = chi_square([f[name] for f in slow], [f[name] for f in fast])
        # 4.5 standard deviations of the statistic: about one false alarm in 10^5
        assert statistic < freedom + 4.5 * np.sqrt(2 * freedom) + 5, f"{name}: {statistic}"


@pytest.mark.parametrize("length", [5, 9, 12])
def test_each_length_has_its_probability(length):
    grammar = Grammar(length - 1, length + 1, 4, 4)
    kept = sum(
        len(sample_expressions(np.random.default_rng(unit), 10_000, grammar).starts)
        for unit in range(5)
    )
    probability = length_probabilities(grammar)[length]
    deviation = np.sqrt(50_000 * probability)
    assert abs(kept - 50_000 * probability) < 4.5 * deviation


def test_text_and_value_are_those_of_the_definition():
    literal = {line.split("\t")[0]: line for line in literal_sample(20_000, Grammar(0, 6, 3, 3))}
    fast = fast_sample(20_000, Grammar(0, 6, 3, 3))
    known = [line for line in fast if line.split("\t")[0] in literal]
    assert len(known) > 15_000
    assert all(literal[line.split("\t")[0]] == line for line in known)


def test_full_size_expressions_are_within_bounds():
    grammar = Grammar()
    lines = fast_sample(60, grammar)
    found = [features(line) for line in lines]
    assert all(500 < f["length"] < 2000 for f in found)
    assert max(f["deepest"] for f in found) == 9  # and digits one below
    assert {f["root"] for f in found} == {"[MIN", "[MAX", "[MED", "[SM"}
    assert {f["first count"] for f in found} == set(range(2, 11))


def read(folder):
    return {split: (folder / name).read_bytes() for split, name in FILES.items()}


def test_files_are_as_released(tmp_path):
    assert generate(tmp_path, SMALL)
    sources = set()
    for split, data in read(tmp_path).items():
        lines = data.split(b"\n")
        assert lines[0] == b"Source\tTarget"
        assert lines[-1] == b""
        rows = list(read_rows((line + b"\n" for line in lines[:-1]), tmp_path / FILES[split]))
        assert len(rows) == getattr(SMALL, split)
        assert all(9 < len(row.tokens) < 40 for row in rows)
        sources |= {tuple(row.tokens) for row in rows}
    assert len(sources) == SMALL.total, "expressions are not distinct"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *sorted(FILES.values()),
        "listops_generator.json",
    ]


def test_result_depends_on_the_seed_and_not_on_the_workers(tmp_path):
    for workers in (1, 2, 3):
        generate(tmp_path / str(workers), SMALL, workers=workers)
    assert read(tmp_path / "1") == read(tmp_path / "2") == read(tmp_path / "3")
    other = Settings(60, 20, 20, seed=4, grammar=SHORT)
    generate(tmp_path / "other", other)
    assert read(tmp_path / "other")["train"] != read(tmp_path / "1")["train"]


def test_splits_are_alike_where_short_expressions_recur(tmp_path):
    # All 10 digits, and 10 of the 400 pairs: in order of first appearance the digits would come first.
    grammar = Grammar(0, 5, 2, 2)
    generate(tmp_path, Settings(200, 100, 100, 0, grammar))
    digits = {
        split: sum(line[1:2] == b"\t" for line in data.split(b"\n")[1:])
        for split, data in read(tmp_path).items()
    }
    assert sum(digits.values()) == 10
    assert digits["valid"] + digits["test"] >= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": 0}, "train=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"grammar": Grammar(40, 40, 5, 4)}, "min_length=40 and max_length=40"),
        ({"grammar": Grammar(40, 41, 5, 4)}, "no length lies between"),
        ({"grammar": Grammar(-1, 10, 5, 4)}, "0 <= min_length"),
        ({"grammar": Grammar(9, 40, 0, 4)}, "max_depth=0 must be at least 1"),
        ({"grammar": Grammar(9, 40, 5, 1)}, "max_args=1 must be at least 2"),
        ({"grammar": Grammar(9, 40, 1, 4)}, "none of the random expressions has a length in"),
        ({"grammar": Grammar(500, 600, 3, 4)}, "none of the random expressions.*max_depth=3"),
        ({"grammar": Grammar(100, 102, 4, 5)}, "about one in .* of the random expressions"),
        ({"grammar": Grammar(0, 2, 5, 4)}, "only 10 distinct expressions exist.*100 are needed"),
        ({"grammar": Grammar(3, 5, 5, 4), "train": 400}, "only 400 distinct expressions exist"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, changes, message):
    settings = {"train": 60, "valid": 20, "test": 20, "seed": 3, "grammar": SHORT}
    with pytest.raises(ValueError, match=message):
        generate(tmp_path / "out", Settings(**{**settings, **changes}))
    assert not (tmp_path / "out").exists()


def test_expressions_too_rare_to_wait_for_are_reported(tmp_path, monkeypatch):
    # All of them exist, but the last few would take very long to turn up.
    monkeypatch.setattr(listops_generator, "_PATIENCE", 500)
    settings = Settings(4200, 100, 100, 0, Grammar(0, 6, 2, 3))
    with pytest.raises(ValueError, match="distinct expressions the last .* drawn were all known"):
        generate(tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_units_may_hold_no_expression(tmp_path, monkeypatch):
    """As with rare lengths, of which a unit draws too few to find one."""
    monkeypatch.setattr(listops_generator, "_MOST_CANDIDATES", 20)
    rare = Settings(train=3, valid=1, test=1, grammar=Grammar(20, 30, max_depth=3, max_args=5))
    assert generate(tmp_path, rare)
    lines = b"".join(read(tmp_path).values()).splitlines()
    assert len(set(lines)) == 1 + rare.total  # with the header


def test_number_of_distinct_expressions():
    grammar = Grammar(0, 8, 3, 3)
    # depth 3, by hand: 10 digits; over digits 4 * (10^2 + 10^3); of length 7 also one operator with
    # an operator of two digits and a digit, in either order
    expected = 10 + 4 * (10**2 + 10**3) + 4 * 2 * (4 * 10**2) * 10
    assert count_distinct(grammar, length_probabilities(grammar)) == expected
    assert check_feasible(grammar, expected) == pytest.approx(length_probabilities(grammar).sum())


def test_everything_that_exists_can_be_asked_for(tmp_path):
    generate(tmp_path, Settings(6, 2, 2, 0, Grammar(0, 2, 1, 2)))
    assert sum(data.count(b"\n") - 1 for data in read(tmp_path).values()) == 10


def test_finished_files_are_kept_and_others_not_overwritten(tmp_path):
    generate(tmp_path, SMALL)
    before = read(tmp_path)
    assert not generate(tmp_path, SMALL)
    other = Settings(60, 20, 20, seed=4, grammar=SHORT)
    with pytest.raises(ValueError, match='generated with .*"seed": 3.*--overwrite'):
        generate(tmp_path, other)
    assert read(tmp_path) == before
    assert generate(tmp_path, other, overwrite=True)
    assert read(tmp_path) != before


@pytest.mark.parametrize("damage", ["truncated", "missing", "interrupted"])
def test_files_that_are_not_as_finished_are_generated_again(tmp_path, damage):
    generate(tmp_path, SMALL)
    before = read(tmp_path)
    path = tmp_path / FILES["valid"]
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "missing":
        path.unlink()
    else:
        record = tmp_path / "listops_generator.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "complete": False}))
    assert generate(tmp_path, SMALL)
    assert read(tmp_path) == before


def test_files_from_elsewhere_are_not_overwritten(tmp_path):
    path = tmp_path / FILES["valid"]
    path.write_text("the released file")
    with pytest.raises(ValueError, match=f"{path} exists and was not written by this generator"):
        generate(tmp_path, SMALL)
    assert path.read_text() == "the released file"


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_generator_leaves_no_file_under_its_name(tmp_path, workers):
    endless = Settings(train=10**6, valid=20, test=20, seed=3, grammar=SHORT)
    process = multiprocessing.get_context("fork").Process(
        target=generate, args=(tmp_path, endless), kwargs={"workers": workers}
    )
    process.start()
    unfinished = tmp_path / f".{FILES['train']}.tmp"
    deadline = time.monotonic() + 60
    while not (unfinished.exists() and unfinished.stat().st_size):
        assert process.is_alive(), "the generator ended early"
        assert time.monotonic() < deadline, "the generator wrote nothing"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not any(path.name.startswith("basic") for path in tmp_path.iterdir())
    assert generate(tmp_path, SMALL)
    assert len(list(tmp_path.iterdir())) == 4


def test_command_line_reports_an_error_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path / "raw"), str(tmp_path / "out"), "--generate", "--max-length", "500"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no length lies between min_length=500 and max_length=500")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
