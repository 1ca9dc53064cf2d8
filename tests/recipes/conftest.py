import pytest

from tests.recipes.run_scripts import Script


@pytest.fixture
def script(tmp_path):
    """Runs the scripts of recipes in a folder of their own, whose name needs quoting."""
    folder = tmp_path / "some where"
    folder.mkdir()
    return Script(folder)
