"""Save what each process holds of a sharded model, and load it on any number of processes.

fairseq writes a checkpoint from one process, which would need the whole model and optimizer.  With
``ddp_backend=fully_sharded`` a checkpoint is two things:

* a folder below ``shards/`` in the save folder, into which every process writes its shards at the same
  time (``torch.distributed.checkpoint``);
* the ordinary file, ``checkpoint_last.pt`` and so on, which names that folder and holds all else.  In
  place of a sharded tensor it has a dictionary with its shape and dtype.  It also has the checksums of
  the files in the folder, which are compared before anything is read from them.

The folder is complete before the file gets its name.  Copies of the file share the folder, and one that
no file names is deleted.  Whatever reads checkpoints of fairseq gets whole tensors from such a file; a
training with sharded parameters reads its own shards only.
"""

import itertools
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.trainer import Trainer
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor import empty as empty_sharded

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat.checkpoint_errors import READING_ERRORS
from megalodon_tasks.fairseq_compat.patching import wrap
from megalodon_tasks.fairseq_compat.shard_files import TensorReader, checksums, compare
from megalodon_tasks.fairseq_compat.sharded_tensors import is_sharded, mesh_of_all

FOLDER = "shards"  # in a save folder, and the entry of a checkpoint that names the folder within it
CHECKSUMS = "shards_sha256"  # the entry with those of its files
DIVIDED = ("model", "last_optimizer_state")  # entries of a checkpoint that hold sharded tensors
_SHAPE, _DTYPE = "sharded_shape", "sharded_dtype"
_NAME = re.compile(rf"{FOLDER}/[0-9]+(-[0-9]+)?")


@dataclass(frozen=True)
class Layout:
    """Where a training with sharded parameters puts what it loads.

    whole: paths in the checkpoint of tensors that each process has whole, buffers of the model.
    """

    mesh: DeviceMesh
    whole: frozenset[str]


_layout: Layout | None = None  # of the training that loads a checkpoint


def install() -> None:
    """Patch saving and loading."""
    wrap(Trainer, "state_dict", _without_shards)
    wrap(Trainer, "save_checkpoint", _only_with_shards)
    wrap(checkpoint_utils, "save_checkpoint", _after_writing_shards)
    wrap(Trainer, "load_checkpoint", _onto_own_mesh)
    wrap(checkpoint_utils, "load_checkpoint_to_cpu", _with_shards)


def write_shards(trainer: Any, save_dir: Path) -> None:
    """Write the shards of ``trainer`` below ``save_dir``; all processes call it at the same moment."""
    updates = trainer.get_num_updates()
    name = [_new_name(trainer, save_dir, updates)]
    dist.broadcast_object_list(name, src=0)
    if name[0] is None:
        return
    trainer._shards = None
    trainer.consolidate_optimizer()  # state_dict needs it
    state = trainer.state_dict()
    tensors: dict[str, DTensor] = {}

    def collect(leaf: Any, key: str) -> None:
        if isinstance(leaf, DTensor):
            tensors[key] = leaf

    for key in DIVIDED:
        _mapped(state.get(key), collect, key)
    try:
        dcp.save(tensors, checkpoint_id=save_dir / name[0])
        sums = checksums(save_dir / name[0])
    except (dcp.api.CheckpointException, OSError) as error:
        raise UserError(
            f"{save_dir / name[0]}: the shards of the checkpoint could not be written "
            f"({_reason(error)}); those before are whole"
        ) from error
    trainer._shards = (updates, {FOLDER: name[0], CHECKSUMS: sums})


def _new_name(trainer: Any, save_dir: Path, updates: int) -> str | None:
    """Return a name that no folder has; None if the shards after ``updates`` are written."""
    written = getattr(trainer, "_shards", None)
    if written and written[0] == updates and (save_dir / written[1][FOLDER]).is_dir():
        return None
    names = itertools.chain([f"{updates}"], (f"{updates}-{n}" for n in itertools.count(1)))
    return next(f"{FOLDER}/{name}" for name in names if not (save_dir / FOLDER / name).exists())


def _reason(error: BaseException) -> str:
    if not isinstance(error, dcp.api.CheckpointException):
        return str(error)
    failures = [str(failure[0]) for failure in error.failures.values()]
    return failures[0].splitlines()[0] if failures and failures[0] else "writing failed"


def _after_writing_shards(
    stock: Callable, cfg: Any, trainer: Any, *args: Any, **kwargs: Any
) -> Any:
    if is_sharded(trainer) and not cfg.no_save:
        write_shards(trainer, Path(cfg.save_dir))
    result = stock(cfg, trainer, *args, **kwargs)
    if trainer.data_parallel_rank == 0 and not cfg.no_save:
        _remove_unused(Path(cfg.save_dir))
    return result


def _remove_unused(save_dir: Path) -> None:
    folders = {f"{FOLDER}/{folder.name}": folder for folder in (save_dir / FOLDER).glob("*")}
    if not folders:
        return
    try:
        # mapped, so that the tensors of an ordinary checkpoint are not read
        files = [torch.load(path, map_location="cpu", mmap=True) for path in save_dir.glob("*.pt")]
    except READING_ERRORS:  # what a damaged file names is not known
        return
    used = {state.get(FOLDER) for state in files if isinstance(state, dict)}
    for name in folders.keys() - used:
        shutil.rmtree(folders[name])


def _without_shards(stock: Callable, self: Trainer) -> dict[str, Any]:
    state, shards = stock(self), getattr(self, "_shards", None)
    if not shards:
        return state
    divided = {key: _mapped(state.get(key), _placeholder, key) for key in DIVIDED}
    return state | divided | shards[1]


def _only_with_shards(
    stock: Callable, self: Trainer, filename: str, extra_state: dict[str, Any]
) -> str | None:
    written = getattr(self, "_shards", None)
    if is_sharded(self) and (not written or written[0] != self.get_num_updates()):
        return None  # of one process that failed: the others do not write theirs
    return stock(self, filename, extra_state)


def _placeholder(leaf: Any, key: str) -> Any:
    if not isinstance(leaf, DTensor):
        return leaf
    return {_SHAPE: list(leaf.shape), _DTYPE: str(leaf.dtype).removeprefix("torch.")}


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {_SHAPE, _DTYPE}


def _mapped(value: Any, change: Callable[[Any, str], Any], key: str = "") -> Any:
    """Return nested dictionaries and lists with ``change(leaf, its path)`` in place of each leaf."""
    if isinstance(value, dict) and not _is_placeholder(value):
        return {name: _mapped(item, change, f"{key}/{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change, f"{key}/{n}") for n, item in enumerate(value)]
    return change(value, key)


def _onto_own_mesh(stock: Callable, self: Trainer, *args: Any, **kwargs: Any) -> Any:
    global _layout
    if is_sharded(self):
        buffers = frozenset(f"model/{name}" for name, _ in self.model.named_buffers())
        _layout = Layout(mesh_of_all(self.device.type), buffers)
    try:
        return stock(self, *args, **kwargs)
    finally:
        _layout = None


def _with_shards(stock: Callable, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return with_shards(Path(path), stock(path, *args, **kwargs), _layout)


def with_shards(path: Path, state: dict[str, Any], layout: Layout | None = None) -> dict[str, Any]:
    """Return ``state``, read from the checkpoint ``path``, with its tensors in it.

    With ``layout`` all processes call this, and each gets its shards, also of tensors that the file has
    whole; without, each that calls it gets whole tensors.  No code from the files is run.  Raises
    :class:`UserError` where shards are missing or damaged.
    """
    name, expected = state.pop(FOLDER, None), state.pop(CHECKSUMS, {})
    if name is None:
        if layout is not None:
            divide = _divided_as(layout)
            state.update({key: _mapped(state.get(key), divide, key) for key in DIVIDED})
        return state
    folder = path.parent / str(name)
    if not _NAME.fullmatch(str(name)) or not (folder / ".metadata").is_file():
        raise UserError(
            f"{path}: its sharded tensors belong into {folder}, which holds none; copy that folder too, "
            "or make one file of it where it is: megalodon convert consolidate CHECKPOINT.pt TARGET.pt"
        )
    rooms: dict[str, torch.Tensor] = {}

    def with_room(leaf: Any, key: str) -> Any:
        if not _is_placeholder(leaf):
            return leaf
        shape, dtype = leaf[_SHAPE], getattr(torch, leaf[_DTYPE])
        if layout is None:
            rooms[key] = torch.empty(shape, dtype=dtype)
        else:
            options = {"dtype": dtype, "device_mesh": layout.mesh, "placements": [Shard(0)]}
            rooms[key] = empty_sharded(shape, **options)
        return rooms[key]

    state.update({key: _mapped(state[key], with_room, key) for key in DIVIDED})
    reader = TensorReader(folder, expected)
    try:
        compare(folder, expected, together=layout is not None)
        reader.read_metadata()  # where it is damaged, dcp.load would also print a traceback
        dcp.load(rooms, storage_reader=reader, no_dist=layout is None)
    except (dcp.api.CheckpointException, ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"{folder}: the shards of {path.name} are damaged or incomplete ({_reason(error)}); restore "
            "them from a copy, or use an earlier checkpoint"
        ) from error
    return state


def _divided_as(layout: Layout) -> Callable[[Any, str], Any]:
    """Return a function that takes this process's shard of a whole tensor."""

    def divide(leaf: Any, key: str) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.dim() == 0 or key in layout.whole:
            return leaf
        mesh = layout.mesh
        return distribute_tensor(leaf.to(mesh.device_type), mesh, [Shard(0)], src_data_rank=None)

    return divide
