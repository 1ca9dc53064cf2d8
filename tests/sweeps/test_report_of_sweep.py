from megalodon_tasks.cli import report
from megalodon_tasks.sweeps import pictures, table


def test_a_sweep_has_its_table_and_picture_on_the_page(tmp_path, asked, finish):
    folder = tmp_path / "sweep"
    for run in asked.runs():
        finish(run, 51.25)
    rows = table.rows(folder, asked)
    pictures.draw(folder, asked, rows, {})
    assert report.main([str(folder)]) == 0
    page, markdown = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "Sweep sweep: lra/listops" in page
    assert page.count("data:image/png;base64,") == 1
    assert "4 of 4 runs done." in markdown
    assert "| 64 | 51.25 | 0.00 | 2 |" in markdown
    assert "| chunk_size-full_seed-2 | 51.25 |" in markdown
