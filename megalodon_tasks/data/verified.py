"""Remember which files of prepared data were compared with their checksums, so that a start is quick.

Small files are compared each time.  For large ones a file in the user's cache says at which size and
times of change that was done last: what has not been written since is not read again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from megalodon_tasks.files import atomic_file

CACHE_VARIABLE = "MEGALODON_CACHE_DIR"  # the same folder as that of compiled kernels
LARGE_BYTES = 64 << 20


def check_changed(
    folder: Path, files: Mapping[str, Mapping[str, Any]], compare: Callable[[list[str]], None]
) -> None:
    """Call ``compare`` with the names of the files in ``folder`` that are small or were changed.

    files: name -> ``bytes`` and ``sha256``.
    """
    record = _record(folder)
    known = _read(record)
    large = {
        name: _state(folder / name, expected)
        for name, expected in files.items()
        if expected["bytes"] > LARGE_BYTES
    }
    compare([name for name in files if name not in large or known.get(name) != large[name]])
    if large and large != known:
        with suppress(OSError):  # a cache that cannot be written only costs time
            record.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(record, "w") as stream:
                json.dump(large, stream)


def _state(path: Path, expected: Mapping[str, Any]) -> list[Any]:
    status = path.stat()
    return [expected["sha256"], status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _record(folder: Path) -> Path:
    chosen = os.environ.get(CACHE_VARIABLE)
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    cache = Path(chosen) if chosen else user / "megalodon_tasks"
    return cache / f"verified-{name}.json"


def _read(record: Path) -> dict[str, Any]:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
