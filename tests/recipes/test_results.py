"""One set of numbers: results.csv and published.csv agree, and the tables of the READMEs are theirs."""

import csv
import re
from pathlib import Path

import pytest
import torch

from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS
from megalodon_tasks.runs import results
from tests.recipes.test_configurations import layers
from tools import tables

RECIPES = Path(__file__).parents[2] / "recipes"
VARIANT = re.compile(r"-(demo(-(megalodon|mega|transformer)(-chunk)?)?|chunk\d+|tiny|big)$")
OTHER_MODEL = re.compile(r"-(mega|transformer)(-chunk)?$")


def rows_of(name: str) -> list[dict[str, str]]:
    with (RECIPES / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


RESULTS = {row["id"]: row for row in rows_of("results.csv")}
PUBLISHED = {(row["id"], row["system"]): row for row in rows_of("published.csv")}


def base(identity: str) -> str:
    return VARIANT.sub("", identity)


@pytest.mark.parametrize("readme", tables.READMES, ids=lambda path: path.parent.name)
def test_tables_are_current(readme):
    """``make tables`` rewrites them."""
    text = readme.read_text("utf-8")
    assert "<!-- table: " in text
    assert tables.current(text) == text


def test_a_table_follows_its_file():
    text = "before\n<!-- table: published lra/pathx -->\nold\n<!-- end of table -->\nafter\n"
    lines = tables.current(text).splitlines()
    assert (lines[0], lines[-2:]) == ("before", ["<!-- end of table -->", "after"])
    assert lines[2] == "| system | % | parameters | source | note |"
    assert len(lines) == 6 + sum(row["id"] == "lra/pathx" for row in rows_of("published.csv"))
    assert any(line.startswith("| Transformer | - |") for line in lines)


@pytest.mark.parametrize("identity", RESULTS)
def test_ids_have_a_script_and_a_configuration(identity):
    script = RECIPES / f"{base(identity)}.sh"
    suffix = "_demo" if "-demo" in identity else ""
    assert script.is_file()
    assert script.with_name(f"{script.stem}{suffix}.yaml").is_file()


@pytest.mark.parametrize("identity", RESULTS)
def test_values_of_the_paper_are_among_the_published(identity):
    row = RESULTS[identity]
    if not row["paper_value"]:
        # There is no number of Megalodon's on WMT.
        assert identity.endswith(("-tiny", "-big")) or "-demo" in identity or "wmt16" in identity
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


# Systems in the tables of arXiv 2404.08801.
MEGALODON_TABLES = {
    "3": {"Vicuna", "LLAMA2-Chat", "Mistral-Instruct", "Megalodon"},
    "4": {"ResNet-152", "ViT-B", "DeiT-B", "Mega", "Megalodon"},
    "5": {
        "Compressive Transformer", "Perceiver AR", "Block-Recurrent Transformer", "MEGABYTE",
        "Megalodon",
    },
    "6": {
        "Transformer", "Reformer", "Linformer", "BigBird", "Luna-256", "S4", "Mega-chunk", "Mega",
        "Megalodon-chunk", "Megalodon",
    },
    "7": {"Transformer", "S4", "Mega", "Mega (big)", "Megalodon"},
    "8": {"Transformer (adaptive)", "Transformer-XL", "S4", "Mega", "Megalodon"},
}  # fmt: skip


def test_a_row_that_cites_a_table_is_in_it():
    cited = {number: set() for number in MEGALODON_TABLES}
    for row in rows_of("published.csv"):
        paper, _, number = row["source"].rpartition(", table ")
        if paper == "Megalodon, arXiv 2404.08801":
            cited[number].add(row["system"])
    assert cited == MEGALODON_TABLES


@pytest.mark.parametrize(
    ("identity", "system", "field", "value"),
    [
        ("imagenet/imagenet", "ViT-B", "params", "86M"),
        ("lm/enwik8", "Megalodon-chunk", "value", "1.00"),
        ("lm/enwik8", "Transformer", "value", "1.08"),
        ("lm/wikitext103", "Transformer-XL (dynamic evaluation)", "value", "16.4"),
        ("lm/wikitext103", "Transformer-XL (dynamic evaluation)", "params", "257M"),
        ("lm/pg19", "Routing Transformer", "source", "Routing Transformer, arXiv 2003.05997"),
    ],
)
def test_published_figures(identity, system, field, value):
    assert PUBLISHED[identity, system][field] == value


def test_enwik8_is_compared_with_the_number_of_the_authors():
    record = {
        "benchmark": "lm/enwik8", "metric": "bits_per_byte", "split": "test", "value": 1.1, "n": 1,
        "loss": 1.1, "best_constant": None, "update": 1, "epoch": 1, "params": 10,
    }  # fmt: skip
    lines = results.summary(record)
    assert any(line.split()[:2] == ["lm/enwik8", "1.00"] and "slides" in line for line in lines)
    readme = (RECIPES.parent / "README.md").read_text("utf-8")
    assert "| `lm/enwik8.sh` | bits per byte | 39,143,936 | 1.00 |" in readme
    assert layers(RECIPES / "lm" / "enwik8.yaml").optimization.clip_norm == 0.25


@pytest.mark.parametrize("identity", RESULTS)
def test_status_says_whether_there_is_a_result(identity):
    row = RESULTS[identity]
    assert row["status"] in ("measured", "measured, small scale", "smoke-only", "not-run")
    assert bool(row["our_mean"]) == row["status"].startswith("measured")
    assert list(row) == [
        "id", "metric", "paper_value", "paper_source", "our_mean", "our_std", "seeds", "params",
        "early_metric@epoch", "time_per_epoch", "device", "commit", "status",
    ]  # fmt: skip
    assert bool(row["paper_value"]) == bool(row["paper_source"])
    assert not row["paper_value"] or float(row["paper_value"]) > 0
    if row["our_mean"]:
        assert row["seeds"]
        assert row["device"]


# What the data of each benchmark holds, as its preparation makes it.
INPUTS = {
    "lra/listops": ClassifierInputs("tokens", num_classes=10, vocab_size=17),
    "lra/text": ClassifierInputs("tokens", num_classes=2, vocab_size=256),
    "lra/retrieval": ClassifierInputs("tokens", num_classes=2, vocab_size=256, pair=True),
    "lra/image": ClassifierInputs("pixels", num_classes=10),
    "lra/pathfinder": ClassifierInputs("pixels", num_classes=2),
    "lra/pathx": ClassifierInputs("pixels", num_classes=2),
    "speech/sc_raw": ClassifierInputs("waveform", num_classes=10),
}


# The sizes of Mega and the Transformer are those of benchmarks/learning/tasks.py.
OURS = [i for i in RESULTS if base(i) in INPUTS and not OTHER_MODEL.search(i)]


@pytest.mark.parametrize("identity", OURS)
def test_parameters_are_those_of_the_model(identity):
    suffix = "_demo" if "-demo" in identity else ""
    model = dict(layers(RECIPES / f"{base(identity)}{suffix}.yaml").model)
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
    lines = results.summary(record)
    for system, value in (("S5", "98.58"), ("Mega-chunk", "93.81")):
        assert any(line.split()[:2] == [system, value] for line in lines)
    assert sum("98.17" in line for line in lines) == 1
    # no better than chance: there is no number to show
    assert not any("Transformer" in line for line in lines)
