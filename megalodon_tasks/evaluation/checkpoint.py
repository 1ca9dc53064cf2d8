"""Load the checkpoint of a training run, and make one of a language model that was trained elsewhere."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from fairseq import checkpoint_utils, utils
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.initialize import add_defaults
from fairseq.models import MODEL_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import OmegaConf, open_dict

from megalodon_tasks.data.corpus import DICTIONARY
from megalodon_tasks.data.dictionary import read_dictionary
from megalodon_tasks.data.provenance import describe_data
from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat.divergence import finite
from megalodon_tasks.fairseq_compat.literal_text import LiteralOmegaConf, literal
from megalodon_tasks.fairseq_compat.sharded_checkpoints import FOLDER, with_shards
from megalodon_tasks.fairseq_compat.trusted_components import check_components, check_depth
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.language_model import CausalLM, LanguageModel
from megalodon_tasks.models.released.files import read_tensors
from megalodon_tasks.models.stack import MegalodonStack
from megalodon_tasks.runs import comparability
from megalodon_tasks.runs.environment import environment
from megalodon_tasks.runs.record import relative

# Where the language model lies in fairseq's model, and the names that fairseq registers.
PREFIX = "decoder.lm."
MODEL, TASK = "megalodon_lm", "megalodon_language_modeling"


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds, built and ready to evaluate."""

    path: Path
    cfg: Any
    task: Any
    model: Any
    criterion: torch.nn.Module
    update: int
    epoch: int
    device: torch.device
    trained_chunk_size: int | None

    @property
    def language_model(self) -> LanguageModel:
        """Return the plain language model.  Raises :class:`UserError` if there is none."""
        found = getattr(getattr(self.model, "decoder", None), "lm", None)
        if found is None:
            raise UserError(f"{self.path}: holds no language model of this project")
        return found

    def result(
        self, file: Path, measured: Mapping[str, Any], recipe: str | None = None
    ) -> dict[str, Any]:
        """Return a line of ``file``: ``measured``, of which model and data, and what it compares with.

        recipe: its id in ``recipes/results.csv``, by default the task's name.
        """
        result = {
            "benchmark": recipe or self.cfg.task._name,
            **measured,
            "checkpoint": relative(self.path, file.parent),
            "update": self.update,
            "epoch": self.epoch,
            "params": sum(p.numel() for p in self.model.parameters()),
            "chunk_size": self.trained_chunk_size,
            "evaluation_chunk_size": self.cfg.model.get("chunk_size"),
            "seed": self.cfg.common.seed,
            "data": describe_data(self.cfg.task.get("data") or ""),
            "normalisation": self.cfg.task.get("normalisation"),
            "training": comparability.describe_training(self.path.parent, self.cfg),
            "precision": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            **environment(self.device),
        }
        return result | comparability.judge(result, self.cfg)


def load(
    path: Path,
    data: Path | None = None,
    device: torch.device | str | None = None,
    ema: bool = False,
    task_overrides: Mapping[str, Any] | None = None,
    chunk_size: int | Literal["full"] | None = None,
) -> Trained:
    """Build the model, task and criterion of the checkpoint ``path``.

    data: the folder of the prepared data, by default that of training.  device: by default the GPU if
    there is one.  ema: take the weights that training averaged (``ema.store_ema=true``) instead of the
    last ones.  task_overrides: other values for fields of the task.  chunk_size: steps in an attention
    chunk, or ``full`` attention, by default ``task.eval_chunk_size``, else as in training; no weight
    depends on it.

    Only tensors and settings are read from the file, and only components of this project are built
    (``fairseq_compat/trusted_components.py``).  Raises :class:`UserError` for a file that is missing,
    damaged, names other components, or does not fit the model that its settings name, for an unknown
    field, and for a chunk size where the model has none.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    overrides = {} if data is None else {"data": literal(str(data.resolve()))}
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path), overrides)
    check_components(str(path), state)
    _override_task(state["cfg"].task, task_overrides or {})
    trained_chunk_size = state["cfg"].model.get("chunk_size")
    chunk_size = chunk_size or state["cfg"].task.get("eval_chunk_size")
    if chunk_size is not None:
        _override_chunk_size(state["cfg"], chunk_size)
    if ema:
        if "ema" not in state["extra_state"]:
            raise UserError(f"{path}: holds no averaged weights; train with ema.store_ema=true")
        state["model"] = state["extra_state"]["ema"]
    if "diverged" in state["extra_state"]:
        raise UserError(
            f"{path}: the state of a run that diverged at update {state['extra_state']['diverged']}; "
            "name a checkpoint from before"
        )
    update = state["optimizer_history"][-1]["num_updates"]
    position = state["extra_state"]["train_iterator"]
    try:
        loaded: Any = checkpoint_utils.load_model_ensemble_and_task([str(path)], state=state)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise UserError(
            f"{path}: does not fit the model that its settings name: {error}"
        ) from error
    (model,), cfg, task = loaded
    check_finite(path, model.state_dict())
    between_epochs = position["iterations_in_epoch"] == 0
    return Trained(
        path=path,
        cfg=cfg,
        task=task,
        model=model.to(device).eval(),
        criterion=task.build_criterion(cfg.criterion).to(device).eval(),
        update=update,
        epoch=position["epoch"] - 1 if between_epochs else position["epoch"],
        device=device,
        trained_chunk_size=trained_chunk_size,
    )


def check_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise :class:`UserError` naming a tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not finite(tensor):
            raise UserError(
                f"{path}: {name} holds numbers that are not finite: the training diverged before this "
                "checkpoint was written, so name an earlier one"
            )


def _override_chunk_size(cfg: Any, chunk_size: int | Literal["full"]) -> None:
    """Set the chunk size in the model's configuration, and let the task have no other."""
    model, task = cfg.model, cfg.task
    if "chunk_size" not in model:
        raise UserError(
            f"--chunk-size {chunk_size}: the model {model._name} has no attention chunks"
        )
    with open_dict(model):
        model.chunk_size = None if chunk_size == "full" else chunk_size
    if "eval_chunk_size" in task:
        task.eval_chunk_size = None


def _override_task(task: Any, overrides: Mapping[str, Any]) -> None:
    """Set fields of the task's configuration, which may be newer than the checkpoint."""
    registered = TASK_DATACLASS_REGISTRY.get(task._name)
    known = set(task) | set(getattr(registered, "__dataclass_fields__", ())) - {"_name"}
    for name, value in overrides.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or sorted(known)
            raise UserError(
                f"--task-override {name}={value}: the task {task._name} has no field {name!r}; "
                f"there is {', '.join(near)}"
            )
        with open_dict(task):
            task[name] = value


def untrained_checkpoint(model: CausalLM, data: Path) -> dict[str, Any]:
    """Return what fairseq saves before the first update of ``model``, for fairseq's tools to load.

    Row i of the embedding belongs to symbol i of the dictionary in ``data``.  Raises ``ValueError`` if
    there is no dictionary, or one with another number of symbols.
    """
    path = data / DICTIONARY
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: --data names the prepared data that goes with the model"
        )
    symbols = len(read_dictionary(path))
    if symbols != model.vocab_size:
        raise ValueError(
            f"{path} has {symbols} symbols, the checkpoint {model.vocab_size}; prepare the data with "
            "the vocabulary that the model was trained with"
        )
    settings = {f.name: getattr(model.config, f.name) for f in fields(MegalodonConfig)}
    unit = {"tokens_per_sample": model.config.chunk_size} if model.config.chunk_size else {}
    history = {
        "criterion_name": "CrossEntropyCriterion",
        "optimizer_name": "",
        "lr_scheduler_state": {"best": None},
        "num_updates": 0,
    }
    return {
        "args": None,
        "cfg": _fairseq_settings(
            model={**settings, "scale_emb": model.scale_emb, "share_emb": model.share_emb},
            task={"data": literal(str(data.resolve())), **unit},
        ),
        "model": {PREFIX + name: tensor.detach() for name, tensor in model.state_dict().items()},
        "criterion": None,
        "optimizer_history": [history],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }


def _fairseq_settings(model: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """Return fairseq's whole configuration with its defaults, except for ``model`` and ``task``."""
    config = OmegaConf.structured(FairseqConfig())
    OmegaConf.set_struct(config, False)
    config.model = {"_name": MODEL, **model}
    config.task = {"_name": TASK, **task}
    config.criterion = {"_name": "cross_entropy"}
    add_defaults(config)
    settings: Any = LiteralOmegaConf.to_container(config, resolve=True, enum_to_str=True)
    return settings


def consolidated(path: Path) -> dict[str, Any]:
    """Read a checkpoint with sharded tensors as fairseq would have written it from one process.

    Raises ``ValueError`` if it has no shards, or they are missing or damaged.
    """
    state = _read(path)
    if FOLDER not in state:
        raise ValueError(
            f"{path}: holds all its tensors already, so there is nothing to consolidate"
        )
    whole: Any = utils.move_to_cpu(with_shards(path, state))
    return whole


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such checkpoint")
    return read_tensors(path)


def _read_state(path: Path) -> dict[str, Any]:
    state = with_shards(path, _read(path))
    weights = state["model"] if {"cfg", "model"} <= set(state) else {}
    if not weights or not all(name.startswith(PREFIX) for name in weights):
        raise ValueError(f"{path} holds no language model of this project")
    return state


def data_of(path: Path) -> Path:
    """Return the folder of the data that the language model in ``path`` was trained on."""
    settings: Any = OmegaConf.create(_read_state(path)["cfg"]["task"])
    return Path(settings.data)


def read_language_model(path: Path) -> CausalLM:
    """Read the language model of a checkpoint; needs neither its task nor its data.

    Raises ``ValueError`` if the checkpoint holds another model or architecture, or an adaptive embedding
    and softmax.
    """
    state = _read_state(path)
    weights = state["model"]
    settings = state["cfg"]["model"]
    registered = MODEL_REGISTRY.get(settings["_name"])
    if getattr(registered, "stack_type", None) is not MegalodonStack:
        raise ValueError(
            f"{path}: model._name={settings['_name']} is not a Megalodon, so it cannot be converted"
        )
    if settings.get("adaptive_cutoffs") is not None:
        raise ValueError(
            f"{path}: adaptive_cutoffs={settings['adaptive_cutoffs']}: the released model has no "
            "adaptive embedding and softmax, so this model cannot be converted"
        )
    check_depth(path, settings, len(weights))
    plain = {f.name: settings[f.name] for f in fields(MegalodonConfig) if f.name in settings}
    vocab_size = len(weights[f"{PREFIX}embedding.weight"])
    options = {key: settings[key] for key in ("scale_emb", "share_emb")}
    with torch.device("meta"):
        model = CausalLM(MegalodonConfig(**{**plain, "causal": True}), vocab_size, **options)
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: its tensors do not fit its settings: {error}") from None
    return model
