"""Read and write released checkpoints without executing anything that they hold.

Readable are
    a folder of the release: ``consolidated.pth``, or ``consolidated.00.pth`` and so on, one per device
        of a model-parallel run, with ``config.json`` and ``consolidate_config.json``
    a folder of ``.safetensors`` files, with the index that lists their tensors if there are several
    one ``.safetensors`` or torch file of tensors, or of ``{"config": ..., "state": ...}``
The configuration is the dict itself or stands under its key ``model``.
"""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from megalodon_tasks.files import archive_fault, atomic_file, read_text, size_of
from megalodon_tasks.models.released.shards import merge_shards, split_shards

Tensors = dict[str, torch.Tensor]
CONFIG, CONSOLIDATION = "config.json", "consolidate_config.json"
MISSING_NAMED = 4
_SHARD = re.compile(r"consolidated\.(\d+)\.pth")
_INDEX = "model.safetensors.index.json"


def read_released(source: Path, config: Path | None = None) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors by their released names, and the model's configuration.

    config: a JSON file, if it is not where the release has it.  Raises ``ValueError`` naming a file
    that is missing, damaged, or would run code, and a shard that is missing.
    """
    if source.is_dir():
        tensors, included = read_weights(source), None
        config = config or source / CONFIG
    elif source.is_file():
        tensors, included = _read_file(source)
        if included is None:
            config = config or source.with_suffix(".json")
    else:
        raise ValueError(f"{source}: there is no such file or folder")
    if config is None:
        return tensors, included
    if not config.is_file():
        raise ValueError(
            f"{config} is missing: the model's configuration as JSON; name it by --config"
        )
    settings = _model_settings(read_json(config))
    if "model_type" in settings:
        raise ValueError(
            f"{config} has model_type={settings['model_type']!r}: a model in the form of Hugging Face, "
            "not a release; megalodon convert from-hf reads those of type 'megalodon'"
        )
    return tensors, settings


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a torch file of tensors, numbers, text and containers of them.

    Raises ``ValueError`` naming the file if it is damaged or holds anything else.
    """
    size_of(path)
    if (fault := archive_fault(path)) is not None:
        raise ValueError(f"{path} is damaged: {fault}; copy it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for damaged files, and one for code
        refused = re.search(r"unsupported global:? (?:GLOBAL )?([\w.]+)", str(error), re.IGNORECASE)
        reason = f"it holds {refused[1]}, which could run code" if refused else type(error).__name__
        raise ValueError(f"{path} is not a torch file of plain tensors ({reason})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read an object of settings.  Raises ``ValueError`` naming the file if it is anything else."""
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected an object of settings")
    return content


def _model_settings(config: dict[str, Any]) -> dict[str, Any]:
    return config["model"] if isinstance(config.get("model"), dict) else config


def _read_file(path: Path) -> tuple[Tensors, dict[str, Any] | None]:
    if path.suffix == ".safetensors":
        return read_safetensors(path), None
    content = read_tensors(path)
    if isinstance(content, dict) and {"config", "state"} <= content.keys():
        return content["state"], _model_settings(content["config"])
    if not isinstance(content, dict) or not all(torch.is_tensor(t) for t in content.values()):
        raise ValueError(f"{path} is not a dict of tensors by their released names")
    return content, None


def read_safetensors(path: Path) -> Tensors:
    """Read the tensors of a file by name.  Raises ``ValueError`` naming the file if it is damaged."""
    try:
        size_of(path)
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None


def read_weights(folder: Path) -> Tensors:
    """Read the tensors of a folder by name.  Raises what :func:`read_released` raises."""
    if (folder / "consolidated.pth").is_file():
        return _read_file(folder / "consolidated.pth")[0]
    shards = {int(m[1]): p for p in folder.iterdir() if (m := _SHARD.fullmatch(p.name))}
    if shards:
        _check_shards(folder, shards)
        return merge_shards([_read_file(shards[rank])[0] for rank in sorted(shards)])
    if (folder / _INDEX).is_file():
        return _read_indexed(folder)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return read_safetensors(files[0])
    holds = f"{len(files)} .safetensors files without {_INDEX}" if files else "no checkpoint"
    raise ValueError(f"{folder} holds {holds}; expected consolidated*.pth or .safetensors")


def _check_shards(folder: Path, shards: Mapping[int, Path]) -> None:
    count = max(shards) + 1
    if (folder / CONSOLIDATION).is_file():
        recorded = read_json(folder / CONSOLIDATION).get("model_parallel_size", count)
        if not isinstance(recorded, int):
            raise ValueError(
                f"{folder / CONSOLIDATION}: model_parallel_size={recorded!r} is not a whole number"
            )
        count = max(count, recorded)
    if count == len(shards):
        return
    # a count from a file may be any number, so no list is as long as it
    missing = (f"consolidated.{rank:02d}.pth" for rank in range(count) if rank not in shards)
    named = list(itertools.islice(missing, MISSING_NAMED))
    more = count - len(shards) - len(named)
    raise ValueError(
        f"{folder} has {len(shards)} of {count} model-parallel shards; missing: {', '.join(named)}"
        + (f" and {more} more" if more else "")
    )


def _read_indexed(folder: Path) -> Tensors:
    names = read_json(folder / _INDEX).get("weight_map", {})
    files = sorted(set(names.values()))
    for name in files:
        if Path(name).name != name:
            raise ValueError(
                f"{folder / _INDEX} names {name!r}: an index may only name files beside itself"
            )
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder / _INDEX} lists files that are missing: {', '.join(missing)}")
    tensors: Tensors = {}
    for name in files:
        tensors.update(read_safetensors(folder / name))
    return tensors


def write_released(target: Path, tensors: Tensors, config: dict[str, Any], shards: int = 1) -> None:
    """Write a released checkpoint.  Each file appears under its name only once it is complete.

    A ``target`` that ends in ``.safetensors``, ``.pth`` or ``.pt`` is one file with its configuration
    beside it as JSON; anything else is a folder as in the release, with ``shards`` files of tensors.
    """
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # tied ones share memory
    if target.suffix in (".safetensors", ".pth", ".pt"):
        if shards != 1:
            raise ValueError(f"{target} is one file; name a folder for {shards} shards")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target.with_suffix(".json"), config)
        write_tensors(target, tensors)
        return
    parts = split_shards(tensors, shards) if shards > 1 else [tensors]
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / CONFIG, {"model": config})
    dtypes = {tensor.dtype for tensor in tensors.values()} - {tensors["rope.freqs"].dtype}
    dtype = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(next(iter(dtypes), None), "fp32")
    write_json(target / CONSOLIDATION, {"model_parallel_size": shards, "dtype": dtype})
    for rank, part in enumerate(parts):
        name = "consolidated.pth" if shards == 1 else f"consolidated.{rank:02d}.pth"
        write_tensors(target / name, part)


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a safetensors or torch file, by the suffix of ``path``."""
    with atomic_file(path) as stream:
        if path.suffix == ".safetensors":
            stream.write(safetensors.torch.save(content, {"format": "pt"}))
        else:
            torch.save(content, stream)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object of settings; the file appears once it is complete."""
    with atomic_file(path, "w") as stream:
        json.dump(content, stream, indent=1, allow_nan=False)
