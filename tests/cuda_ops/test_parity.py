"""Every op and backend against the float64 reference, outputs and all gradients."""

import pytest
import torch

from tests.cuda_ops.cases import (
    FLOAT,
    HALF,
    Attention,
    Cema,
    RmsNorm,
    SequenceNorm,
    TimestepNorm,
    assert_matches_reference,
    each,
)

BOTH = torch.float64, FLOAT
PADDINGS = "none", "right", "left", "random"

# 1 and 2; one block of 16, of 64 or of its largest size and those beside it; several blocks; a prime;
# more than a group of blocks.
LENGTHS = 1, 2, 15, 16, 17, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 211, 300
CEMA = [
    *(Cema(length=length, state=True, mask="random") for length in LENGTHS),
    *(Cema(length=length, bidirectional=True, mask="random") for length in LENGTHS),
    Cema(batch=1, length=100, dim=1, order=1),
    Cema(batch=1, length=150, dim=1, order=1, bidirectional=True),
    Cema(batch=1, length=20, dim=5, order=3, state=True),
    Cema(batch=1, length=19, dim=9, order=5, state=True),
    Cema(batch=1, length=19, dim=17, order=20),
    Cema(batch=3, length=90, dim=8, order=16, bidirectional=True, mask="left"),
    Cema(batch=17, length=40, dim=2, order=2, state=True, mask="right"),
]
# (length, dim, groups): blocks of the Triton kernels have eight steps in these tests.
SHAPES = (1, 12, 2), (7, 4, 1), (8, 6, 3), (9, 12, 4), (24, 5, 5), (29, 3, 1), (33, 6, 2)
NORMS = [
    norm(2, length, mask, dim=dim, groups=groups, **state)
    for norm, state in ((SequenceNorm, {}), (TimestepNorm, {}), (TimestepNorm, {"state": True}))
    for mask in PADDINGS
    for length, dim, groups in SHAPES
]
RMS = [
    RmsNorm(batch, length, dim=dim, weighted=weighted)
    for batch, length, dim in ((1, 1, 3), (2, 37, 16), (5, 1, 160))
    for weighted in (True, False)
]
ATTENTION = [
    *(
        Attention(2, length, mask, chunk_size=chunk_size, causal=causal)
        for length in (1, 8, 11)
        for mask in PADDINGS
        for chunk_size in (1, 4, 11, 16, None)
        for causal in (True, False)
    ),
    *(
        Attention(
            2, length, mask, state=True, past=past, chunk_size=chunk_size, dropout_p=dropout_p
        )
        for length in (1, 3, 11)
        for mask in ("none", "random")
        for chunk_size, past in ((4, 0), (4, 1), (4, 3), (16, 5), (None, 3))
        for dropout_p in (0.0, 0.4)
    ),
    *(
        Attention(2, 11, mask, chunk_size=chunk_size, causal=causal, dropout_p=dropout_p)
        for mask in ("none", "random")
        for chunk_size in (1, 4, 11, None)
        for causal in (True, False)
        for dropout_p in (0.1, 0.6, 1.0)
    ),
]
# Tiles of the Triton kernels have 32 queries and 16 keys, or the other way round.
TILES = [
    *(
        Attention(2, length, mask, chunk_size=chunk_size, causal=causal, heads=1, key=5, value=7)
        for length in (1, 31, 32, 33)
        for mask in ("none", "random")
        for chunk_size in (13, 32, None)
        for causal in (True, False)
    ),
    Attention(1, 33, "none", chunk_size=1),
    Attention(1, 150, "right", chunk_size=100, causal=True),
    Attention(2, 150, "right", chunk_size=100, causal=False),
    *(
        Attention(2, 23, mask, state=True, past=past, chunk_size=chunk_size)
        for mask in ("none", "random")
        for past, chunk_size in ((0, 9), (1, 9), (8, 9), (20, 40), (20, None))
    ),
]
WIDTHS = [
    Attention(2, 40, "right", key=key, value=value, chunk_size=25, heads=1)
    for key, value in ((1, 1), (30, 60), (36, 144), (96, 320), (64, 160), (256, 520))
]


@each(CEMA, "reference", dtypes=BOTH)
def test_cema(case, backend, dtype):
    assert_matches_reference(case, backend, dtype)


@each(NORMS, "reference", dtypes=BOTH)
def test_norms_over_time(case, backend, dtype):
    assert_matches_reference(case, backend, dtype)


@each(RMS, "reference", dtypes=(*BOTH, *HALF))
def test_rms_norm(case, backend, dtype):
    assert_matches_reference(case, backend, dtype)


@each(ATTENTION, "reference", "triton", dtypes=BOTH)
def test_attention(case, backend, dtype):
    assert_matches_reference(case, backend, dtype)


@each(TILES, "reference")
def test_attention_over_tiles(case, backend, dtype):
    assert_matches_reference(case, backend, dtype)


@each(WIDTHS, "reference", dtypes=(FLOAT, *HALF))
def test_widths_of_keys_and_values(case, backend, dtype):
    assert_matches_reference(case, backend, dtype)


@each(
    [
        *(Cema(2, 67, "right", wide=wide, bidirectional=way) for wide in (0, 1) for way in (0, 1)),
        *(TimestepNorm(2, 40, "random", True, wide, dim=12) for wide in (False, True)),
        *(SequenceNorm(2, 40, "random", wide=wide, dim=12) for wide in (False, True)),
        *(Attention(2, 24, "right", True, key=8, value=value, past=3) for value in (5, 8)),
    ],
    dtypes=HALF,
)
def test_half_types(case, backend, dtype):
    """With parameters in the same type or in float32."""
    assert_matches_reference(case, backend, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FLOAT, torch.bfloat16])
@pytest.mark.parametrize(
    "case",
    [
        Cema(2, 700, "random", True, dim=40, order=16),
        Cema(2, 700, "random", dim=40, order=16, bidirectional=True),
        *(SequenceNorm(2, 700, "random", wide=True, dim=1024, groups=g) for g in (1, 32, 1024)),
        *(TimestepNorm(2, 700, "random", True, True, dim=1024, groups=g) for g in (1, 32, 1024)),
        *(
            Attention(2, 700, "random", heads=1, key=key, value=value, chunk_size=300)
            for key, value in ((64, 160), (96, 320), (256, 2048))
        ),
    ],
    ids=str,
)
def test_compiled_kernels_with_their_own_tiles(case, dtype):
    assert_matches_reference(case, "triton", dtype, device="cuda")
