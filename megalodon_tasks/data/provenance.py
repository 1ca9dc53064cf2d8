"""Say of which data a result is, and where that differs from the data that publications are on.

A preparation records the published form under ``source["published"]``, any of:

============ =========================================================================================
``settings``   values of ``source["settings"]`` that the published numbers stand on
``counts``     name of a count -> split -> how many the release has
``vocabulary`` ``name`` for messages, and ``symbols`` or ``sha256`` of the tokenizer
============ =========================================================================================
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megalodon_tasks.data.manifest import Manifest, damaged
from megalodon_tasks.files import atomic_file

_DEMO_MARK = "made-for-a-demo.txt"
#: Why data of these origins compares with nothing that is published.
_ORIGINS = {
    "demo": "data made for a demo",
    "generated": "generated data",
    "text": "text of your own",
    "unknown": "data whose origin is not recorded (it has no manifest)",
}


def mark_as_demo(folder: Path, recipe: str) -> None:
    """Leave a file in ``folder`` that says that its data was made for the demo of ``recipe``."""
    with atomic_file(folder / _DEMO_MARK, "w") as stream:
        stream.write(f"made by: megalodon prepare {recipe} --demo\n")


def origin_of(folder: Path, otherwise: str) -> str:
    """Return ``demo`` for data in a folder that :func:`mark_as_demo` marked, or in one below it."""
    folder = folder.absolute()
    marked = any((place / _DEMO_MARK).is_file() for place in (folder, *folder.parents[:2]))
    return "demo" if marked else otherwise


def describe_data(folder: str | os.PathLike) -> dict[str, Any]:
    """Describe prepared data for the record of a run or result.

    ``origin``, ``split_rule`` and ``settings`` are those of the manifest and ``manifest`` is its digest;
    ``differences`` says why the data does not compare with that of publications.  Raises ``ValueError``
    for a manifest whose ``source`` is of another form.
    """
    try:
        manifest = Manifest.read(folder)
    except ValueError:  # data of fairseq-preprocess, or of another project's task
        return {"origin": "unknown", "manifest": None, "differences": [_ORIGINS["unknown"]]}
    try:
        return _described(manifest)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(Path(folder), error) from None


def _described(manifest: Manifest) -> dict[str, Any]:
    return {
        "origin": manifest.source.get("origin", "unknown"),
        "manifest": manifest.digest,
        "split_rule": manifest.source.get("split_rule"),
        "settings": manifest.source.get("settings"),
        "vocabulary": _vocabulary(manifest),
        "normalisation": manifest.form.get("scale"),
        "left_out": len(manifest.source.get("left_out", {})),
        "differences": [*differences(manifest)],
    }


def differences(manifest: Manifest) -> Iterator[str]:
    """Yield where prepared data differs from what published numbers are on."""
    origin = manifest.source.get("origin", "unknown")
    if origin in _ORIGINS:
        yield _ORIGINS[origin]
        return
    published = manifest.source.get("published")
    if published is None:
        yield "data prepared by an earlier version, which did not record the published form"
        return
    found = manifest.source.get("settings") or {}
    for name, value in published.get("settings", {}).items():
        if found.get(name) != value:
            yield f"data prepared with {name} {found.get(name)} (published: {value})"
    expected = dict(published.get("vocabulary", {}))
    title, known = expected.pop("name", None), _vocabulary(manifest)
    if any(known.get(key) != value for key, value in expected.items()):
        kind = known.get("kind", "symbols")
        yield f"vocabulary of {known['symbols']:,} {kind} (published: {title})"
    yield from _other_counts(manifest, published.get("counts", {}))


def _other_counts(manifest: Manifest, counts: dict[str, dict[str, int]]) -> Iterator[str]:
    for unit, of_splits in counts.items():
        for split, expected in of_splits.items():
            found = manifest.splits.get(split, {}).get(unit, 0)
            found = sum(found) if isinstance(found, list) else found
            if found != expected:
                unit_name = "images" if unit == "counts" else unit
                state = "subset" if found < expected else "other data"
                yield f"{state}: {split} has {found:,} {unit_name}, the release {expected:,}"


def _vocabulary(manifest: Manifest) -> dict[str, Any]:
    """Return the tokenizer's description and the number of symbols."""
    tokenizer = manifest.form.get("tokenizer") or {}
    return {**tokenizer, "symbols": manifest.form.get("symbols") or len(manifest.vocabulary)}
