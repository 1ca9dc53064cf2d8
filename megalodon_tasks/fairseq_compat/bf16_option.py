"""Let ``--bf16`` mean bfloat16 on any device.

``parse_args_and_arch`` turns it into ``--tpu`` as well (options.py:203), and training then ends in
``'NoneType' object has no attribute 'xla_device'``.  With hydra, ``common.bf16=true`` does not.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from fairseq import options

from megalodon_tasks.fairseq_compat.patching import wrap


def install() -> None:
    """Patch the parser of fairseq's commands."""
    wrap(options, "parse_args_and_arch", _without_implied_tpu)


def _without_implied_tpu(
    stock: Callable,
    parser: Any,
    input_args: Sequence[str] | None = None,
    *more: Any,
    **settings: Any,
) -> Namespace | tuple[Namespace, list[str]]:
    parsed = stock(parser, input_args, *more, **settings)
    arguments = parsed[0] if isinstance(parsed, tuple) else parsed
    words = sys.argv[1:] if input_args is None else input_args
    if getattr(arguments, "bf16", False) and "--tpu" not in words:
        arguments.tpu = False
    return parsed
