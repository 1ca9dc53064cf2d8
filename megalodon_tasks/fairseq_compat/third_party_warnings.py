"""Ignore warnings that every run would print and that no user of this project can act on.

Each entry is one message of one library with the place that causes it.  All others are shown, and
``python -W always`` or ``PYTHONWARNINGS`` shows these too.
"""

import re
import warnings

# (what the message contains, category)
KNOWN = [
    # fairseq/models/model_utils.py:12, 24, 36, 57, 62, when it is imported
    ("`torch.jit.script` is deprecated", FutureWarning),
    # fairseq/tasks/fairseq_task.py:531, in each training step
    ("`torch.cuda.amp.autocast(args...)` is deprecated", FutureWarning),
    # fairseq/optim/amp_optimizer.py:26, with --amp
    ("`torch.cuda.amp.GradScaler(args...)` is deprecated", FutureWarning),
    # fairseq/data/iterators.py:509 asks for pinned memory on any machine
    ("'pin_memory' argument is set as true but no accelerator is found", UserWarning),
    # fairseq/modules/multihead_attention.py mixes bool and float masks
    ("Support for mismatched key_padding_mask and", UserWarning),
    # torch/distributed/checkpoint/utils.py, where one process reads what several wrote
    ("torch.distributed is disabled, unavailable or uninitialized, assuming", UserWarning),
    # torch/_inductor/lowering.py, which leaves the complex states of CEMA to its operators
    ("Torchinductor does not support code generation for complex operators", UserWarning),
    # fairseq/dataclass/utils.py is written for hydra 1.0
    ("hydra.experimental.initialize() is no longer experimental", UserWarning),
    ("hydra.experimental.compose() is no longer experimental", UserWarning),
    ("The strict flag in the compose API is deprecated", UserWarning),
    # fairseq_cli/hydra_train.py:25 as well
    ("The version_base parameter is not specified", UserWarning),
    ("Usage of deprecated keyword in package header '# @package _group_'", UserWarning),
    ("is validated against ConfigStore schema with the same name", UserWarning),
    ("Future Hydra versions will no longer change working directory at job", UserWarning),
]


def install() -> None:
    """Ignore the warnings of :data:`KNOWN`, after all filters that the user has set."""
    for message, category in KNOWN:
        pattern = rf"(?s).*{re.escape(message)}"
        warnings.filterwarnings("ignore", message=pattern, category=category, append=True)
