"""The fairseq task of the language models: text that ``fairseq-preprocess --only-source`` wrote.

Training reads blocks of a random length in random order, or contiguous rows with the model's state
carried from update to update (``stream``: truncated back-propagation).  Validation and test read
contiguous rows too, so that every token is scored with its whole context; ``eval_mode=blocks`` limits it
to a block.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from fairseq.data import Dictionary, FairseqDataset
from fairseq.data.iterators import EpochBatchIterator
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from omegaconf import open_dict

from megalodon_tasks.data.corpus import DICTIONARY
from megalodon_tasks.data.dictionary import read_dictionary
from megalodon_tasks.data.text_datasets import BlockDataset, BlockLength, RowDataset
from megalodon_tasks.data.token_stream import open_stream
from megalodon_tasks.errors import user_errors
from megalodon_tasks.models.chunk_parallel import set_chunk_parallel
from megalodon_tasks.models.layers.gated_attention import attention_chunks
from megalodon_tasks.models.settings import setting
from megalodon_tasks.models.state import Carried
from megalodon_tasks.recipes.lm.chunk_groups import ChunkGroups, check_settings, piece_of_batch
from megalodon_tasks.recipes.lm.inference import LanguageModelInference
from megalodon_tasks.recipes.lm.stream_state import StreamState
from megalodon_tasks.training.recorded_names import check_recorded
from megalodon_tasks.training.task_settings import NewBatchesEachEpoch, TaskSettings

logger = logging.getLogger(__name__)

EVAL_MODES = ("stream", "blocks")
VOCABULARY_REMEDY = (
    "Prepare the data with the dict.txt that the model was trained with "
    "(fairseq-preprocess --srcdict)"
)


@dataclass
class MegalodonLanguageModelingConfig(TaskSettings):
    """Settings of the task."""

    tokens_per_sample: int = setting(2048, "tokens in a unit of a block; best the model's chunk")
    block_multiple_min: int = setting(1, "a training block has at least this many units")
    block_multiple_max: int = setting(1, "and at most this many; drawn for each block and epoch")
    sample_break_mode: str = setting(
        "none",
        "blocks: cut anywhere (none), fill with whole lines (complete) or whole documents "
        "(documents), or eos",
    )
    stream: bool = setting(
        False, "train on contiguous rows, one per batch item, with the state carried"
    )
    documents: str = setting(
        "none",
        "keep documents apart: line (each line is one), blank (divided by empty lines), "
        "corpus (as the recipe's preparation recorded them: articles, books)",
    )
    answers_only: bool = setting(
        False, "data of lm/instruct: only the tokens of answers are learned and scored"
    )
    eval_mode: str = setting(
        "stream", "other splits: rows with the state carried (stream), or blocks"
    )
    eval_streams: int = setting(10, "stream: rows that a split is cut into for evaluation")
    eval_multiple: int = setting(2, "stream: units read at a time in evaluation")
    eval_chunk_size: Optional[int] = setting(
        None, "steps in an attention chunk in validation and evaluation; default: as in training"
    )
    chunk_parallel: int = setting(
        1, "training: processes that share a sequence, each with consecutive chunks of it"
    )
    add_bos_token: bool = setting(False, "not supported: a text starts after EOS")


@register_task("megalodon_language_modeling", dataclass=MegalodonLanguageModelingConfig)
class MegalodonLanguageModelingTask(NewBatchesEachEpoch, LanguageModelInference):
    """Predict the next token.  Errors in the data are raised as :class:`UserError`."""

    def __init__(self, cfg: MegalodonLanguageModelingConfig, dictionary: Dictionary) -> None:
        super().__init__(cfg, dictionary)
        cfg.rebuild_batches = True
        self.stream_state = StreamState()
        self.chunk_groups = ChunkGroups(cfg.chunk_parallel)
        self._eval_state = Carried()

    @classmethod
    @user_errors()
    def setup_task(
        cls, cfg: MegalodonLanguageModelingConfig, **kwargs: Any
    ) -> "MegalodonLanguageModelingTask":
        """Read the dictionary; raise :class:`UserError` where it or the folder is missing."""
        _check_choices(cfg)
        return cls(cfg, load_dictionary(cfg.data))

    @user_errors()
    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        """Load a split.  Raises :class:`UserError` where it is missing, empty or damaged."""
        cfg = self.cfg
        folder = Path(cfg.data).absolute()
        stream = open_stream(
            folder, split, self.dictionary, cfg.documents, combine, cfg.answers_only
        )
        training = split == cfg.train_subset
        length = BlockLength(cfg.tokens_per_sample, cfg.block_multiple_min, cfg.block_multiple_max)
        if not training:
            multiple = cfg.eval_multiple if cfg.eval_mode == "stream" else 1
            length = BlockLength(cfg.tokens_per_sample, multiple, multiple)
        if cfg.stream if training else cfg.eval_mode == "stream":
            dataset = RowDataset(stream, length, cfg.seed)
        else:
            dataset = BlockDataset(stream, length, cfg.sample_break_mode, training, cfg.seed)
        self.datasets[split] = dataset
        logger.info(f"{split}: {len(stream):,} tokens of {folder}")

    @user_errors()
    def get_batch_iterator(
        self,
        dataset: FairseqDataset,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        num_shards: int = 1,
        shard_id: int = 0,
        **settings: Any,
    ) -> EpochBatchIterator:
        """Return fairseq's iterator; rows keep their order, and each process has its own.

        In training the processes of a chunk-parallel group have the same.
        """
        limits = {"max_tokens": max_tokens, "max_sentences": max_sentences}
        training = dataset is self.datasets.get(self.cfg.train_subset)
        if training:
            num_shards, shard_id = self.chunk_groups.shards(num_shards, shard_id)
        if isinstance(dataset, RowDataset):
            if training:
                dataset.lay_out(_rows_at_a_time(dataset, limits) or 1, num_shards)
            else:
                _lay_out_for_evaluation(dataset, self.cfg.eval_streams, num_shards, limits)
        shard = {"num_shards": num_shards, "shard_id": shard_id}
        iterator = super().get_batch_iterator(dataset, **limits, **shard, **settings)
        iterator.disable_shuffling = isinstance(dataset, RowDataset)
        return iterator

    @user_errors()
    def filter_indices_by_size(
        self,
        indices: np.ndarray,
        dataset: FairseqDataset,
        max_positions: Any = None,
        ignore_invalid_inputs: bool = False,
    ) -> np.ndarray:
        """Return ``indices``; raise :class:`UserError` for a block that fits in no batch."""
        return dataset.filter_indices_by_size(indices, max_positions)[0]

    def train_step(
        self,
        sample: dict[str, Any],
        model: torch.nn.Module,
        criterion: torch.nn.Module,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Run a step; on streams the model continues from the state of the last update.

        A dummy batch of fairseq's (``ignore_grad``) leaves the state as it is.
        """
        if self.cfg.stream:
            carried = Carried() if ignore_grad else self.stream_state.before(sample)
            sample = _with_state(sample, carried)
        step = (criterion, optimizer, update_num, ignore_grad)
        if self.cfg.chunk_parallel == 1:
            result = super().train_step(sample, model, *step)
        else:
            with self.chunk_groups.sharing(model) as parallel:
                piece = piece_of_batch(sample, model, parallel, self.dictionary.pad())
                result = super().train_step(piece, model, *step)
                if self.cfg.stream:
                    carried.replace(parallel.last)
        if self.cfg.stream and not ignore_grad:
            self.stream_state.after(sample)
        return result

    def valid_step(
        self, sample: dict[str, Any], model: torch.nn.Module, criterion: torch.nn.Module
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Evaluate a batch; over rows the model continues from the state of the last batch.

        Attention has chunks of ``task.eval_chunk_size``.
        """
        if self.cfg.eval_mode == "stream":
            if sample["begins"]:
                self._eval_state = Carried()
            sample = _with_state(sample, self._eval_state)
        with attention_chunks(model, self.cfg.eval_chunk_size):
            return super().valid_step(sample, model, criterion)

    # Not decorated: fairseq passes from_checkpoint only where it finds it among the parameters
    # (checkpoint_utils.py:482).
    def build_model(self, cfg: FairseqDataclass, from_checkpoint: bool = False) -> torch.nn.Module:
        """Build the model; one for evaluation has attention chunks of ``task.eval_chunk_size``.

        Raises :class:`UserError` for impossible sizes, for a checkpoint whose vocabulary is not that of
        the data, and for ``task.chunk_parallel`` with a model whose sequences cannot be divided.
        """
        with user_errors():
            check_recorded(cfg, "vocabulary", self.dictionary.symbols, VOCABULARY_REMEDY)
            task = self.cfg
            check_settings(
                task.chunk_parallel,
                task.tokens_per_sample,
                task.documents,
                cfg.chunk_size,
                getattr(cfg, "compile_blocks", False),  # not in earlier checkpoints
            )
            if from_checkpoint and self.cfg.eval_chunk_size is not None:
                with open_dict(cfg):
                    cfg.chunk_size = self.cfg.eval_chunk_size
            model = super().build_model(cfg, from_checkpoint)
            if task.chunk_parallel > 1:
                set_chunk_parallel(model, None)  # raises for a model that cannot be
            return model

    def after_skipped_update(self) -> None:
        """Drop the state of the rows, in which the loss that was not finite may have left its trace."""
        self.stream_state.drop()

    def gather_for_checkpoint(self) -> None:
        """Bring the states together; called on all processes before one of them writes a checkpoint."""
        if self.cfg.stream:
            self.stream_state.gather()

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores: the state of every row, if the task trains on streams."""
        if not self.cfg.stream:
            return {}
        return {type(self).__name__: self.stream_state.to_plain()}

    def set_checkpoint_dict(self, saved: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self.stream_state.restore(saved)


def load_dictionary(data: str | None) -> Dictionary:
    """Read ``dict.txt`` of the folder ``data``; raise ``ValueError`` where there is none."""
    if not data:
        raise ValueError(
            f"task.data={data!r} names no folder; give the one that fairseq-preprocess wrote"
        )
    path = Path(data).absolute() / DICTIONARY
    if not path.parent.is_dir():
        raise ValueError(f"task.data: the folder {path.parent} does not exist")
    if not path.is_file():
        raise ValueError(
            f"task.data: {path.parent} has no dict.txt; it must be a folder that "
            "fairseq-preprocess --only-source wrote"
        )
    return read_dictionary(path)


def _check_choices(cfg: MegalodonLanguageModelingConfig) -> None:
    if cfg.eval_mode not in EVAL_MODES:
        raise ValueError(
            f"task.eval_mode={cfg.eval_mode!r} is unknown; choose one of {', '.join(EVAL_MODES)}"
        )
    if cfg.eval_chunk_size is not None and cfg.eval_chunk_size < 1:
        raise ValueError(
            f"task.eval_chunk_size={cfg.eval_chunk_size} is not a positive number of steps; leave it "
            "out for that of training"
        )
    if cfg.add_bos_token:
        raise ValueError(
            "task.add_bos_token=True is not supported: a text starts after EOS, as in training; "
            "leave it out"
        )


def _lay_out_for_evaluation(
    dataset: RowDataset, streams: int, processes: int, limits: dict[str, int | None]
) -> None:
    """Lay out ``streams`` rows over all processes, at most one per document and per token.

    They are the same for any number of processes, and so is the loss.
    """
    documents = len(dataset.stream.document_starts)
    rows = min(streams, documents or streams, len(dataset.stream))
    per_process = max(1, -(-rows // processes))
    dataset.lay_out(per_process, processes, _rows_at_a_time(dataset, limits), rows)


def _rows_at_a_time(dataset: RowDataset, limits: dict[str, int | None]) -> int | None:
    """Return how many rows both limits allow in a batch; None without a limit.

    Raises ``ValueError`` where a block of one row has more tokens than the limit.
    """
    tokens, longest = limits["max_tokens"], dataset.length.longest
    allowed = [] if limits["max_sentences"] is None else [limits["max_sentences"]]
    if tokens is not None:
        if tokens < longest:
            raise ValueError(
                f"{dataset.stream.name}: a block of a row has up to {longest} tokens, but at most "
                f"{tokens} fit in a batch; raise dataset.max_tokens (in evaluation max_tokens_valid), "
                "or lower task.tokens_per_sample, task.block_multiple_max or task.eval_multiple"
            )
        allowed.append(tokens // longest)
    return min(allowed, default=None)


def _with_state(sample: dict[str, Any], carried: Carried) -> dict[str, Any]:
    """Add to the batch the place from which the model takes its state and where it leaves the next."""
    return sample | {"net_input": sample["net_input"] | {"carried": carried}}
