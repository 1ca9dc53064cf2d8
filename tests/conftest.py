"""What has to be settled before any test imports a kernel."""

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import distributed as dist

# Before anything imports huggingface_hub: no test downloads.
os.environ["HF_HUB_OFFLINE"] = "1"
# Here, because the conftest of a folder that is named on the command line is imported before the hook.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Interpret Triton's kernels unless a GPU is there and its tests are asked for (-m gpu).

    Triton decides when a kernel is defined, and parts of it when it is itself imported, which others
    than the op library do.
    """
    if "not gpu" in config.option.markexpr:
        os.environ["TRITON_INTERPRET"] = "1"
    # A shell that starts us in the background has Ctrl-C ignored, and so would all that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before fixtures of any scope
def pytest_runtest_setup() -> None:
    """Silence known warnings of other packages as in a run; any other is worth reading."""
    if importlib.util.find_spec("fairseq") is not None:
        from megalodon_tasks.fairseq_compat import third_party_warnings

        third_party_warnings.install()


@pytest.fixture
def group_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[dist.ProcessGroup | None]:
    """A gloo group of this process only, the default group while a test runs."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # torch.distributed replaces it
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()
