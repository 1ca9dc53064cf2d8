"""The part of the language modelling task for fairseq's evaluation and generation commands.

``fairseq-eval-lm`` scores text; ``fairseq-interactive`` and ``fairseq-generate`` continue prompts.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from fairseq.data import (
    Dictionary,
    FairseqDataset,
    IdDataset,
    ListDataset,
    LMContextWindowDataset,
    NestedDictionaryDataset,
    NumelDataset,
    RightPadDataset,
)
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask

from megalodon_tasks.data.text_datasets import RowDataset
from megalodon_tasks.errors import UserError
from megalodon_tasks.models.state import Carried


class LanguageModelInference(FairseqTask):
    """The part of the task that does not train."""

    def __init__(self, cfg: FairseqDataclass, dictionary: Dictionary) -> None:
        super().__init__(cfg)
        self.dictionary = dictionary

    @property
    def source_dictionary(self) -> Dictionary:
        """The vocabulary."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        """The vocabulary."""
        return self.dictionary

    def max_positions(self) -> None:
        """Return that there is no limit."""

    def build_dataset_for_inference(
        self, src_tokens: list[torch.Tensor], src_lengths: list[int], **kwargs: Any
    ) -> FairseqDataset:
        """Make a data set of prompts: EOS first, no EOS at the end, padded on the right."""
        eos, pad = self.dictionary.eos(), self.dictionary.pad()
        prompts = [self._prompt(tokens) for tokens in src_tokens]
        sizes = np.array([len(prompt) for prompt in prompts])
        sources = ListDataset([torch.cat((p.new_tensor([eos]), p)) for p in prompts], sizes + 1)
        targets = ListDataset([torch.cat((p, p.new_tensor([pad]))) for p in prompts], sizes + 1)
        return NestedDictionaryDataset(
            {
                "id": IdDataset(),
                "net_input": {
                    "src_tokens": RightPadDataset(sources, pad_idx=pad),
                    "src_lengths": NumelDataset(sources, reduce=False),
                },
                "target": RightPadDataset(targets, pad_idx=pad),
            },
            sizes=[sizes + 1],
        )

    def _prompt(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens.long()
        return tokens[:-1] if len(tokens) and tokens[-1] == self.dictionary.eos() else tokens

    def build_generator(
        self, models: list[torch.nn.Module], args: FairseqDataclass, *more: Any, **settings: Any
    ) -> Any:
        """Build fairseq's generator; raise :class:`UserError` for constraints, which need a source."""
        if getattr(args, "constraints", None):
            raise UserError(
                f"--constraints {args.constraints} is for translation; a language model has no source "
                "sentence, so leave it out"
            )
        return super().build_generator(models, args, *more, **settings)

    def inference_step(
        self,
        generator: Any,
        models: list[torch.nn.Module],
        sample: dict[str, Any],
        prefix_tokens: torch.Tensor | None = None,
        constraints: torch.Tensor | None = None,
    ) -> list[list[dict[str, torch.Tensor]]]:
        """Continue each prompt, by letting fairseq's generator begin with ``prefix_tokens``."""
        eos = self.dictionary.eos()
        if prefix_tokens is None and sample["net_input"]["src_tokens"].nelement():
            prefix_tokens = sample["net_input"]["src_tokens"]
            if prefix_tokens[:, 0].eq(eos).all():
                prefix_tokens = prefix_tokens[:, 1:]
        found: dict[int, list[dict[str, torch.Tensor]]] = {}
        with torch.no_grad():
            for rows, prefix in self._continued_alike(generator, sample, prefix_tokens):
                part = _select(sample, rows)
                parts = generator.generate(models, part, prefix_tokens=prefix, bos_token=eos)
                found.update(zip(rows.tolist(), parts, strict=True))
        return [found[row] for row in sorted(found)]

    def _continued_alike(
        self, generator: Any, sample: dict[str, Any], prefix_tokens: torch.Tensor | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield rows of a batch that may be continued together, and the prompts of these.

        fairseq applies ``min_len`` only after the longest prompt of a batch (sequence_generator.py:395).
        Prompts shorter than ``min_len``, among them the empty one, go with those of their own length, so
        that they continue as each does by itself.
        """
        if prefix_tokens is None:
            yield torch.arange(len(sample["net_input"]["src_tokens"])), None
            return
        lengths_B = prefix_tokens.ne(self.dictionary.pad()).sum(1).cpu()
        groups_B = lengths_B.clamp(max=getattr(generator, "min_len", 0))
        for group in groups_B.unique():
            rows = (groups_B == group).nonzero()[:, 0]
            yield rows, prefix_tokens[rows.to(prefix_tokens.device), : int(lengths_B[rows].max())]

    def eval_lm_dataloader(
        self,
        dataset: FairseqDataset,
        max_tokens: int | None = 36000,
        batch_size: int | None = None,
        max_positions: int | None = None,
        context_window: int = 0,
        **settings: Any,
    ) -> "Iterator[dict[str, Any]] | _WithState":
        """Return batches for ``fairseq-eval-lm``, left to right.

        Raises :class:`UserError` for a context window over rows, whose context is all that was read.
        """
        rows = isinstance(dataset, RowDataset)
        if rows and context_window > 0:
            raise UserError(
                f"--context-window {context_window} is for blocks: with task.eval_mode=stream every "
                "token is scored with all that stands before it; leave it out, or add --eval-mode blocks"
            )
        if context_window > 0:
            dataset = LMContextWindowDataset(
                dataset=dataset,
                tokens_per_sample=self.cfg.tokens_per_sample,
                context_window=context_window,
                pad_idx=self.dictionary.pad(),
            )
        batches = self.get_batch_iterator(
            dataset=dataset,
            max_tokens=max_tokens,
            max_sentences=batch_size,
            max_positions=max_positions,
            **settings,
        ).next_epoch_itr(shuffle=False)
        return _WithState(batches) if rows else batches


def _select(sample: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Return the given rows of a batch of prompts."""
    size = len(sample["net_input"]["src_tokens"])
    if len(rows) == size:
        return sample
    selected: dict[str, Any] = {}
    for name, value in sample.items():
        if isinstance(value, dict):
            selected[name] = {k: v[rows.to(v.device)] for k, v in value.items()}
        elif torch.is_tensor(value) and value.dim() and len(value) == size:
            selected[name] = value[rows.to(value.device)]
        else:
            selected[name] = value
    return selected


class _WithState:
    """Batches of rows, each with the place where the model left the state of the batch before it."""

    def __init__(self, batches: Iterator[dict[str, Any]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        carried = Carried()
        for sample in self.batches:
            if sample["begins"]:
                carried = Carried()
            yield sample | {"net_input": sample["net_input"] | {"carried": carried}}
