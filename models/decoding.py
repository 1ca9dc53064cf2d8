"""Read one more token of each row, with all prepared that does not depend on the token.

An ordinary call with one token spends most of its time on checks, on coefficients, and on copies of the
open chunk.  :class:`Decoder` starts from an ordinary state, such as that after a prompt, and returns to
one at any time.

Legend: B rows, D model dim, V vocabulary, G norm groups, H heads, K key width, R = B H, C steps that the
memory of the open chunk holds, S of them that a step attends to.
"""

import operator
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from megalodon_tasks.models.captured_steps import CapturedSteps
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.language_model import LanguageModel
from megalodon_tasks.models.prepared_steps import BlockStep, NormStep, Place
from megalodon_tasks.models.state import StackState, reorder_state

# The memory of the open chunk starts with so many steps and doubles, up to the chunk size.
FEWEST_STEPS = 256
# Devices whose steps are replayed from graphs.  There attention covers a multiple of so many steps,
# masked, so that few graphs serve all steps.
CAPTURING = {"cuda"}
STEPS_PER_GRAPH = 256

_version = operator.attrgetter("_version")


class Decoder:
    """Continue ``state``, which ``lm`` returned, by one token of each row at a time.

    Scores equal those of ``lm(tokens, state)`` up to rounding.  A step takes as long after a million
    tokens as after a few.  It returns no gradients.

    The model must be in evaluation mode and stay as it is: after a change of a parameter a step raises
    ``ValueError`` (a write through ``parameter.data`` cannot be noticed).  Under autocast the matrices
    are converted once, when the decoder is made; otherwise they are used where they are.  Layers that
    are not :class:`Linear` (quantised ones), or have hooks, are called as modules.

    On CUDA the steps of the stack are replayed from CUDA graphs; this has not been run on a GPU.

    Raises ``ValueError`` for a model in training mode or a state of another model.
    """

    def __init__(self, lm: LanguageModel, state: StackState) -> None:
        self._lm = lm
        self._refuse_training()
        layer = lm.stack.blocks[0].attention
        lm.stack.check_state(state)
        _check_sizes(state, lm.config, layer.chunk_size)
        self._chunk_size = layer.chunk_size
        self._unfinished = False
        self._dtype = layer.norm.weight.dtype
        self._device = layer.norm.weight.device
        if torch.is_autocast_enabled(self._device.type):
            self._dtype = torch.get_autocast_dtype(self._device.type)
        self._prepare(state)
        self._parameters = [
            (module._parameters, name)
            for module in lm.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        # Inference tensors have no version: only their addresses are compared.
        self._versioned = not any(p.is_inference() for p in lm.parameters())
        self._prepared_from = self._fingerprint()

    # What is made here outlives the mode of the caller, so it is made outside of inference mode.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _prepare(self, state: StackState) -> None:
        stack, device = self._lm.stack, self._device
        batch, steps, heads, _ = state.blocks[0].attention.key.shape
        capacity = self._limited(max(FEWEST_STEPS, 1 << steps.bit_length()))
        self._batch, self._steps = batch, steps
        self._blocks = [
            BlockStep(*pair, capacity, self._dtype)
            for pair in zip(stack.blocks, state.blocks, strict=True)
        ]
        self._norm = NormStep(stack.norm, state.norm)
        self._count_BG = state.norm.count.double()[:, None].repeat(1, stack.norm.num_groups)
        self._position = torch.full((1,), steps, dtype=torch.int64, device=device)
        wide = torch.promote_types(self._dtype, torch.float32)
        self._bias_BHC = torch.full((batch, heads, capacity), -torch.inf, dtype=wide, device=device)
        self._bias_BHC[:, :, :steps] = 0.0
        mask_BT = state.blocks[0].attention.padding_mask
        self._padded = mask_BT is not None
        if mask_BT is not None:
            self._bias_BHC[:, :, :steps].masked_fill_(mask_BT[:, None], -torch.inf)
        self._set_slots(list(range(batch)))
        self._set_capacity(capacity)

    def _limited(self, capacity: int) -> int:
        return min(capacity, self._chunk_size or capacity)

    def _set_capacity(self, capacity: int) -> None:
        self._capacity = capacity
        like = torch.empty(0, dtype=self._bias_BHC.dtype.to_complex(), device=self._device)
        rotary = self._lm.stack.blocks[0].attention.rotary
        self._turns_CK = rotary.turns(0, capacity, like)
        self._captured = CapturedSteps() if self._device.type in CAPTURING else None

    def __call__(self, tokens_B1: torch.Tensor) -> torch.Tensor:
        """Return the scores of the next token, (B, 1, V).  tokens: (B, 1) int64.

        Raises what :meth:`features` raises.
        """
        with torch.no_grad():
            return self._lm.output.scores(self.features(tokens_B1))

    def features(self, tokens_B1: torch.Tensor) -> torch.Tensor:
        """Return the input of the output layer, (B, 1, D), and advance by one step.

        Raises ``ValueError`` for tokens of another shape or outside the vocabulary, and if the model
        was changed or set to training after this decoder was made.
        """
        self._refuse_training()
        if self._fingerprint() != self._prepared_from:
            raise ValueError(
                "a parameter of the model has changed since this decoder was made from it; "
                "continue with a new one, Decoder(model, decoder.state())"
            )
        if tokens_B1.shape != (self._batch, 1):
            raise ValueError(
                f"tokens have shape {tuple(tokens_B1.shape)}, expected ({self._batch}, 1): one token of "
                "each row; read longer pieces with the model itself, from decoder.state()"
            )
        self._refuse_unfinished()
        with torch.inference_mode():
            x_BD = self._lm.embed(tokens_B1)[:, 0]
            self._unfinished = True
            if self._row_of_slot is not None:
                x_BD = x_BD.index_select(0, self._row_of_slot)
            y_BD = self._run(x_BD, self._span())
            if self._slot_of_row is not None:
                y_BD = y_BD.index_select(0, self._slot_of_row)
            self._end_step()
        self._unfinished = False
        # A copy: that of a graph is overwritten by the next step, others are bound to inference mode.
        return y_BD.clone()[:, None]

    def _span(self) -> int:
        steps = self._steps + 1
        if self._device.type in CAPTURING:
            steps = -(-steps // STEPS_PER_GRAPH) * STEPS_PER_GRAPH
        return min(steps, self._capacity)

    def _run(self, x_BD: torch.Tensor, span: int) -> torch.Tensor:
        if torch.is_autocast_enabled(self._device.type):
            with torch.autocast(self._device.type, enabled=False):
                return self._run(x_BD, span)
        if self._captured is None:
            return self._step(x_BD, span)
        return self._captured(self._step, x_BD, span)

    def _step(self, x_BD: torch.Tensor, span: int) -> torch.Tensor:
        """Run the stack.  What differs from step to step is in tensors, except for the span."""
        share_BG = self._count_BG.add_(1).reciprocal()
        self._bias_BHC.index_fill_(2, self._position, 0.0)
        place = Place(
            share_BG.view(-1),
            (1 - share_BG).view(-1),
            self._turns_CK.index_select(0, self._position),
            self._position,
            self._bias_BHC.view(-1, 1, self._capacity)[:, :, :span],
        )
        y_BD = x_BD
        for block in self._blocks:
            y_BD = block(y_BD, place)
        self._position.add_(1)
        return self._norm(y_BD.double(), place).to(y_BD.dtype)

    def _end_step(self) -> None:
        self._steps += 1
        if self._steps == self._chunk_size:
            self._steps, self._padded = 0, False
            self._position.zero_()
            self._bias_BHC.fill_(-torch.inf)
            for block in self._blocks:
                block.attention.open_chunk()
        elif self._steps == self._capacity:
            self._grow()

    @torch.inference_mode(False)
    @torch.no_grad()
    def _grow(self) -> None:
        capacity = self._limited(2 * self._capacity)
        more = (0, capacity - self._capacity)
        self._bias_BHC = F.pad(self._bias_BHC, more, value=-torch.inf)
        for block in self._blocks:
            block.attention.grow(capacity)
        self._set_capacity(capacity)

    @torch.inference_mode(False)
    @torch.no_grad()
    def state(self) -> StackState:
        """Return a copy of the state, as ``lm`` returns it after the same tokens."""
        self._refuse_unfinished()
        wide = self._bias_BHC.dtype
        count_B = self._count_BG[:, 0].long()
        mask_BT = None
        if self._padded:
            mask_BT = self._bias_BHC[:, 0, : self._steps] == -torch.inf
        blocks = [block.attention.state(count_B, self._steps, mask_BT) for block in self._blocks]
        state = StackState(tuple(blocks), self._norm.state(count_B, wide))
        return state if self._slot_of_row is None else reorder_state(state, self._slot_of_row)

    def reorder(self, order: torch.Tensor) -> None:
        """Select rows, as beam search does.  order: (new batch,) int64, repeats allowed.

        Only repeated rows are copied: each row is stored in a slot, and the first row that continues
        another one takes over its slot.  Waits for the device, which holds ``order``.
        """
        self._refuse_unfinished()
        rows = order.tolist()
        if len(rows) != self._batch:
            self._prepare(reorder_state(self.state(), order))
            return
        parents = [self._slots[row] for row in rows]
        free = sorted(set(range(self._batch)) - set(parents))
        slots, sources = [], []
        for parent in parents:
            if parent in slots:
                sources.append(parent)
            slots.append(free[len(sources) - 1] if parent in slots else parent)
        if sources:
            with torch.inference_mode():
                self._copy_rows(sources, free[: len(sources)])
        self._set_slots(slots)

    def _copy_rows(self, sources: list[int], targets: list[int]) -> None:
        source, target = torch.tensor([sources, targets], dtype=torch.int64, device=self._device)
        for stored in self._stored():
            stored.index_copy_(0, target, stored.index_select(0, source))

    def _stored(self) -> Iterator[torch.Tensor]:
        yield from (self._count_BG, self._bias_BHC)
        yield from self._norm.rows()
        for block in self._blocks:
            yield from block.attention.rows(self._batch, self._steps)

    def _set_slots(self, slots: list[int]) -> None:
        self._slots = slots
        self._slot_of_row = self._row_of_slot = None
        if slots != sorted(slots):
            self._slot_of_row = torch.tensor(slots, dtype=torch.int64, device=self._device)
            self._row_of_slot = self._slot_of_row.argsort()

    def _refuse_training(self) -> None:
        if self._lm.training:
            raise ValueError(
                "the model is in training mode (training=True), where dropout acts; call model.eval() "
                "before decoding"
            )

    def _refuse_unfinished(self) -> None:
        if self._unfinished:
            raise ValueError(
                f"the step after {self._steps} steps of the chunk was interrupted, so the state is half "
                "written; start again from a state that was taken before"
            )

    def _fingerprint(self) -> list[int]:
        """Return the addresses of all parameters, then their versions, which count writes."""
        parameters = [owner[name] for owner, name in self._parameters]
        addresses = list(map(torch.Tensor.data_ptr, parameters))
        return addresses + list(map(_version, parameters)) if self._versioned else addresses


def _check_sizes(state: StackState, config: MegalodonConfig, chunk_size: int | None) -> None:
    norm, cema, (key, value, _) = state.blocks[0]
    heads = config.num_heads
    sizes = {
        "groups": (norm.mean.shape[1], config.norm_groups),
        "dim": (cema.shape[1], config.model_dim),
        "order of cema": (cema.shape[2], config.cema_ndim),
        "heads": (key.shape[2], heads),
        "key width": (key.shape[3], config.z_dim // heads),
        "value width": (value.shape[3], config.value_dim // heads),
    }
    for name, (held, needed) in sizes.items():
        if held != needed:
            raise ValueError(
                f"the state has {name} {held}, this model {needed}; pass a state of this model"
            )
    steps = key.shape[1]
    if chunk_size is not None and steps >= chunk_size:
        raise ValueError(
            f"the state holds {steps} steps of an open chunk, but the chunk_size of this model is "
            f"{chunk_size}; pass a state of this model"
        )
