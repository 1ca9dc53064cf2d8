"""Read prepared data and make samples of it: what all classification tasks share."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional

import numpy as np
import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask

from megalodon_tasks.data.sequence_dataset import SequenceDataset
from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.errors import user_errors
from megalodon_tasks.models.classifier import ClassifierInputs
from megalodon_tasks.models.settings import setting
from megalodon_tasks.training.recorded_names import check_recorded
from megalodon_tasks.training.task_settings import NewBatchesEachEpoch, TaskSettings

logger = logging.getLogger(__name__)

SOURCE_REMEDY = "Prepare the data from the source that the model was trained with"


@dataclass
class ClassificationConfig(TaskSettings):
    """Settings of every classification task."""

    benchmark: Optional[str] = setting(
        None, "refuse data of another benchmark; default: take what the folder holds"
    )
    max_positions: Optional[int] = setting(
        None, "longest sequence to accept, in steps; default: the longest there is"
    )


class ClassificationTask(NewBatchesEachEpoch, FairseqTask):
    """Classify prepared sequences, or pairs of them.

    A subclass lists in ``prepare_commands`` the benchmarks that it accepts, each with the command that
    prepares its data, with ``{data}`` for the folder, and names in ``prepared_form`` what reads the
    folder.  Token 0 is padding in all of them.  Raises
    :class:`UserError` where something is wrong with the data.
    """

    cfg: ClassificationConfig
    prepare_commands: ClassVar[dict[str, str]] = {}
    prepared_form: ClassVar[type] = PreparedDataset
    padding_idx: ClassVar[int] = 0

    def __init__(self, cfg: ClassificationConfig, **kwargs: Any) -> None:
        super().__init__(cfg, **kwargs)
        cfg.rebuild_batches = True
        with user_errors():
            self.prepared = self._open(cfg)
        self._max_positions = cfg.max_positions or self.prepared.max_length

    def _open(self, cfg: ClassificationConfig) -> Any:
        if cfg.benchmark is not None and cfg.benchmark not in self.prepare_commands:
            raise ValueError(
                f"task.benchmark={cfg.benchmark!r} is unknown to this task; "
                f"it has {', '.join(self.prepare_commands)}"
            )
        if not cfg.data:
            raise ValueError(
                f"task.data={cfg.data!r} names no folder of prepared data; {self._how_to_prepare()}"
            )
        folder = Path(cfg.data).absolute()
        try:
            prepared = self.prepared_form(folder)
        except ValueError as error:
            raise ValueError(f"task.data: {error}; {self._how_to_prepare(folder)}") from None
        found, benchmark = prepared.manifest.benchmark, cfg.benchmark
        if found not in self.prepare_commands or benchmark not in (None, found):
            expected = benchmark or " or ".join(self.prepare_commands)
            raise ValueError(
                f"task.data: {folder} holds data of the benchmark {found!r}, expected {expected}; "
                f"{self._how_to_prepare(folder)}"
            )
        return prepared

    def _how_to_prepare(self, folder: Path | str = "DATA") -> str:
        benchmark = self.cfg.benchmark
        names = [benchmark] if benchmark is not None else list(self.prepare_commands)
        commands = [self.prepare_commands[name].format(data=folder) for name in names]
        return "prepare a folder with: " + ", or ".join(commands)

    @property
    def inputs(self) -> ClassifierInputs:
        """Return what the data holds, for building a model."""
        spec = self.prepared.spec
        return ClassifierInputs(
            kind=spec.kind,
            num_classes=len(spec.classes),
            vocab_size=len(spec.vocabulary),
            padding_idx=self.padding_idx,
            max_length=self._max_positions,
            pair=len(spec.columns) == 2,
        )

    @property
    def length_pool(self) -> int:
        """Return the ``length_pool`` of :class:`SequenceDataset` for the training split."""
        return 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the name of each class, in the order of their numbers."""
        return self.prepared.spec.classes

    @user_errors()
    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> None:
        """Load a split; the training split is shuffled each epoch, others are sorted by length."""
        self.datasets[split] = SequenceDataset(
            self.prepared.split(split),
            padding_value=self.padding_idx,
            max_length=self._max_positions,
            shuffle=split == self.cfg.train_subset,
            seed=self.cfg.seed,
            length_pool=self.length_pool,
        )
        logger.info(f"{split}: {len(self.datasets[split])} items of {self.prepared.folder}")

    @user_errors()
    def filter_indices_by_size(
        self,
        indices: np.ndarray,
        dataset: SequenceDataset,
        max_positions: Any = None,
        ignore_invalid_inputs: bool = False,
    ) -> np.ndarray:
        """Return ``indices``; raise :class:`UserError` for an item longer than the model takes."""
        return dataset.filter_indices_by_size(indices, max_positions)[0]

    @user_errors()
    def build_model(self, cfg: FairseqDataclass, from_checkpoint: bool = False) -> torch.nn.Module:
        """Build the model.

        Raises :class:`UserError` for sizes that no model can have, and for a checkpoint whose symbols
        or classes differ from those of the data.
        """
        if self.inputs.kind == "tokens":
            check_recorded(cfg, "vocabulary", self.prepared.spec.vocabulary, SOURCE_REMEDY)
        check_recorded(cfg, "classes", self.class_names, SOURCE_REMEDY)
        return super().build_model(cfg, from_checkpoint)

    @user_errors()
    def build_criterion(self, cfg: FairseqDataclass, from_checkpoint: bool = False) -> Any:
        """Build the criterion; raise :class:`UserError` for values that it cannot have."""
        return super().build_criterion(cfg, from_checkpoint)

    def max_positions(self) -> int:
        """Return the length of the longest sequence that is accepted, in steps."""
        return self._max_positions
