"""Files of sharded tensors: checksums of what was written, and a reader that builds tensors only."""

import hashlib
import io
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import metadata as dcp_metadata

METADATA = ".metadata"
_NAME = re.compile(r"\.metadata|[\w-]+\.distcp")


def checksums(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file in ``folder``, by name; all processes call it after writing.

    Each process reads what it wrote itself.  Raises ``OSError`` on all of them if one cannot.
    """
    rank = dist.get_rank()

    def own() -> dict[str, str]:
        paths = [*folder.glob(f"__{rank}_*.distcp"), *([folder / METADATA] if rank == 0 else [])]
        return {path.name: _sha256(path) for path in paths}

    return {name: found for each in _on_all(own) for name, found in each.items()}


def compare(folder: Path, expected: Mapping[str, str], together: bool) -> None:
    """Compare the files in ``folder`` with their checksums.

    together: all processes call it, and each reads some of the files.  Raises ``ValueError`` or
    ``OSError``, then on all of them, if a file has another checksum, is missing, or has none.
    """
    named = isinstance(expected, dict) and all(_NAME.fullmatch(str(name)) for name in expected)
    if not named or METADATA not in expected:
        raise ValueError("the checkpoint has no checksums of them")
    place, stride = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    def check() -> None:
        for name in sorted(expected)[place::stride]:
            if not (folder / name).is_file():
                raise ValueError(f"{name} is missing")
            if _sha256(folder / name) != expected[name]:
                raise ValueError(f"the checksum of {name} is wrong")

    if together:
        _on_all(check)
    else:
        check()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _on_all(function: Callable[[], Any]) -> list[Any]:
    """Return what ``function`` returns on each process; raise on all what it raises on one."""
    try:
        own = function()
    except (OSError, ValueError) as error:
        own = error
    results: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(results, own)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


class TensorReader(dcp.FileSystemReader):
    """Read tensors only; ``torch.distributed.checkpoint`` itself would unpickle anything."""

    def __init__(self, folder: Path, checked: Mapping[str, str]) -> None:
        super().__init__(folder)
        self.checked = checked

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp_metadata.Metadata:
        """Read what the folder holds; raise ``ValueError`` for anything but tensors in checked files."""
        text = Path(self.path, METADATA).read_bytes()
        try:
            metadata = _TensorsOnly(io.BytesIO(text)).load()
            files = {place.relative_path for place in metadata.storage_data.values()}
        except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, IndexError) as error:
            raise ValueError(f"its {METADATA} cannot be read: {error}") from error
        if unknown := files - set(self.checked):
            raise ValueError(f"its {METADATA} names {unknown.pop()}, which has no checksum")
        metadata.storage_meta = dcp_metadata.StorageMeta(load_id=self.load_id)
        return metadata


class _TensorsOnly(pickle.Unpickler):
    """Build the classes that describe tensors, and no others."""

    allowed: ClassVar[set[tuple[str, str]]] = {
        *(
            ("torch.distributed.checkpoint.metadata", name)
            for name in (
                "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
                "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
            )
        ),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("pathlib", "PosixPath"),
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        """Return a class; raise ``UnpicklingError`` for one that is not listed."""
        module = "pathlib" if module == "pathlib._local" else module  # its name in Python 3.13
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)
