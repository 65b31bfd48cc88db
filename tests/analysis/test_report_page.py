"""The report in a real browser: picking, reading and filtering, on a phone, in dark mode, without script."""

import contextlib
import csv
import io
import json
import re
import shlex
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from headless import Browser
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
from report_page import CHECKS, READOUT, TIP, centre, choose, needs_chromium, opened, wrong
from reports import codes, written

from fasttrace.analysis.embed import short
from fasttrace.analysis.relation import relation
from fasttrace.cli import cli
from fasttrace.facts.record import Fact
from fasttrace.store import Store


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
def test_a_choice_without_data_switches_to_what_was_run(wide_study, tmp_path):
    """MEMIT was run for error injection only, so choosing fact forcing also switches to ROME."""
    page = written(wide_study, tmp_path / "wide.html")
    with opened(page.url, tmp_path) as browser:
        chosen = "[...document.querySelectorAll('#figure-pairs select')].map(list => list.selectedOptions[0].text)"
        assert browser.run(chosen) == ["error-injection", "memit · SmolLM2-135M-Instruct (Q4_1)"]
        choose(browser, "#pairs-problem", "fact-forcing")
        assert browser.run(chosen) == ["fact-forcing", "rome · SmolLM2-135M-Instruct (Q4_1)"]
        shown = "document.querySelectorAll('#figure-pairs .panel:not([hidden]) .mark').length"
        assert browser.run(shown) == 12 * len(EDITED)
        # a series has one colour in every panel, and the legend names each once
        legend = browser.run("[...document.querySelectorAll('#figure-layers .legend li')].map(one => one.textContent)")
        assert sorted(legend) == [
            "memit · SmolLM2-135M-Instruct (Q4_1)",
            "rome · SmolLM2-135M-Instruct (Q4_1)",
            "rome · gpt2",
        ]


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
