"""Tables and pictures of the report in a real browser: filtered, sorted and saved; points that open heatmaps."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from headless import Browser
from matplotlib.image import imread
from plausible import N_LAYERS
from report_page import SOFT, SVG, TIP, centre, choose, click, needs_chromium, opened

from fasttrace.analysis.regression import regressions


@needs_chromium
def test_tables_are_filtered_and_saved(twenty, tmp_path):
    with opened(twenty.url, tmp_path) as browser:
        choose(browser, "#table-r2 select", "fact-erasure")
        shown = "[...document.querySelectorAll('#table-r2 tbody tr')].filter(row => !row.hidden).length"
        assert browser.run(shown) == 4
        assert browser.run("document.querySelector('#table-r2 [role=status]').textContent") == "4 of 20 rows"
        browser.downloads_to(tmp_path)
        browser.run("document.querySelector('#table-r2 button.save').click()")
        browser.run("document.querySelector('#table-edits button.save').click()")
        for _ in range(200):
            if (tmp_path / "r2.csv").exists() and (tmp_path / "edits.csv").exists():
                break
            browser.run("new Promise(done => setTimeout(done, 25))")
        rows = list(csv.DictReader((tmp_path / "r2.csv").open(encoding="utf-8")))
        for row, there in zip(rows, regressions(twenty.store).to_pylist(), strict=True):
            assert float(row["r2_both"]) == pytest.approx(there["r2_both"], rel=1e-9)
        edits = list(csv.reader((tmp_path / "edits.csv").open(encoding="utf-8")))
        assert len(edits) == 1 + 32
        assert edits[0][:5] == ["problem", "method", "layer", "tracing effect", "rewrite"]
        # code is copied to the clipboard, or selected if the browser denies the clipboard to files
        browser.run("document.querySelector('#run-mass-1').open = true")
        block = "document.querySelector('#run-mass-1 .code')"
        browser.run(f"{block}.querySelector('button').click()")
        browser.until(f"{block}.querySelector('button').textContent === 'Copied'")
        browser.run("document.querySelector('#run-mass-1').open = false")
        # a link to a folded run opens it
        browser.turn_to("run-mass-1")
        assert browser.run("document.getElementById('run-mass-1').open")


def arrived(browser: Browser, folder: Path, *names: str) -> list[Path]:
    """The files that the page saved, once all are there."""
    for _ in range(400):
        if all((folder / name).exists() for name in names):
            break
        browser.run("new Promise(done => setTimeout(done, 25))")
    return [folder / name for name in names]


@needs_chromium
def test_every_picture_is_saved_as_svg_and_png_and_every_table_as_csv(twenty, tmp_path):
    """As it is shown, with its numbers, in light colours although the page is dark."""
    with opened(twenty.url, tmp_path, dark=True) as browser:
        browser.downloads_to(tmp_path)
        figures = browser.run("[...document.querySelectorAll('.figure')].map(one => one.id.replace('figure-', ''))")
        for place, key in enumerate(figures):
            for kind, button in (("svg", 1), ("png", 2)):
                if kind == "svg" or place < 2:  # the browser draws them all in one way
                    click(browser, f"document.querySelector('#figure-{key} .saves button:nth-child({button})')")
                    arrived(browser, tmp_path, f"{key}.{kind}")
        shown = browser.run(
            "Object.fromEntries([...document.querySelectorAll('.figure')].map(one => [one.id.replace('figure-', ''), "
            "[...one.querySelectorAll('.panel:not([hidden]) .mark title')].map(title => title.textContent)]))"
        )
        for key in figures:
            drawing = ElementTree.parse(tmp_path / f"{key}.svg").getroot()
            assert [one.text for one in drawing.iter(f"{SVG}title")] == shown[key]
            text = (tmp_path / f"{key}.svg").read_text()
            assert "var(" not in text
            assert 'class="' not in text
            assert {one.get("fill") for one in drawing.iter(f"{SVG}text")} <= {"#1b2027", "rgb(27, 32, 39)", SOFT}
            assert drawing.find(f"{SVG}rect").get("fill") == "#ffffff"
        for key in figures[:2]:
            picture = imread(tmp_path / f"{key}.png")
            width = float(ElementTree.parse(tmp_path / f"{key}.svg").getroot().get("width"))
            assert picture.shape[1] == pytest.approx(3 * width, abs=3)
            assert (picture[0, 0, :3] == 1).all()
            assert (picture[..., :3] < 0.9).any(axis=-1).mean() > 0.005, "nothing is drawn"

        browser.turn_to("fact=place-05")
        for button in range(3):
            click(browser, f"document.querySelectorAll('#grid-saves button')[{button}]")
        names = [f"heatmap-place-05.{kind}" for kind in ("svg", "png", "csv")]
        svg, png, grid = arrived(browser, tmp_path, *names)
        drawing = ElementTree.parse(svg).getroot()
        texts = [one.text for one in drawing.iter(f"{SVG}text")]
        assert texts[0] == "SmolLM2-135M-Instruct (Q4_1) · mlp · denoise · window 5"
        assert "Família*" in texts
        assert "restored layer (0-based), centre of a window of 5" in texts
        cells = twenty.store.query(
            "SELECT p_restored FROM trace_cells WHERE fact_id = 'place-05' AND window_size = 5 "
            "ORDER BY token_index, layer"
        )["p_restored"].to_pylist()
        filled = [one for one in drawing.iter(f"{SVG}rect") if one.get("height", "").startswith("18.")]
        assert len(filled) == len(cells)
        rows = list(csv.reader(grid.open(encoding="utf-8")))
        assert rows[0] == ["token", *map(str, range(N_LAYERS))]
        saved = [float(value) for row in rows[1:] for value in row[1:]]
        assert saved == pytest.approx(cells, rel=5e-4, abs=5e-4)
        assert imread(png).shape[1] > 1000

        tables = browser.run("[...document.querySelectorAll('.table')].map(one => one.dataset.key)")
        assert len(tables) == browser.run("document.querySelectorAll('table').length") - 1, "all but the grid"
        saved = {}
        browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        for key in tables:
            for _ in range(2):  # Chromium drops one of some twenty files that are saved in a row; slower, it drops none
                click(browser, f"document.querySelector('#table-{key} > button.save')")
                [path] = arrived(browser, tmp_path, f"{key}.csv")
                if path.exists():
                    break
            saved[key] = path.read_text(encoding="utf-8")
        assert saved["by-layer"].startswith("layer,0,4,8")
        assert saved["runs"].startswith("run,kind,model")
        assert all(len(text.splitlines()) > 1 for text in saved.values())


@needs_chromium
def test_a_point_opens_the_heatmap_of_its_fact_and_run(two_ways, tmp_path):
    with opened(two_ways.url, tmp_path) as browser:
        for way, run_id in (("zero", "trace-zero"), ("denoise", "trace-1")):
            choose(browser, "#pairs-localization", way)
            mark = "document.querySelectorAll('#figure-pairs .panel:not([hidden]) a.mark')[3]"
            # by the pointer, which is nearest to the point that the tip tells
            click(browser, mark)
            browser.until("location.hash")
            assert f"run={run_id}&window=5" in browser.run("location.hash")
            browser.until("document.activeElement.id === 'fact'")
            numbers = browser.run("document.getElementById('fact-numbers').textContent")
            assert f"mlp by {way} · window 5" in numbers
            told = browser.run("document.getElementById('fact-name').textContent")
            assert browser.run("document.querySelector('.tip').textContent").startswith(f"{told}: effect ")
            # by the keyboard, of another point
            browser.run("history.replaceState(null, '', location.pathname)")
            other = "document.querySelectorAll('#figure-pairs .panel:not([hidden]) a.mark')[1]"
            browser.run(f"{other}.focus()")
            name = browser.run(f"{other}.querySelector('title').textContent").partition(":")[0]
            browser.press("Enter")
            browser.until("location.hash")
            browser.until(f"document.getElementById('fact-name').textContent === {json.dumps(name)}")
            p = browser.run("document.querySelector('#grid tbody tr:nth-child(2) td:nth-of-type(5)').ariaLabel")
            fact_id = browser.run("decodeURIComponent(location.hash.split(/[=&]/)[1])")
            [cell] = two_ways.store.query(
                "SELECT p_restored FROM trace_cells WHERE run_id = ? AND fact_id = ? AND layer = 4 "
                "ORDER BY token_index LIMIT 1",
                [run_id, fact_id],
            ).to_pylist()
            if way == "denoise":  # of which the first token has a cell
                p = browser.run("document.querySelector('#grid tbody tr:nth-child(1) td:nth-of-type(5)').ariaLabel")
                assert f"p_restored {cell['p_restored']:.4g} " in p
            browser.run("history.replaceState(null, '', location.pathname)")
        # a finger's first tap tells, the second opens
    with opened(two_ways.url, tmp_path / "phone", width=390) as browser:
        x, y = centre(browser, "document.querySelector('#figure-pairs .panel:not([hidden]) a.mark')")
        browser.touch(x, y)
        assert browser.run(TIP) is not None
        assert browser.run("location.hash") == ""


@needs_chromium
def test_tables_are_sorted_by_click_and_key_and_wide_ones_use_the_margins(twenty, tmp_path):
    with opened(twenty.url, tmp_path, width=1440) as browser:
        assert browser.run("document.documentElement.scrollWidth") <= 1440
        heads = "[...document.querySelectorAll('#table-r2 thead th')]"
        assert browser.run(f"{heads}.every(one => one.ariaSort === 'none' && one.querySelector('button'))")
        place = browser.run(f"{heads}.findIndex(one => one.textContent === 'R² layer')")
        rows = "[...document.querySelectorAll('#table-r2 tbody tr')]"
        column = f"{rows}.map(row => Number(row.cells[{place}].textContent))"
        head = f"{heads}[{place}]"
        for turn, kind in enumerate(("ascending", "descending", "ascending")):
            if turn < 2:
                click(browser, f"{head}.querySelector('button')")
            else:
                browser.run(f"{head}.querySelector('button').focus()")
                browser.press("Enter")
                browser.run(f"{head}.ariaSort === 'ascending' || document.activeElement.click()")
            assert browser.run(f"{head}.ariaSort") == kind
            assert browser.run(f"{heads}.filter(one => one.ariaSort !== 'none').length") == 1
            values = browser.run(column)
            assert values == sorted(values, reverse=kind == "descending")
        wide, inside, left, right = browser.run(
            "(() => { const one = document.querySelector('#table-edits .scroll'), box = one.getBoundingClientRect();"
            "return [one.scrollWidth, box.width, box.left, box.right]; })()"
        )
        text = browser.run("document.querySelector('main').clientWidth")
        assert inside > text
        assert left >= 0
        assert right <= 1440
        assert left == pytest.approx(1440 - right, abs=20), "both margins"
        cue = "getComputedStyle(document.querySelector('#table-edits .scroll')).backgroundImage"
        assert "linear-gradient" in browser.run(cue)
        assert wide >= inside
