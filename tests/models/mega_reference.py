"""Mega's equations (arXiv 2209.10655) read aloud, for one sequence without padding."""

import torch
from torch.nn import functional as F


def moving_average(x_LD, ema):
    """Both directions, the current step in each: sums over all pairs of steps."""
    p = ema.delta.sigmoid()
    q = 1 - p * ema.alpha.sigmoid()
    lags = torch.arange(len(x_LD))
    kernel_RL = (p * ema.beta * q**lags * ema.gamma[..., None]).sum(1) / p.shape[1] ** 0.5
    forward_DL, backward_DL = kernel_RL.chunk(2)
    steps = []
    for t in range(len(x_LD)):
        before, after = x_LD[: t + 1].flip(0).T, x_LD[t:].T
        step_D = (forward_DL[:, : t + 1] * before).sum(1)
        steps.append(step_D + (backward_DL[:, : len(x_LD) - t] * after).sum(1))
    return torch.stack(steps) + ema.omega * x_LD


def position_bias(layer, steps):
    bias_CC = torch.zeros(steps, steps, dtype=torch.float64)
    bias = layer.position_bias
    for i in range(steps):
        for j in range(steps):
            if hasattr(bias, "max_positions"):
                bias_CC[i, j] = bias.weight[bias.max_positions - 1 + j - i]
            elif bias is not None:
                bias_CC[i, j] = halves_turned(bias.query[0], i) @ halves_turned(bias.key[0], j)
    return bias_CC


def halves_turned(x_Z, position):
    pairs = torch.complex(*x_Z.chunk(2))
    angle = position * 10000 ** -(torch.arange(len(pairs)).double() / len(pairs))
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag])


def neighbours_turned(x_Z, position):
    return halves_turned(torch.cat([x_Z[::2], x_Z[1::2]]), position)


def attention_weights(layer, q_CZ, k_CZ):
    steps = len(q_CZ)
    if layer.rotary is not None:
        q_CZ = torch.stack([neighbours_turned(q_Z, i) for i, q_Z in enumerate(q_CZ)])
        k_CZ = torch.stack([neighbours_turned(k_Z, i) for i, k_Z in enumerate(k_CZ)])
    bias_CC = position_bias(layer, steps)
    if not layer.laplace:
        return (q_CZ @ k_CZ.T / q_CZ.shape[1] ** 0.5 + bias_CC).softmax(-1)
    scores = q_CZ @ k_CZ.T / steps + bias_CC
    mean, deviation = scores.new_tensor([0.707107, 0.282095])
    return torch.distributions.Normal(mean, deviation).cdf(scores)


def norm(module, x_LD):
    inner = module.norm
    if hasattr(inner, "scalar"):
        return x_LD / (x_LD.square().mean(-1, keepdim=True) + 1e-5).sqrt() * inner.scalar
    if hasattr(inner, "running_mean"):
        mean, var = x_LD.mean(0), x_LD.var(0, correction=0)
    else:
        mean, var = x_LD.mean(-1, keepdim=True), x_LD.var(-1, correction=0, keepdim=True)
    return (x_LD - mean) / (var + 1e-5).sqrt() * inner.weight + inner.bias


def attention_half(x_LD, layer):
    normed_LD = norm(layer.norm, x_LD) if layer.prenorm else x_LD
    v_LV = F.silu(layer.v_proj(normed_LD))
    m_LD = F.silu(moving_average(normed_LD, layer.ema))
    d, z, v = x_LD.shape[1], layer.qk_scale.shape[1], v_LV.shape[1]
    base = m_LD @ layer.mx_proj.weight.T + layer.mx_proj.bias
    u_LD, z_LZ, r_LV, g_LD = base.split([d, z, v, d], dim=1)
    q_LZ, k_LZ = (F.silu(z_LZ) * layer.qk_scale[i] + layer.qk_bias[i] for i in (0, 1))
    chunk = layer.chunk_size or len(x_LD)
    attended = [
        attention_weights(layer, q_CZ, k_CZ) @ v_CV
        for q_CZ, k_CZ, v_CV in zip(*(t.split(chunk) for t in (q_LZ, k_LZ, v_LV)), strict=True)
    ]
    h_LD = F.silu(g_LD + layer.out_proj(torch.cat(attended) * F.silu(r_LV)))
    u_LD = u_LD.sigmoid()
    y_LD = u_LD * h_LD + (1 - u_LD) * x_LD
    return y_LD if layer.prenorm else norm(layer.norm, y_LD)


def feed_forward_half(y_LD, layer):
    normed_LD = norm(layer.norm, y_LD) if layer.prenorm else y_LD
    y_LD = y_LD + layer.fc2(F.silu(layer.fc1(normed_LD)))
    return y_LD if layer.prenorm else norm(layer.norm, y_LD)


def run(stack, x_LD):
    """Return the output (L, D) of a :class:`MegaStack` for one sequence."""
    for block in stack.blocks:
        x_LD = feed_forward_half(attention_half(x_LD, block.attention), block.feed_forward)
    return x_LD if stack.norm is None else norm(stack.norm, x_LD)
