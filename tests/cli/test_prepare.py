"""``megalodon prepare``: recipes and their demos, what is printed where, prepared data as the source."""

import pytest

from megalodon_tasks.cli import prepare
from megalodon_tasks.data.manifest import Manifest
from tests.recipes.test_listops import write_files


def test_the_folder_goes_to_standard_output_and_the_report_to_standard_error(tmp_path, capsys):
    raw, out = write_files(tmp_path / "raw"), tmp_path / "out"
    for words in ([str(raw), str(out)], [str(raw), str(out), "--if-missing"]):
        assert prepare.main(["lra/listops", *words]) == 0
        printed = capsys.readouterr()
        assert printed.out == f"{out}\n"
        assert f"{out}: prepared" in printed.err
        assert "train: 3 expressions" in printed.err
    assert prepare.main(["lra/listops", str(out), str(tmp_path / "other")]) == 0
    assert capsys.readouterr().out == f"{out}\n"


def test_a_demo_makes_and_prepares_its_data(tmp_path, capsys):
    words = ["lra/image", str(tmp_path), str(tmp_path / "prepared"), "--demo", "--if-missing"]
    for _ in range(2):
        assert prepare.main(words) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'prepared'}\n"
    manifest = Manifest.read(tmp_path / "prepared")
    assert (manifest.benchmark, manifest.splits["test"]["items"]) == ("image", 297)


@pytest.mark.parametrize("recipe", sorted(set(prepare.MODULES) - {"lm/text"}))
def test_every_recipe_has_a_preparation_with_an_example_and_a_demo(capsys, recipe):
    assert recipe in prepare.DEMOS
    for words in (["--help"], ["--demo", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            prepare.main([recipe, *words])
        assert f"megalodon prepare {recipe}" in capsys.readouterr().out


def test_an_unknown_recipe_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare.main(["lra/listop", "a", "b"])
    assert "unknown recipe 'lra/listop'; there is lra/listops" in capsys.readouterr().err
