"""Megalodon as a model of lm-evaluation-harness, registered under ``megalodon``.

The harness (0.4.13) knows the models of its own table and those whose module was imported, and has no
plug-ins: import this module before ``lm_eval.simple_evaluate(model="megalodon", ...)``, or give the
options of ``lm_eval`` to ``python -m megalodon_tasks.evaluation.harness_model``.
"""

# pyright: reportMissingImports=false

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from megalodon_tasks.evaluation import text_model
from megalodon_tasks.evaluation.contexts import Reader, select
from megalodon_tasks.evaluation.continuation import Continuation, continue_texts
from megalodon_tasks.evaluation.sampling import Choice
from megalodon_tasks.models.state import StackState

logger = logging.getLogger(__name__)

PIECE = 2048
GENERATED = 256  # tokens at most, where a task says nothing
# What generation_kwargs of a task may hold.
GENERATION = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}


@register_model("megalodon")
class MegalodonLM(TemplateLM):
    """A language model with its tokenizer, for the tasks of the harness.

    Texts start with the token that ends documents, as in training.  Nothing is truncated.

    checkpoint: what :func:`megalodon_tasks.evaluation.text_model.load` reads, with ``data`` and
    ``chunk_size``.  batch_size: rows computed together; results do not depend on it.  piece: tokens of a
    row read at a time.  device: a GPU that is not there is replaced by the CPU.  seed: what drawn texts
    depend on, for tasks with ``do_sample: true``.  max_batch_size: not used.
    Raises ``ValueError`` for an impossible value and what ``load`` raises.
    """

    def __init__(
        self,
        checkpoint: str,
        data: str | None = None,
        chunk_size: int | str | None = None,
        batch_size: int | str = 1,
        piece: int = PIECE,
        device: str | None = None,
        seed: int = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "piece": piece}.items():
            if not str(value).isdecimal() or int(value) < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        if device is not None and (device.startswith("cpu") or torch.cuda.is_available()):
            self._device = torch.device(device)
        loaded = text_model.load(
            Path(checkpoint), None if data is None else Path(data), self._device, chunk_size
        )
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._reader = Reader(loaded.model, int(batch_size), int(piece))
        self._device, self._seed = self._reader.device, seed
        self._unknown = loaded.tokenizer.dictionary().unk()
        self._has_warned = False

    @property
    def eot_token_id(self) -> int:
        """The token that ends documents, and starts each text."""
        return self._tokenizer.eos

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the tokens of a text, after the start token unless ``add_special_tokens`` is False."""
        tokens = self._tokenizer.encode(string).tolist()
        if self._unknown in tokens and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "texts of the tasks have tokens that are not in the vocabulary of the model, for "
                "example in %r",
                string[:80],
            )
        return tokens if add_special_tokens is False else [self.eot_token_id, *tokens]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Refuse a template: raises ``ValueError`` if one is asked for."""
        if chat_template:
            raise ValueError(
                f"--apply_chat_template {chat_template}: the tokenizer of this model has no template "
                "for conversations; leave the option out"
            )
        return None

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        for (context, continuation), _, tokens in requests:
            if not tokens:
                raise ValueError(
                    f"the continuation {continuation!r} of {context[-80:]!r} has no tokens of its own; "
                    "begin it with a space or a line break, so that the tokenizer keeps the two apart"
                )
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        bar = tqdm(total=len(requests), desc="loglikelihood", disable=disable_tqdm)
        lengths = [len(continuation) for _, _, continuation in requests]
        for numbers, last, state in self._with_contexts([r[1] for r in requests], lengths):
            # The last token of the context predicts the first one of its continuation.
            rows = [
                np.array([token, *requests[number][2]], np.int64)
                for number, token in zip(numbers, last, strict=True)
            ]
            log_p_B, greedy_B = self._reader.score(rows, state)
            scored = zip(numbers, log_p_B.tolist(), greedy_B.tolist(), strict=True)
            for number, log_p, greedy in scored:
                answers[number] = (log_p, greedy)
                self.cache_hook.add_partial("loglikelihood", requests[number][0], answers[number])
            bar.update(len(numbers))
        bar.close()
        return answers

    def _with_contexts(
        self, contexts: Sequence[Sequence[int]], lengths: Sequence[int]
    ) -> Iterator[tuple[list[int], list[int], StackState | None]]:
        """Yield numbers of contexts, the last token of each, and the state before these tokens.

        Requests on one context come together, in the order of their ``lengths``.
        """
        asked = defaultdict(list)
        for number, context in enumerate(contexts):
            asked[tuple(context)].append(number)
        tokens = [np.array(context, np.int64) for context in asked]
        numbers = list(asked.values())
        for part, state in self._reader.contexts([context[:-1] for context in tokens]):
            rows = [(place, number) for place, i in enumerate(part) for number in numbers[i]]
            for batch in self._reader.batches(sorted(rows, key=lambda row: lengths[row[1]])):
                last = [int(tokens[part[place]][-1]) for place, _ in batch]
                yield [number for _, number in batch], last, select(state, [p for p, _ in batch])

    @torch.no_grad()
    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return log p of whole texts in nats, each read from its start to its end."""
        texts = [request.args[0] for request in requests]
        rows = [np.array(self.tok_encode(text), np.int64) for text in texts]
        answers = [0.0] * len(rows)
        bar = tqdm(total=len(rows), desc="loglikelihood_rolling", disable=disable_tqdm)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for batch in self._reader.batches(by_length):
            log_p_B, _ = self._reader.score([rows[i] for i in batch], None)
            for i, log_p in zip(batch, log_p_B.tolist(), strict=True):
                answers[i] = log_p
                self.cache_hook.add_partial("loglikelihood_rolling", (texts[i],), log_p)
            bar.update(len(batch))
        bar.close()
        return answers

    @torch.no_grad()
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what follows each context.

        Raises ``ValueError`` for a ``generation_kwargs`` that is not supported.
        """
        pairs: list[tuple[str, dict[str, Any]]] = [request.arguments for request in requests]
        texts = [self._continuation(settings, number) for number, (_, settings) in enumerate(pairs)]
        contexts = [self.tok_encode(context) for context, _ in pairs]
        bar = tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm)
        for numbers, last, state in self._with_contexts(contexts, [text.most for text in texts]):
            growing = [texts[number] for number in numbers]
            continue_texts(self._model, self._tokenizer, last, state, growing)
            for number, text in zip(numbers, growing, strict=True):
                self.cache_hook.add_partial("generate_until", requests[number].args, text.text)
            bar.update(len(numbers))
        bar.close()
        return [text.text for text in texts]

    def _continuation(self, settings: dict[str, Any], number: int) -> Continuation:
        unknown = sorted(set(settings) - GENERATION)
        if unknown:
            raise ValueError(
                f"generation_kwargs {unknown[0]}={settings[unknown[0]]!r} is not supported; there is "
                f"{', '.join(sorted(GENERATION))}"
            )
        stops = settings.get("until") or []
        choice = Choice(temperature=0.0)
        if settings.get("do_sample"):
            names = ("temperature", "top_k", "top_p")
            choice = Choice(**{name: settings[name] for name in names if name in settings})
        return Continuation(
            choice,
            [stops] if isinstance(stops, str) else [stop for stop in stops if stop],
            int(settings.get("max_gen_toks", GENERATED)),
            torch.Generator().manual_seed(self._seed + number),
        )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
