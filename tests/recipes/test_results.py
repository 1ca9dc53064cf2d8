"""One set of numbers: results.csv, published.csv and the tables of every README agree."""

import csv
import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS
from megalodon_tasks.runs import results

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
READMES = [ROOT / "README.md", *sorted(RECIPES.rglob("README.md"))]
VARIANT = re.compile(r"-(demo|chunk\d+|tiny|big)$")
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\w.]*\d)")


def rows_of(name: str) -> list[dict[str, str]]:
    with (RECIPES / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


RESULTS = {row["id"]: row for row in rows_of("results.csv")}
PUBLISHED = {(row["id"], row["system"]): row for row in rows_of("published.csv")}


def base(identity: str) -> str:
    return VARIANT.sub("", identity)


def tables(text: str) -> list[list[dict[str, str]]]:
    """Each Markdown table as rows of {heading: cell}; headings in lower case."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        head, _, *lines = (
            [cell.strip() for cell in line.strip().strip("|").split("|")]
            for line in block.splitlines()
        )
        keys = [key.lower() for key in head]
        found.append([dict(zip(keys, line, strict=False)) for line in lines])
    return found


def cells(row: dict[str, str], *words: str) -> str:
    """The cells whose headings hold one of ``words``."""
    return " ".join(cell for key, cell in row.items() if any(word in key for word in words))


def numbers(text: str) -> set[float]:
    return {float(number.replace(",", "")) for number in NUMBER.findall(text)}


def recipe_rows() -> list:
    """(README, id in results.csv, row) of all tables that have recipes and a status."""
    found = []
    for readme in READMES:
        for table in tables(readme.read_text("utf-8")):
            for row in table:
                name = re.match(r"`(?:recipes/(\w+)/)?(\w+)(?:\.sh)?`", row.get("recipe", ""))
                if "status" in row and name:
                    identity = f"{name[1] or readme.parent.name}/{name[2]}"
                    where = f"{readme.relative_to(ROOT)}:{identity}"
                    found.append(pytest.param(identity, row, id=where))
    return found


@pytest.mark.parametrize(("identity", "row"), recipe_rows())
def test_rows_of_the_readmes_are_those_of_the_table(identity, row):
    result = RESULTS[identity]
    chunked = [r for i, r in RESULTS.items() if re.fullmatch(rf"{identity}-chunk\d+", i)]
    shown = numbers(cells(row, "paper", "published"))
    for wanted in [result, *chunked]:
        assert float(wanted["paper_value"]) in shown
    assert int(result["params"]) in numbers(cells(row, "parameters"))
    assert row["status"].startswith(result["status"])
    ours = numbers(row["ours"])
    assert ours == ({float(result["our_mean"])} if result["our_mean"] else set())


def test_every_recipe_is_in_the_readme_of_its_family():
    shown = {(parameter.id.split(":")[0], parameter.values[0]) for parameter in recipe_rows()}
    for identity in {base(identity) for identity in RESULTS}:
        assert (f"recipes/{identity.split('/')[0]}/README.md", identity) in shown


def test_the_published_table_of_the_arena_is_complete():
    text = (RECIPES / "lra" / "README.md").read_text("utf-8")
    (table,) = [table for table in tables(text) if "system" in table[0]]
    shown = {
        (f"lra/{key.strip('`')}", row["system"]): cell
        for row in table
        for key, cell in row.items()
        if key != "system"
    }
    wanted = {key: row["value"] or "-" for key, row in PUBLISHED.items() if key[0][:4] == "lra/"}
    assert shown == wanted


@pytest.mark.parametrize("identity", RESULTS)
def test_ids_have_a_script_and_a_configuration(identity):
    script = RECIPES / f"{base(identity)}.sh"
    suffix = "_demo" if identity.endswith("-demo") else ""
    assert script.is_file()
    assert script.with_name(f"{script.stem}{suffix}.yaml").is_file()


@pytest.mark.parametrize("identity", RESULTS)
def test_values_of_the_paper_are_among_the_published(identity):
    row = RESULTS[identity]
    if not row["paper_value"]:
        assert identity.endswith(("-demo", "-tiny", "-big"))
        assert not row["paper_source"]
        return
    system = row["paper_source"].split(",")[0].split(" (")[0]
    published = PUBLISHED[base(identity), system]
    assert float(published["value"]) == float(row["paper_value"])
    assert published["metric"] == row["metric"]


def test_published_rows_are_of_known_benchmarks_and_have_a_source():
    rows = rows_of("published.csv")
    assert len(rows) == len(PUBLISHED)
    assert {base(identity) for identity in RESULTS} <= {row["id"] for row in rows}
    for row in rows:
        assert row["source"]
        assert float(row["value"]) > 0 if row["value"] else "chance" in row["note"]


@pytest.mark.parametrize("identity", RESULTS)
def test_status_says_whether_there_is_a_result(identity):
    row = RESULTS[identity]
    assert row["status"] in ("measured", "smoke-only", "not-run")
    assert bool(row["our_mean"]) == (row["status"] == "measured")
    if row["status"] == "measured":
        assert row["seeds"]
        assert row["device"]


# What the data of each benchmark holds, as its preparation makes it.
INPUTS = {
    "lra/listops": ClassifierInputs("tokens", num_classes=10, vocab_size=17),
    "lra/image": ClassifierInputs("pixels", num_classes=10),
    "lra/pathfinder": ClassifierInputs("pixels", num_classes=2),
    "lra/pathx": ClassifierInputs("pixels", num_classes=2),
    "speech/sc_raw": ClassifierInputs("waveform", num_classes=10),
}


@pytest.mark.parametrize("identity", [i for i in RESULTS if base(i) in INPUTS])
def test_parameters_are_those_of_the_model(identity):
    suffix = "_demo" if identity.endswith("-demo") else ""
    model = dict(OmegaConf.load(RECIPES / f"{base(identity)}{suffix}.yaml").model)
    name = model.pop("_name")
    if identity.endswith("-big"):
        name = name.replace("_base", "_big")
    sizes = CLASSIFIER_PRESETS[name] | model
    with torch.device("meta"):
        built = SequenceClassifier(MegalodonConfig(**sizes), INPUTS[base(identity)])
    assert sum(p.numel() for p in built.parameters()) == int(RESULTS[identity]["params"])


def test_the_summary_shows_the_peers():
    record = {
        "benchmark": "lra/pathx", "metric": "accuracy", "split": "test", "value": 12.5, "n": 8,
        "loss": 1.0, "best_constant": 50.0, "update": 1, "epoch": 1, "params": 10,
    }  # fmt: skip
    lines = results.summary(record, results.published("lra/pathx"))
    for system, value in (("S5", "98.58"), ("Mega-chunk", "93.81")):
        assert any(line.split()[:2] == [system, value] for line in lines)
    assert sum("98.17" in line for line in lines) == 1
    # no better than chance: there is no number to show
    assert not any("Transformer" in line for line in lines)
