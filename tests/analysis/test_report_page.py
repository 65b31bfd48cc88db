"""The report in a real browser: picking, reading and filtering, on a phone, in dark mode, without script."""

import contextlib
import csv
import io
import json
import re
import shlex
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from headless import Browser, chromium
from matplotlib.image import imread
from plausible import (
    EDITED,
    HOSTILE,
    HOSTILE_ID,
    N_LAYERS,
    UNHURT,
    edit_result,
    mass_result,
    study_facts,
    trace_result,
)
from reports import codes, written

from fasttrace.analysis.embed import short
from fasttrace.analysis.regression import regressions
from fasttrace.analysis.relation import relation
from fasttrace.cli import cli
from fasttrace.facts.record import Fact
from fasttrace.store import Store

needs_chromium = pytest.mark.skipif(chromium() is None, reason="no chromium on this machine to open the report in")

READY = "document.documentElement.classList.contains('ready')"
CHECKS = (Path(__file__).parent / "page_checks.js").read_text(encoding="utf-8")
READOUT = "document.getElementById('readout').textContent"
SVG, SOFT = "{http://www.w3.org/2000/svg}", "rgb(83, 92, 104)"
TIP = "document.querySelector('.tip').hidden ? null : document.querySelector('.tip').textContent"


@contextlib.contextmanager
def opened(url: str, tmp_path, **window):
    """Open the page and wait for its script. At the end, assert that it fetched nothing and logged nothing."""
    with Browser(tmp_path / "profile", **window) as browser:
        browser.open(url)
        browser.until(READY)
        browser.run(CHECKS)
        yield browser
        asked = {address.partition("#")[0] for address in browser.requests() if not address.startswith("data:")}
        assert asked == {url.partition("#")[0]}
        assert browser.complaints() == []


def wrong(browser: Browser) -> dict[str, list[str]]:
    """Faults of accessibility, by kind."""
    return {what: found for what, found in browser.run("accessible()").items() if found}


def centre(browser: Browser, element: str) -> tuple[float, float]:
    """Scroll to an element and return the position of its centre in the window."""
    browser.run(f"({element}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
    # Two frames later the page is scrolled and has had the event.
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    box = browser.run(
        f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])(({element}).getBoundingClientRect())"
    )
    return tuple(box)


def click(browser: Browser, element: str) -> None:
    """Click an element with the mouse. A browser lets a page save ten files after each click of a reader."""
    x, y = centre(browser, element)
    for kind in ("mousePressed", "mouseReleased"):
        browser.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def choose(browser: Browser, select: str, label: str) -> None:
    """Choose an option by its label."""
    browser.run(
        f"(() => {{ const list = document.querySelector({json.dumps(select)});"
        f"list.value = [...list.options].find(one => one.text === {json.dumps(label)}).value;"
        "list.dispatchEvent(new Event('change')); })()"
    )


@needs_chromium
def test_a_fact_is_picked_by_address_by_search_and_in_the_list(report, study, tmp_path):
    with opened(f"{report.url}#fact=place-05", tmp_path) as browser:
        row = study.query("SELECT * FROM traces WHERE fact_id = 'place-05'").to_pylist()[0]
        shown = browser.run("document.getElementById('fact-numbers').textContent")
        assert f"clean {row['p_clean']:.4g}, noised {row['p_noised']:.4g}" in shown
        assert browser.run("document.getElementById('fact-name').textContent") == "Sagrada Família → Barcelona"

        # the cell under the pointer is read out with its standard error and effect
        cell = study.query(
            "SELECT * FROM trace_cells WHERE fact_id = 'place-05' AND token_index = 2 AND layer = 4"
        ).to_pylist()[0]
        browser.point(*centre(browser, "document.querySelectorAll('#grid tbody tr')[2].cells[5]"))
        assert browser.run(READOUT) == (
            f"token “Família” (subject), layer 4: p_restored {cell['p_restored']:.4g} ± {cell['p_restored_sem']:.4g}, "
            f"effect {cell['effect']:.4g}"
        )
        # the keyboard moves from there
        browser.run("document.querySelector('#grid td[tabindex=\"0\"]').focus()")
        browser.press("ArrowRight")
        assert "layer 5:" in browser.run(READOUT)

        # a search without accents finds words with accents; Enter picks the first match and changes the address
        browser.run("document.getElementById('search').focus()")
        browser.write("familia barc")
        assert browser.run("document.getElementById('matches').textContent") == "1 of 24 facts match"
        browser.run("document.getElementById('search').select()")
        browser.write("kremlin")
        browser.press("Enter")
        assert browser.run("location.hash") == "#fact=place-03"
        assert browser.run("document.getElementById('fact-name').textContent") == "Kremlin → Moscow"

        # the arrow key moves from the search to the list and along it
        browser.run("document.getElementById('search').select()")
        browser.write("paris")
        browser.press("ArrowDown")
        assert browser.run("document.activeElement.id") == "fact"
        first = browser.run("document.getElementById('fact-name').textContent")
        browser.press("ArrowDown")
        both = {first, browser.run("document.getElementById('fact-name').textContent")}
        assert both == {"Eiffel Tower → Paris", "Louvre → Paris"}

        # a search without a match is reported, and the shown fact stays
        browser.run("document.getElementById('search').focus(); document.getElementById('search').select()")
        browser.write("no such fact")
        assert browser.run("document.getElementById('matches').textContent") == "0 of 24 facts match"
        assert browser.run("document.getElementById('fact-name').textContent") in both


@needs_chromium
def test_edits_of_a_fact_are_filtered_sorted_and_beside_its_effects(twenty, tmp_path):
    with opened(f"{twenty.url}#fact=place-01", tmp_path) as browser:
        rows = (
            "[...document.querySelectorAll('#edits tbody tr')].map(row => [...row.cells].map(one => one.textContent))"
        )
        assert browser.run("document.getElementById('edits-shown').textContent") == "32 of 160 edits shown"
        choose(browser, "#edit-problem", "fact-forcing")
        choose(browser, "#edit-method", "memit")
        shown = browser.run(rows)
        edits = twenty.store.query(
            "SELECT edits.*, effect FROM edits JOIN trace_effects USING (fact_id, layer, window_size) "
            "WHERE fact_id = 'place-01' AND problem = 'fact-forcing' AND edits.method = 'memit' ORDER BY layer"
        ).to_pylist()
        keys = ("effect", "rewrite", "paraphrase", "neighborhood")
        later = ("overall", "p_before", "p_after", "p_true_before", "p_true_after")
        assert [row[:3] for row in shown] == [["fact-forcing", "memit", str(edit["layer"])] for edit in edits]
        for row, edit in zip(shown, edits, strict=True):
            assert row[3:7] == [f"{edit[key]:.3f}" for key in keys]
            assert row[7] == "–"
            assert row[8:13] == [f"{edit[key]:.3f}" for key in later]
            assert row[13] == ("yes" if edit["success"] else "no") + (f": {edit['reason']}" if edit["reason"] else "")

        # by layer: the effect above the score
        lines = browser.run(
            "[...document.querySelectorAll('#by-layer tr')].map(row => [...row.cells].map(one => one.textContent))"
        )
        assert lines[0] == ["layer", *map(str, EDITED)]
        assert lines[1] == ["tracing effect, window 5", *(f"{edit['effect']:.3f}" for edit in edits)]
        assert lines[2][1:] == [f"{edit['rewrite']:.3f}" for edit in edits]

        # sorted by a heading in both directions, by keyboard; the order stays when the filter changes
        browser.run("document.querySelectorAll('#edits thead button')[4].focus()")
        browser.press("Enter")
        browser.run("document.activeElement.click()")
        assert browser.run("document.querySelectorAll('#edits thead th')[4].getAttribute('aria-sort')") is not None
        values = [float(row[4]) for row in browser.run(rows)]
        assert values in (sorted(values), sorted(values, reverse=True))
        choose(browser, "#edit-method", "all")
        assert len(browser.run(rows)) == 32
        values = [float(row[4]) for row in browser.run(rows)]
        assert values in (sorted(values), sorted(values, reverse=True))

        # choices are kept from fact to fact; a window of another size has its own grid
        browser.turn_to("fact=place-02")
        assert browser.run("document.getElementById('edits-shown').textContent") == "32 of 160 edits shown"
        p = browser.run("document.querySelector('#grid tbody td:nth-of-type(5)').getAttribute('aria-label')")
        choose(browser, "#trace", "window 10")
        assert browser.run("document.querySelector('#grid tbody tr:nth-child(3) td:nth-of-type(5)').ariaLabel") != p
        assert "window 10" in browser.run("document.getElementById('fact-numbers').textContent")


@needs_chromium
def test_a_facts_own_commands_read_its_numbers(report, study, tmp_path, monkeypatch):
    monkeypatch.chdir(study.path.parent)
    with opened(f"{report.url}#fact={HOSTILE_ID}", tmp_path) as browser:
        lines = browser.run("document.getElementById('fact-code').textContent").splitlines()
    counts = []
    for line in lines:
        _, *words = shlex.split(line)
        result = CliRunner().invoke(cli, words, catch_exceptions=False)
        counts.append(len(json.loads(result.stdout)))
    tokens = len(study.query("SELECT tokens FROM traces WHERE fact_id = ?", [HOSTILE_ID])["tokens"].to_pylist()[0])
    assert counts == [len(EDITED), N_LAYERS, tokens * N_LAYERS]


@needs_chromium
def test_marks_are_read_by_pointer_touch_and_keyboard(twenty, tmp_path):
    with opened(twenty.url, tmp_path) as browser:
        for figure in ("r2", "pairs", "layers", "curve", "peaks", "mass"):
            first = browser.run(
                f"document.querySelector('#figure-{figure} .panel:not([hidden]) .mark title').textContent"
            )
            mark = f"document.querySelector('#figure-{figure} .panel:not([hidden]) .mark')"
            browser.point(*centre(browser, mark))
            assert browser.run(TIP) == first
            assert browser.run("inWindow('.tip')")
            assert re.search(r"\d", first)
        browser.press("Escape")
        assert browser.run(TIP) is None

        # the tab key stops once in each figure; from there the arrows move, and the tip follows
        stops = "[...document.querySelectorAll('#figure-layers [tabindex=\"0\"]')].length"
        assert browser.run(stops) == 1
        browser.run("document.getElementById('layers-problem').focus()")
        browser.press("Tab")
        assert browser.run("document.activeElement.classList.contains('mark')")
        assert browser.run(TIP).startswith("error-injection · ft-1, layer 0: mean rewrite score")
        browser.press("ArrowRight")
        assert browser.run(TIP).startswith("error-injection · ft-1, layer 4: mean rewrite score")
        browser.press("ArrowDown")
        assert browser.run(TIP).startswith("error-injection · ft-5, layer 4: mean rewrite score")
        browser.press("PageDown")
        assert browser.run(TIP).startswith("fact-amplification · ft-1, layer 0")
        browser.press("End")
        assert browser.run(TIP).startswith("tracing-reversal · rome, layer 29")
        assert browser.run(stops) == 1
    with opened(twenty.url, tmp_path / "phone", width=390) as browser:
        mark = "document.querySelectorAll('#figure-curve .mark')[3]"
        browser.touch(*centre(browser, mark))
        assert browser.run(TIP) == browser.run(f"{mark}.querySelector('title').textContent")


@needs_chromium
def test_panels_are_chosen_and_points_are_the_stores(twenty, tmp_path):
    with opened(twenty.url, tmp_path) as browser:
        shown = "[...document.querySelectorAll('#figure-pairs .panel:not([hidden])')]"
        assert browser.run(f"{shown}.length") == len(EDITED)
        choose(browser, "#pairs-problem", "fact-erasure")
        choose(browser, "#pairs-method", "ft-5")
        assert browser.run(f"{shown}.length") == len(EDITED)
        assert browser.run(
            f"{shown}.every(one => one.querySelector('svg').ariaLabel.startsWith('fact-erasure · ft-5'))"
        )
        pairs = [
            row
            for row in relation(twenty.store, "edit_effects", {"score": "rewrite"}).to_pylist()
            if (row["problem"], row["method"], row["layer"]) == ("fact-erasure", "ft-5", 8)
        ]
        titles = browser.run(f"[...{shown}[2].querySelectorAll('.mark title')].map(one => one.textContent)")
        subjects = {fact.fact_id: f"{fact.subject} → {fact.target_true}" for fact in study_facts()}
        for row in pairs:
            name, effect = subjects[row["fact_id"]], short(row["effect"])
            told = [title for title in titles if title.startswith(f"{name}: ")]
            assert len(told) == 1
            numbers = re.findall(r"(?:effect|score) ([\d.e−]+)", told[0])
            found = [float(number.replace("−", "-")) for number in numbers]
            assert found == pytest.approx([effect, row["score"]], rel=5e-4)
        assert len(titles) == len(pairs) == 12
        # only shown panels have marks; the others have dots until they are chosen
        hidden = "document.querySelectorAll('#figure-pairs .panel[hidden] .mark').length"
        assert browser.run(hidden) == 0


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
        assert texts[0] == "smollm2-135m · mlp · denoise · window 5"
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
            for _ in range(2):  # where the page still scrolls under the mouse, the first click misses the button
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


@needs_chromium
def test_a_choice_without_data_switches_to_what_was_run(wide_study, tmp_path):
    """MEMIT was run for error injection only, so choosing fact forcing also switches to ROME."""
    page = written(wide_study, tmp_path / "wide.html")
    with opened(page.url, tmp_path) as browser:
        chosen = "[...document.querySelectorAll('#figure-pairs select')].map(list => list.selectedOptions[0].text)"
        assert browser.run(chosen) == ["error-injection", "memit · smollm2-135m"]
        choose(browser, "#pairs-problem", "fact-forcing")
        assert browser.run(chosen) == ["fact-forcing", "rome · smollm2-135m"]
        shown = "document.querySelectorAll('#figure-pairs .panel:not([hidden]) .mark').length"
        assert browser.run(shown) == 12 * len(EDITED)
        # a series has one colour in every panel, and the legend names each once
        legend = browser.run("[...document.querySelectorAll('#figure-layers .legend li')].map(one => one.textContent)")
        assert sorted(legend) == ["memit · smollm2-135m", "rome · gpt2", "rome · smollm2-135m"]


@needs_chromium
def test_localization_methods_can_be_chosen(two_ways, tmp_path):
    with opened(two_ways.url, tmp_path) as browser:
        bars = (
            "[...document.querySelectorAll('#figure-r2 .panel:not([hidden]) .mark title')].map(one => one.textContent)"
        )
        assert browser.run("document.querySelector('#r2-localization').selectedOptions[0].text") == "denoise"
        assert all(" · denoise · " in title for title in browser.run(bars))
        choose(browser, "#r2-localization", "zero")
        assert len(browser.run(bars)) == 2 * 3
        assert all(" · zero · " in title for title in browser.run(bars))
        choose(browser, "#pairs-localization", "zero")
        shown = "[...document.querySelectorAll('#figure-pairs .panel:not([hidden]) svg')].map(one => one.ariaLabel)"
        assert len(browser.run(shown)) == len(EDITED)
        assert all(" · zero, layer" in label for label in browser.run(shown))


@needs_chromium
def test_without_script_everything_but_the_picker_can_be_read(twenty, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.send("Emulation.setScriptExecutionDisabled", value=True)
        browser.open(twenty.url)
        browser.run(CHECKS)
        marks = "[...document.querySelectorAll('.dots, .mark, .panel-title, table')]"
        assert browser.run(f"{marks}.filter(one => !one.closest('details, .picker') && !visible(one)).length") == 0
        assert browser.run("[...document.querySelectorAll('.controls, .tip')].filter(visible).length") == 0
        titles = browser.run("[...document.querySelectorAll('#figure-pairs .panel-title')].map(one => one.textContent)")
        assert len(set(titles)) == len(titles) == 20 * len(EDITED)
        assert titles[0].startswith("error-injection · ft-1, layer 0: ρ = ")
        assert "needs JavaScript" in browser.run("document.querySelector('#pick').parentNode.textContent")


AWKWARD = "a<b>&\"q\" 'r' $x$ {y}\nnext, line"


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    """Report of a store in which every name has harmful characters."""
    folder = tmp_path_factory.mktemp("awkward")
    store = Store(folder / 'it\'s "a" $study.duckdb')
    facts = [
        Fact(
            "The {} is\nin",
            f"{AWKWARD} {place}",
            AWKWARD,
            f"no {AWKWARD}",
            relation=AWKWARD,
            fact_id=f"{AWKWARD}-{place}",
        )
        for place in range(8)
    ]
    store.add_facts(facts)
    store.add(trace_result(facts, model=AWKWARD))
    for method in (AWKWARD, "rome"):
        store.add(edit_result(facts, problem=AWKWARD, method=method, model=AWKWARD))
    return written(store, folder / "report.html")


@needs_chromium
def test_a_hostile_fact_is_only_text(report, tmp_path):
    with opened(f"{report.url}#fact={HOSTILE_ID}", tmp_path) as browser:
        assert HOSTILE in browser.run("document.getElementById('fact-prompt').textContent")
        assert browser.run("typeof window.broken") == "undefined"
        assert browser.run("document.images.length") == 0
        browser.turn_to(f"fact={UNHURT}")
        assert "no effect defined" in browser.run(READOUT)
        browser.turn_to("fact=place-21")
        assert "36 greedy tokens" in browser.run("document.getElementById('fact-numbers').textContent")
        assert browser.run("document.getElementById('tracing-grid').hidden")


@needs_chromium
def test_awkward_names_are_text_everywhere(awkward, tmp_path, monkeypatch):
    monkeypatch.chdir(awkward.path.parent)
    with opened(awkward.url, tmp_path) as browser:
        assert browser.run("document.querySelectorAll('b').length") == 0
        assert AWKWARD.replace("\n", " ") in browser.run("document.title")
        assert AWKWARD in browser.run("document.getElementById('fact-prompt').textContent")
        choose(browser, "#pairs-method", AWKWARD.replace("\n", " "))
        shown = "document.querySelectorAll('#figure-pairs .panel:not([hidden])').length"
        assert browser.run(shown) == len(EDITED)
        assert AWKWARD in browser.run("document.querySelector('#figure-r2 .mark title').textContent")
        browser.turn_to("fact=" + quote(f"{AWKWARD}-3"))
        assert browser.run("document.getElementById('fact-name').textContent").startswith(f"{AWKWARD} 3 → ")
        lines = browser.run("document.getElementById('fact-code').textContent")
        _, *words = shlex.split(lines)[: shlex.split(lines).index("--json") + 1]
        assert len(json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).stdout)) == 2 * len(EDITED)
    pythons = [text for name, text in codes(awkward.text) if name == "Python"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(pythons[0], {})
    assert AWKWARD in next(iter(csv.DictReader(io.StringIO(out.getvalue()))))["problem"]


@needs_chromium
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_the_window_and_can_be_read(twenty, tmp_path, width, dark):
    with opened(twenty.url, tmp_path, width=width, dark=dark) as browser:
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
        page = [
            int(part) for part in re.findall(r"\d+", browser.run("getComputedStyle(document.body).backgroundColor"))
        ]
        assert (max(page) < 60) is dark
        assert browser.run("smallestText()") > 10
        assert browser.run("overlaps()") == []
        assert browser.run("cutOff()") == []
        found = browser.run("contrast()")
        assert found["poor"] == []
        assert found["looked"] > 500
        browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert wrong(browser) == {}
        assert browser.run("contrast().poor") == []
        assert browser.run("unseenFocus()") == []
        picture = browser.screenshot(tmp_path / "page.png")
        assert picture.stat().st_size > 20_000


@needs_chromium
@pytest.mark.parametrize("kind", ["trace", "edit", "mass", "awkward"])
def test_partial_studies_are_whole_pages(kind, awkward, tmp_path):
    facts = study_facts(count=3)
    if kind == "awkward":
        url = awkward.url
    else:
        store = Store(tmp_path / "part.duckdb")
        store.add_facts(facts)
        store.add(
            {"trace": trace_result, "edit": edit_result, "mass": lambda facts: mass_result(facts, (3,))}[kind](facts)
        )
        url = written(store, tmp_path / "part.html").url
    with opened(url, tmp_path, width=390) as browser:
        browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert wrong(browser) == {}
        assert browser.run("Boolean(document.getElementById('edits-part')?.hidden)") is (kind == "trace")
