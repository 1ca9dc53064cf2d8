"""The encoder-decoder as its equations are written, a sentence at a time; shares no code with models/.

Equations of arXiv 2404.08801; those of cross attention are the authors' interim code's.  ``p`` is a
mapping from names to tensors in float64.  Legend: L or S steps, D dim, H heads.
"""

import math

import torch
from torch.nn import functional as F


class Weights:
    """The tensors of a state_dict below a prefix."""

    def __init__(self, state, prefix=""):
        self.state, self.prefix = state, prefix

    def __getattr__(self, name):
        return self[name]

    def __getitem__(self, name):
        full = f"{self.prefix}{name}"
        return self.state[full] if full in self.state else Weights(self.state, f"{full}.")

    def linear(self, x):
        y = x @ self.weight.T
        return y + self.bias if f"{self.prefix}bias" in self.state else y


def grouped(x_LD, groups, mean, var, eps, p):
    """Normalise with given moments of groups, (L or 1, groups)."""
    x_LGJ = x_LD.unflatten(-1, (groups, -1))
    normed = (x_LGJ - mean[..., None]) / (var[..., None] + eps).sqrt()
    return normed.flatten(1) * (p.weight + 1) + p.bias


def time_norm(x_LD, p, config, causal):
    """Equation 4 where causal, else group norm over time."""
    x_LGJ = x_LD.unflatten(-1, (config.norm_groups, -1))
    lengths = range(1, len(x_LD) + 1) if causal else [len(x_LD)]
    mean = torch.stack([x_LGJ[:n].mean((0, 2)) for n in lengths])
    var = torch.stack([x_LGJ[:n].var((0, 2), unbiased=False) for n in lengths])
    return grouped(x_LD, config.norm_groups, mean, var, config.norm_eps, p)


def cema(x_LD, p, causal):
    """Equations 2 and 3 as a sum over all pairs of steps."""
    order, length, dim = p.alpha.shape[1], *x_LD.shape
    weight = torch.sigmoid(p.alpha[:, :, 0])
    radius = 1 - weight * torch.sigmoid(p.delta[:, :, 0])
    angle = torch.arange(1, order + 1) * torch.sigmoid(p.theta[:, :, 0]) * 2 * math.pi / order
    eta = torch.complex(p.gamma[..., 0], p.gamma[..., 1]) / math.sqrt(order)
    lag = torch.arange(length)[:, None, None]
    kernel_TR = (radius**lag * weight * (eta * torch.exp(1j * lag * angle)).real).sum(-1)
    y = []
    for t in range(length):
        now = p.omega[:, 0] * x_LD[t]
        for s in range(length):
            if s <= t:
                now = now + kernel_TR[t - s, :dim] * x_LD[s]
            elif not causal:
                now = now + kernel_TR[s - t - 1, dim:] * x_LD[s]
        y.append(now)
    return torch.stack(y)


def unit(x_LZ, heads, eps):
    """Scale each head to length 1."""
    x_LHK = x_LZ.unflatten(-1, (heads, -1))
    return (x_LHK / (x_LHK.square().mean(-1, keepdim=True) + eps).sqrt()).flatten(1) / math.sqrt(
        x_LHK.shape[-1]
    )


def rotated(x_LHK, chunk, base):
    """Rotate adjacent pairs by the position in the chunk."""
    length, width = x_LHK.shape[0], x_LHK.shape[-1]
    position = torch.arange(length) % (chunk or length)
    angle = position[:, None] * base ** -(torch.arange(0, width, 2) / width).double()
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    even, odd = x_LHK[..., 0::2], x_LHK[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def attend(q_LHK, k_SHK, v_SHV, seen_LS=None):
    scores = torch.einsum("lhk,shk->hls", q_LHK, k_SHK)
    if seen_LS is not None:
        scores = scores.masked_fill(~seen_LS, -torch.inf)
    return torch.einsum("hls,shv->lhv", scores.softmax(-1), v_SHV).flatten(1)


def attention(x_LD, p, config, causal):
    heads, length = config.num_heads, len(x_LD)
    normed = time_norm(x_LD, p.norm, config, causal)
    averaged = cema(normed, p.cema, causal)
    m = F.rms_norm(averaged, averaged.shape[-1:], eps=config.norm_eps) * (p.cema_norm.weight + 1)
    z = unit(p.z_proj.linear(m), heads, config.norm_eps)
    q, k = (
        rotated(
            (z * (p.qk_scale[i] + 1) + p.qk_bias[i]).unflatten(-1, (heads, -1)),
            config.chunk_size,
            config.rope_base,
        )
        for i in (0, 1)
    )
    v = F.silu(p.v_proj.linear(normed)).unflatten(-1, (heads, -1))
    chunk = torch.arange(length) // (config.chunk_size or length)
    seen = chunk[:, None] == chunk
    if causal:
        seen = seen.tril()
    gated = attend(q, k, v, seen) * F.silu(p.gate_proj.linear(m))
    return p.skip_proj.linear(m) + p.out_proj.linear(gated)


def cross(y_LD, encoded_SD, p, config):
    heads, eps = config.num_heads, config.norm_eps
    n = F.layer_norm(y_LD, y_LD.shape[-1:], p.norm.weight + 1, p.norm.bias, eps)
    q = unit(p.q_proj.linear(n), heads, eps) * (p.qk_scale[0] + 1) + p.qk_bias[0]
    k = unit(p.k_proj.linear(encoded_SD), heads, eps) * (p.qk_scale[1] + 1) + p.qk_bias[1]
    v = F.silu(p.v_proj.linear(encoded_SD))
    q, k, v = (tensor.unflatten(-1, (heads, -1)) for tensor in (q, k, v))
    return p.out_proj.linear(attend(q, k, v) * F.silu(p.gate_proj.linear(n)))


def feed_forward(y_LD, p, eps):
    normed = F.layer_norm(y_LD, y_LD.shape[-1:], p.norm.weight + 1, p.norm.bias, eps)
    return p.fc2.linear(F.silu(p.fc1.linear(normed)))


def stack(x_LD, p, config, layers, causal, encoded_SD=None):
    for i in range(layers):
        block = p.blocks[str(i)]
        y = attention(x_LD, block.attention, config, causal) + x_LD
        if encoded_SD is not None:
            y = cross(y, encoded_SD, block.cross, config) + x_LD
        x_LD = feed_forward(y, block.feed_forward, config.norm_eps) + x_LD
    return time_norm(x_LD, p.norm, config, causal)


def scores(state, config, source_S, target_L):
    """Scores (L, V) of a sentence pair without padding."""
    p = Weights(state)
    scale = math.sqrt(config.model_dim)
    x = p.encoder.embedding.weight[source_S] * scale
    encoded = stack(x, p.encoder.stack, config, config.num_layers, causal=False)
    x = p.decoder.embedding.weight[target_L] * scale
    layers = config.decoder_layers or config.num_layers
    x = stack(x, p.decoder.stack, config, layers, causal=True, encoded_SD=encoded)
    return p.decoder.output.linear(x)
