"""The tutorials as they are committed, and what runs them and makes pages of them. `make test-docs` runs them."""

import importlib.util
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/tutorials"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found
    spec.loader.exec_module(found)
    return found


run = module(FOLDER / "run.py")


@pytest.mark.parametrize("path", run.notebooks([]), ids=lambda path: path.stem)
def test_a_committed_tutorial_has_outputs_and_nothing_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    assert run.faults(notebook) == []
    assert run.text_of(run.stripped(notebook)) == path.read_text(encoding="utf-8"), "as run.py writes it"


def test_the_index_has_every_tutorial_and_links_lead_to_one():
    there = {path.name for path in run.notebooks([])}
    assert there == set(re.findall(r"\]\(([\w-]+\.ipynb)\)", (FOLDER / "README.md").read_text(encoding="utf-8")))
    for path in run.notebooks([]):
        linked = re.findall(r"\]\(([^)#:]+\.ipynb)", path.read_text(encoding="utf-8"))
        assert set(linked) <= there, path.name


def made(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


PICTURE = f"from IPython.display import Image\nimport base64\nImage(base64.b64decode('{PNG}'))"


def test_a_notebook_is_executed_in_an_empty_folder_and_its_faults_are_named(tmp_path):
    """One kernel for all faults."""
    right, wrong = tmp_path / "right.ipynb", tmp_path / "wrong.ipynb"
    nbformat.write(made(PICTURE, "import os; (os.listdir(), 'a/b', 1 / 4)"), right)
    found = run.stripped(run.executed(right, tmp_path, threads=1))
    assert run.faults(found) == []
    assert found.cells[1].outputs[0].data["text/plain"] == "([], 'a/b', 0.25)"
    assert not found.cells[1].metadata
    assert run.text_of(found) == run.text_of(run.stripped(run.executed(right, tmp_path, threads=1)))
    sources = ["import sys; print('ah', file=sys.stderr)", "print('in /home/me/x')", "1 / 0", "print(2)"]
    nbformat.write(made(*sources), wrong)
    said = run.faults(run.stripped(run.executed(wrong, tmp_path, threads=1)))
    for words in ("cell 1 wrote to stderr: ah", "cell 2 shows a path of this machine: /home/me",
                  "cell 3 raised ZeroDivisionError: division by zero", "no cell has a picture"):  # fmt: skip
        assert words in said
    assert len(said) == 4, "the last cell is executed all the same"


def test_a_notebook_without_outputs_or_of_many_bytes_is_refused():
    assert run.faults(made(PICTURE)) == ["no cell has a picture", "a cell was not executed"]
    large = made(PICTURE)
    large.cells[0].execution_count = 1
    large.cells[0].outputs = [nbformat.v4.new_output("display_data", {"image/png": "A" * 500_000})]
    assert len(run.faults(large)) == 1
    assert "more than 400,000" in run.faults(large)[0]
    with pytest.raises(SystemExit, match=r"expected the beginning of one of 1-where-is-a-fact, .*, got 'x'"):
        run.notebooks(["x"])


def test_the_site_has_a_page_of_every_notebook_with_its_pictures_and_the_notebook(tmp_path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    docs = tmp_path / "docs/tutorials"
    docs.mkdir(parents=True)
    (docs / "README.md").write_text("# Index\n\n[one](1.ipynb) [two](2.ipynb)\n")
    for name, other in (("1", "2"), ("2", "1")):
        notebook = made(PICTURE)
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"# Page {name}\n\nAfter [this]({other}.ipynb#there)."))
        notebook.cells[1].outputs = [nbformat.v4.new_output("display_data", {"image/png": PNG})]
        nbformat.write(notebook, docs / f"{name}.ipynb")
    site = tmp_path / "site"
    hook = str(ROOT / "docs/site/notebooks.py")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"site_name: s\nstrict: true\ntheme: readthedocs\nhooks: ['{hook}']\nplugins: []\n")
    build(load_config(str(config), site_dir=str(site)))
    pages = {name: (site / "tutorials" / name / "index.html").read_text() for name in ("1", "2")}
    for name, other in (("1", "2"), ("2", "1")):
        assert f'href="../{other}/#there"' in pages[name], "a link to a notebook leads to its page"
        [picture] = re.findall(r'<img[^>]*src="\.\./([\w-]+\.png)"', pages[name])
        assert (site / "tutorials" / picture).stat().st_size
        [kept] = re.findall(r'href="\.\./([\w-]+\.ipynb)"', pages[name])
        assert nbformat.read(site / "tutorials" / kept, as_version=4).cells[0].source.startswith(f"# Page {name}")
    assert 'href="1/"' in (site / "tutorials/index.html").read_text()
