"""One short run of the toy model for all tests of the commands."""

import shutil

import pytest

from tests.toy_plugin import runs


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    runs.train(folder)
    return folder


@pytest.fixture
def run_copy(trained, tmp_path):
    """The run in a folder of one's own, whose name needs quoting."""
    target = tmp_path / "a run's folder"
    return shutil.copytree(trained, target, ignore=shutil.ignore_patterns(".lock"))
