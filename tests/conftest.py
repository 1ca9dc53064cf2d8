"""What has to be settled before any test imports a kernel."""

import os

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Interpret Triton's kernels unless a GPU is there and its tests are asked for (-m gpu).

    Triton decides when a kernel is defined, and parts of it when it is itself imported, which others
    than the op library do.
    """
    if "not gpu" in config.option.markexpr or not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
