"""One step of each layer, with its coefficients computed beforehand and its state updated in place.

States, and all that follows from them until CEMA's output is normalised, are float64: errors must not
grow with the number of steps, and at one step a wider type costs nothing.  Keys are float32 or better,
because scores have no temperature.  Nothing here branches on the value of a tensor, so a step can be
captured as a CUDA graph.

Legend: B rows, D model dim, G norm groups, J features of a group, M = B G, N order of the EMA, H heads,
K key and V value width per head, R = B H, C steps that the chunk's memory holds, S of them in use.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.cuda_ops import ChunkAttentionState, TimestepNormState
from megalodon_tasks.cuda_ops.complex_ema.coefficients import coefficients, power
from megalodon_tasks.models.layers.block import MegalodonBlock
from megalodon_tasks.models.layers.cema import ComplexEMA
from megalodon_tasks.models.layers.feed_forward import NormalizedFeedForward
from megalodon_tasks.models.layers.gated_attention import GatedAttention
from megalodon_tasks.models.layers.linear import Linear
from megalodon_tasks.models.layers.norms import LayerNorm, RMSNorm, TimeNorm
from megalodon_tasks.models.state import BlockState


class Place(NamedTuple):
    """Where the rows stand: what all layers of one step share.

    share: one over the number of steps, this one included, and past: one minus that (M,) float64.
    turns: (K/2,) complex, the rotation.  position: (1,) int64, the step of the chunk.
    bias: (R, 1, S) added to the scores, -inf at steps that are not seen.
    """

    share_M: torch.Tensor
    past_M: torch.Tensor
    turns: torch.Tensor
    position: torch.Tensor
    bias_R1S: torch.Tensor


def plain_linear(linear: nn.Module, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that maps (B, in) in ``dtype`` to (B, out), without the cost of a module call.

    A module of another class (a quantised layer), or one with hooks, is called as it is.
    """
    if type(linear) is not Linear or linear._forward_hooks or linear._forward_pre_hooks:
        same = all(p.dtype == dtype for p in linear.parameters())
        return linear if same else partial(_call_in_autocast, linear, dtype)
    bias = None if linear.bias is None else linear.bias.to(dtype)
    return partial(F.linear, weight=linear.weight.to(dtype), bias=bias)


def _call_in_autocast(module: nn.Module, dtype: torch.dtype, x_BD: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x_BD.device.type, dtype):
        return module(x_BD)


class NormStep:
    """One step of timestep norm (arXiv 2404.08801, eq. 4)."""

    def __init__(self, norm: TimeNorm, state: TimestepNormState) -> None:
        self.eps = norm.eps
        self.scale_D, self.bias_D = (norm.weight + 1).double(), norm.bias.double()
        self.mean_BG = state.mean.to(torch.float64, copy=True)
        if state.mean_low is not None:
            self.mean_BG += state.mean_low
        self.var_BG = state.var.to(torch.float64, copy=True)
        self._mean_M, self._var_M = self.mean_BG.view(-1), self.var_BG.view(-1)
        self._grouped = (1, len(self._mean_M), -1)

    def __call__(self, x_BD: torch.Tensor, place: Place) -> torch.Tensor:
        """Map (B, D) float64 to (B, D) float64."""
        mean_M, var_M = self._mean_M, self._var_M
        x_1MJ = x_BD.view(self._grouped)
        step_var_M, moved_M = torch.var_mean(x_1MJ, dim=(0, 2), correction=0)
        moved_M.sub_(mean_M)
        mean_M.addcmul_(moved_M, place.share_M)
        var_M.lerp_(step_var_M.addcmul_(moved_M, moved_M * place.past_M), place.share_M)
        # Batch norm in evaluation is the shortest way to say (x - mean) / sqrt(var + eps).
        normed = torch.batch_norm(*(x_1MJ, None, None, mean_M, var_M, False, 0.0, self.eps, False))
        return torch.addcmul(self.bias_D, normed.view(x_BD.shape), self.scale_D)

    def rows(self) -> Iterator[torch.Tensor]:
        """Yield what is stored per row, with the row as the first axis."""
        yield from (self.mean_BG, self.var_BG)

    def state(self, count_B: torch.Tensor, wide: torch.dtype) -> TimestepNormState:
        """Return the moments in the dtype ``wide``, with what that rounds off the mean."""
        mean_BG = self.mean_BG.to(wide, copy=True)
        low_BG = (self.mean_BG - mean_BG).to(wide)
        return TimestepNormState(count_B, mean_BG, self.var_BG.to(wide, copy=True), low_BG)


class CemaStep:
    """One step of CEMA (arXiv 2404.08801, eq. 2): ``s = q s + p x;  y = Re(eta s) + omega x``."""

    def __init__(self, cema: ComplexEMA, state: torch.Tensor) -> None:
        assert cema.time_step == 1, "a language model reads every step"
        coeffs = coefficients(cema.alpha, cema.delta, cema.theta, cema.gamma)
        self.q_DN = power(coeffs.log_radius, coeffs.angle, 1)
        self.p_DN = coeffs.p
        self.eta_DK = torch.stack((coeffs.eta_re, -coeffs.eta_im), dim=-1).flatten(1)
        self.omega_D = cema.omega[:, 0].double()
        self.state_BDN = state.to(torch.complex128, copy=True)
        pairs = torch.view_as_real(self.state_BDN)
        self._real_BDN, self._parts_BDK = pairs[..., 0], pairs.flatten(2)

    def __call__(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Map (B, D) float64 to (B, D) float64."""
        self.state_BDN.mul_(self.q_DN)
        self._real_BDN.addcmul_(self.p_DN, x_BD.unsqueeze(-1))
        y_BD = (self._parts_BDK * self.eta_DK).sum(-1)
        return y_BD.addcmul_(self.omega_D, x_BD)


class AttentionStep:
    """One step of the gated attention of a block; see :class:`GatedAttention` for the equations."""

    def __init__(
        self, layer: GatedAttention, state: BlockState, capacity: int, dtype: torch.dtype
    ) -> None:
        self.dtype, self.narrow = dtype, dtype.itemsize < 4
        self.eps = layer.norm_eps
        self.norm = NormStep(layer.norm, state.norm)
        self.cema = CemaStep(layer.cema, state.cema)
        self.cema_norm = _after_cema(layer.cema_norm)
        self.v_proj, self.z_proj = (plain_linear(p, dtype) for p in (layer.v_proj, layer.z_proj))
        self.gate_proj, self.skip_proj, self.out_proj = (
            plain_linear(p, dtype) for p in (layer.gate_proj, layer.skip_proj, layer.out_proj)
        )
        wide = torch.promote_types(dtype, torch.float32)
        batch, heads = len(state.cema), layer.num_heads
        width = layer.qk_scale.shape[1] // heads
        scale_2Z = (layer.qk_scale + 1).to(wide) / width**0.5
        self.scale_2R1K, self.bias_2R1K = (
            parameter_2Z.repeat(1, batch).view(2, batch * heads, 1, width)
            for parameter_2Z in (scale_2Z, layer.qk_bias.to(wide))
        )
        self._hold(
            _chunk_memory(state.attention.key, capacity, wide),
            _chunk_memory(state.attention.value, capacity, dtype),
        )

    def _hold(self, key_RCK: torch.Tensor, value_RCV: torch.Tensor) -> None:
        self.key_RCK, self.value_RCV = key_RCK, value_RCV
        self._key_RKC = key_RCK.transpose(1, 2)
        self._value_shape = (len(value_RCV), 1, -1)

    def __call__(self, x_BD: torch.Tensor, place: Place) -> torch.Tensor:
        """Map (B, D) to the branch (B, D)."""
        normed_BD = self.norm(x_BD.double(), place)
        mx_BD = self.cema_norm(self.cema(normed_BD)).to(self.dtype)
        q_R1K, k_R1K = self._queries_and_keys(mx_BD, place.turns)
        v_BD = F.silu(self.v_proj(normed_BD.to(self.dtype)))
        self.key_RCK.index_copy_(1, place.position, k_R1K)
        self.value_RCV.index_copy_(1, place.position, v_BD.view(self._value_shape))
        steps = place.bias_R1S.shape[-1]
        keys_RKS = self._key_RKC.narrow(2, 0, steps)
        weights_R1S = torch.baddbmm(place.bias_R1S, q_R1K, keys_RKS).softmax(-1)
        if self.narrow:
            weights_R1S = weights_R1S.to(self.dtype)
        attended_R1V = torch.bmm(weights_R1S, self.value_RCV.narrow(1, 0, steps))
        gated_BD = attended_R1V.view(v_BD.shape) * F.silu(self.gate_proj(mx_BD))
        return self.skip_proj(mx_BD) + self.out_proj(gated_BD)

    def _queries_and_keys(
        self, mx_BD: torch.Tensor, turns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scale_2R1K = self.scale_2R1K
        z_BD = self.z_proj(mx_BD)
        if self.narrow:
            z_BD = z_BD.to(scale_2R1K.dtype)
        z_1R1K = torch.rms_norm(
            z_BD.view(1, *scale_2R1K.shape[1:]), scale_2R1K.shape[-1:], None, self.eps
        )
        pairs = torch.addcmul(self.bias_2R1K, z_1R1K, scale_2R1K).view(turns.dtype)
        return (pairs * turns).view(scale_2R1K.dtype).unbind(0)

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` steps of the chunk."""
        self._hold(_grown(self.key_RCK, capacity), _grown(self.value_RCV, capacity))

    def open_chunk(self) -> None:
        """Forget the finished chunk: what a later step multiplies by zero must be finite."""
        self.key_RCK.zero_()
        self.value_RCV.zero_()

    def rows(self, batch: int, steps: int) -> Iterator[torch.Tensor]:
        """Yield what is stored per row, with the row as the first axis."""
        yield from self.norm.rows()
        yield self.cema.state_BDN
        for memory in (self.key_RCK, self.value_RCV):
            yield memory.unflatten(0, (batch, -1))[:, :, :steps]

    def state(
        self, count_B: torch.Tensor, steps: int, padding_mask: torch.Tensor | None
    ) -> BlockState:
        """Return what :class:`GatedAttention` returns after the same steps."""
        wide = torch.promote_types(self.dtype, torch.float32)
        key, value = (
            memory.unflatten(0, (len(count_B), -1))[:, :, :steps].transpose(1, 2).clone()
            for memory in (self.key_RCK, self.value_RCV)
        )
        return BlockState(
            self.norm.state(count_B, wide),
            self.cema.state_BDN.to(wide.to_complex(), copy=True),
            ChunkAttentionState(key, value, padding_mask),
        )


def _after_cema(norm: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    if not isinstance(norm, RMSNorm):
        return norm
    weight_D = (norm.weight + 1).double()
    return partial(torch.rms_norm, normalized_shape=weight_D.shape, weight=weight_D, eps=norm.eps)


def _chunk_memory(open_BTHK: torch.Tensor, capacity: int, dtype: torch.dtype) -> torch.Tensor:
    """Return zeros (R, C, width) that begin with the open chunk (B, T, H, width)."""
    batch, steps, heads, width = open_BTHK.shape
    memory = open_BTHK.new_zeros(batch, heads, capacity, width, dtype=dtype)
    memory[:, :, :steps] = open_BTHK.transpose(1, 2)
    return memory.flatten(0, 1)


def _grown(memory_RCK: torch.Tensor, capacity: int) -> torch.Tensor:
    return F.pad(memory_RCK, (0, 0, 0, capacity - memory_RCK.shape[1]))


class FeedForwardStep:
    """One step of the feed-forward half of a block."""

    def __init__(self, layer: NormalizedFeedForward, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.norm = _layer_norm(layer.norm)
        self.fc1, self.fc2 = plain_linear(layer.fc1, dtype), plain_linear(layer.fc2, dtype)
        self.fc3 = None if layer.fc3 is None else plain_linear(layer.fc3, dtype)
        self.layer_scale = layer.layer_scale

    def __call__(self, y_BD: torch.Tensor) -> torch.Tensor:
        """Map (B, D) to the branch (B, D)."""
        normed_BD = self.norm(y_BD)
        if normed_BD.dtype != self.dtype:
            normed_BD = normed_BD.to(self.dtype)
        hidden_BF = F.silu(self.fc1(normed_BD))
        if self.fc3 is not None:
            hidden_BF = hidden_BF * self.fc3(normed_BD)
        out_BD = self.fc2(hidden_BF)
        return out_BD if self.layer_scale is None else out_BD * self.layer_scale


def _layer_norm(norm: LayerNorm) -> Callable[[torch.Tensor], torch.Tensor]:
    scale, bias = (norm.weight + 1).detach(), norm.bias
    return partial(
        torch.layer_norm, normalized_shape=scale.shape, weight=scale, bias=bias, eps=norm.eps
    )


class BlockStep:
    """One step of a block, with the two-hop residual of eq. 11."""

    def __init__(
        self, block: MegalodonBlock, state: BlockState, capacity: int, dtype: torch.dtype
    ) -> None:
        self.attention = AttentionStep(block.attention, state, capacity, dtype)
        self.feed_forward = FeedForwardStep(block.feed_forward, dtype)

    def __call__(self, x_BD: torch.Tensor, place: Place) -> torch.Tensor:
        """Map (B, D) to (B, D)."""
        y_BD = self.attention(x_BD, place) + x_BD
        return self.feed_forward(y_BD) + x_BD
