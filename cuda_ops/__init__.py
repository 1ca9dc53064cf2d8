"""Operations for long sequences, each with several backends.

Each public function checks its arguments, lets ``dispatch`` choose a backend and calls it.  torch is all
that is needed; triton and CUDA are used where they are available.
"""

from megalodon_tasks.cuda_ops.attention.arguments import ChunkAttentionState
from megalodon_tasks.cuda_ops.attention.cross_op import cross_attention
from megalodon_tasks.cuda_ops.attention.op import chunk_attention
from megalodon_tasks.cuda_ops.complex_ema.op import cema
from megalodon_tasks.cuda_ops.dispatch import BackendUnavailable, use_backend
from megalodon_tasks.cuda_ops.norms.arguments import TimestepNormState
from megalodon_tasks.cuda_ops.norms.rms.op import rms_norm
from megalodon_tasks.cuda_ops.norms.sequence.op import sequence_norm
from megalodon_tasks.cuda_ops.norms.timestep.op import timestep_norm

__all__ = [
    "BackendUnavailable",
    "ChunkAttentionState",
    "TimestepNormState",
    "cema",
    "chunk_attention",
    "cross_attention",
    "rms_norm",
    "sequence_norm",
    "timestep_norm",
    "use_backend",
]
