"""Tables over runs: final metrics beside the paper's, differing fields, and the environment."""

from dataclasses import dataclass

from megalodon_tasks.reports.runs import UNSET, FinishedRun
from megalodon_tasks.runs import results


@dataclass(frozen=True)
class Table:
    """``highlighted`` names the columns (by number) whose cells are what the table is about."""

    title: str
    head: list[str]
    lines: list[list[str]]
    highlighted: tuple[int, ...] = ()
    note: str = ""


def metrics(runs: list[FinishedRun]) -> Table:
    """The last result of each run on each split."""
    head = ["run", "value", "metric", "benchmark", "split", "items", "update", "parameters"]
    lines = []
    for run in runs:
        for record in run.results:
            lines.append(
                [
                    run.name,
                    f"{record['value']:.2f}",
                    *(str(record[name]) for name in ("metric", "benchmark", "split")),
                    f"{record['n']:,}",
                    f"{record['update']:,}",
                    f"{record['params']:,}",
                ]
            )
        if not run.results:
            reached = f"{run.updates:,}"
            lines.append(
                [run.name, "not evaluated", run.metric, run.recipe, "-", "-", reached, "-"]
            )
    return Table("Final metrics", head, lines, highlighted=(1,))


def published(runs: list[FinishedRun]) -> Table:
    """The paper's numbers for the benchmarks of these runs."""
    lines = []
    for benchmark in sorted({run.recipe for run in runs}):
        for row in results.published(benchmark):
            if row["paper_value"]:
                lines.append([row["id"], row["paper_value"], row["metric"], row["paper_source"]])
    note = "" if lines else "The paper has no number for these benchmarks (demos have none)."
    return Table("Published", ["benchmark", "value", "metric", "source"], lines, (1,), note)


def differences(runs: list[FinishedRun]) -> Table:
    """The fields that are not the same in all runs.

    Of fields that go together in all of them, as those that fairseq derives from each other, the first.
    """
    fields = sorted({field for run in runs for field in run.configuration})
    known = [run for run in runs if run.configuration]
    columns: dict[tuple[str, ...], str] = {}
    for field in fields:
        values = tuple(run.configuration.get(field, UNSET) for run in known)
        if len(set(values)) > 1:
            columns.setdefault(values, field)
    differing = list(columns.values())
    lines = [[run.name, *(run.configuration.get(f, UNSET) for f in differing)] for run in known]
    note = "" if differing else "All runs have the same configuration."
    return Table(
        "What differs", ["run", *differing], lines if differing else [],
        tuple(range(1, len(differing) + 1)), note,
    )  # fmt: skip


def environment(runs: list[FinishedRun]) -> Table:
    """Device, versions and commit of each run's evaluation."""
    lines = []
    for run in runs:
        for record in run.results[-1:]:
            versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
            commit = (record["commit"] or "unknown")[:12]
            dirty = "-dirty" if str(record["commit"]).endswith("-dirty") else ""
            lines.append([run.name, record["date"], record["device"], versions, commit + dirty])
    return Table("Environment", ["run", "date", "device", "versions", "commit"], lines)
