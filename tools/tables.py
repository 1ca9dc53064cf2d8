"""Write the tables of numbers in the documentation: ``python -m tools.tables``, or ``make tables``.

A table stands between two lines, and everything between them is rewritten:

    <!-- table: results lra -->
    <!-- end of table -->

``results PREFIX`` has this project's recipes whose id begins so, from ``recipes/results.csv``;
``published PREFIX`` has what all systems published, from ``recipes/published.csv``;
``scaling``, ``scaling_sent`` and ``scaling_work`` of a model are computed by ``benchmarks.scaling``.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.scaling.tables import scaling_table, sent_table, work_table

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
READMES = [
    ROOT / "README.md",
    *sorted(RECIPES.glob("*/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

_BLOCK = re.compile(r"(<!-- table: (\w+) ?(\S*) -->\n).*?(?=<!-- end of table -->)", re.DOTALL)
_CHUNKED = re.compile(r"-chunk(\d+)$")
_METRICS = {
    "accuracy": "%",
    "perplexity": "perplexity per word",
    "word_perplexity": "perplexity per word",
    "bits_per_byte": "bits per byte",
    "bleu": "BLEU",
    "exact": "% exact",
    "mt_bench": "MT-Bench",
}

Row = dict[str, str]


def read_rows(name: str, prefix: str) -> list[Row]:
    """Read the rows of a CSV file in recipes/ whose id begins with ``prefix``."""
    with (RECIPES / name).open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["id"].startswith(prefix)]


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def results_table(prefix: str) -> str:
    """List the recipes: size, the paper's number (also with chunks), ours, and whether it was run.

    The list of all recipes leaves out the demos.
    """
    rows = [row for row in read_rows("results.csv", prefix) if prefix or "-demo" not in row["id"]]
    chunked = {_CHUNKED.sub("", row["id"]): row for row in rows if _CHUNKED.search(row["id"])}
    head = ["recipe", "metric", "parameters", "paper", "paper, chunked", "ours", "status"]
    lines = []
    for row in rows:
        if _CHUNKED.search(row["id"]):
            continue
        pair = chunked.get(row["id"])
        chunk = f"{pair['paper_value']} (chunk {_CHUNKED.search(pair['id'])[1]})" if pair else "-"
        ours = f"{row['our_mean']} ± {row['our_std']}" if row["our_std"] else row["our_mean"] or "-"
        paper = row["paper_value"] or "-"
        parameters = f"{int(row['params']):,}"
        metric = _METRICS[row["metric"]]
        lines.append([_recipe(row["id"]), metric, parameters, paper, chunk, ours, row["status"]])
    return markdown(head, lines)


def _recipe(identity: str) -> str:
    """Name the script and what is given to it, such as ``lra/listops.sh --demo``, and another model."""
    name, *variants = identity.split("-")
    option = ""
    if variants[:1] == ["demo"]:
        option, variants = " --demo", variants[1:]
    return ", ".join([f"`{name}.sh{option}`", *variants])


def published_table(prefix: str) -> str:
    """List the published systems; of several benchmarks, one a column."""
    rows = read_rows("published.csv", prefix)
    names = list(dict.fromkeys(row["id"] for row in rows))
    if len(names) == 1:
        lines = [[r["system"], _value(r), r["params"] or "-", r["source"], r["note"]] for r in rows]
        metric = _METRICS[rows[0]["metric"]]
        return markdown(["system", metric, "parameters", "source", "note"], lines)
    values = {(row["system"], row["id"]): _value(row) for row in rows}
    systems = dict.fromkeys(row["system"] for row in rows)
    head = ["system", *(f"`{name.split('/')[1]}`" for name in names)]
    return markdown(head, ([s, *(values.get((s, name), "") for name in names)] for s in systems))


def _value(row: Row) -> str:
    """Show the value; a dash for a system that is no better than chance."""
    return row["value"] or "-"


TABLES = {
    "results": results_table,
    "published": published_table,
    "scaling": scaling_table,
    "scaling_sent": sent_table,
    "scaling_work": work_table,
}


def current(text: str) -> str:
    """Return ``text`` with every table as the CSV files, or the simulator, have it now."""
    return _BLOCK.sub(lambda match: match[1] + TABLES[match[2]](match[3]), text)


def main() -> None:
    """Rewrite the documents whose tables are not current, and name them."""
    for readme in READMES:
        text = readme.read_text(encoding="utf-8")
        if current(text) != text:
            readme.write_text(current(text), encoding="utf-8")
            print(f"{readme.relative_to(ROOT)}: rewritten")


if __name__ == "__main__":
    main()
