"""The report: one file, safe whatever the facts say, and alive in a real browser."""

import base64
import contextlib
import csv
import gzip
import html
import io
import itertools
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from fasttrace.analysis.commands import SETTINGS, commands
from fasttrace.analysis.embed import packed, short
from fasttrace.analysis.exhibits import exhibits
from fasttrace.analysis.regression import regressions
from fasttrace.analysis.relation import query, relation
from fasttrace.analysis.report import write_report
from fasttrace.analysis.sentences import answer
from fasttrace.analysis.tables import fits_with_certainty
from headless import Browser, chromium
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

from fasttrace.cli import cli
from fasttrace.editing.hyperparameters import setting_names
from fasttrace.errors import StoreError
from fasttrace.facts import load_facts
from fasttrace.facts.record import Fact
from fasttrace.store import Store

needs_chromium = pytest.mark.skipif(chromium() is None, reason="no chromium on this machine to open the report in")


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.words.append(data)


PROBLEMS = ("error-injection", "tracing-reversal", "fact-erasure", "fact-amplification", "fact-forcing")
METHODS = ("rome", "memit", "ft-1", "ft-5")


def written(store: Store, path) -> SimpleNamespace:
    path = write_report(store, path)
    text = path.read_text(encoding="utf-8")
    return SimpleNamespace(path=path, text=text, page=Page(text), url=path.as_uri(), store=store)


@pytest.fixture(scope="module")
def report(study, tmp_path_factory):
    return written(study, tmp_path_factory.mktemp("report") / "sub" / "report.html")


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    """The paper's twenty cells, four windows and a mass edit."""
    folder = tmp_path_factory.mktemp("twenty")
    store = Store(folder / "study.duckdb")
    facts = study_facts(count=12)
    store.add_facts(facts)
    store.add(trace_result(facts, windows=(1, 3, 5, 10)))
    for problem, method in itertools.product(PROBLEMS, METHODS):
        store.add(edit_result(facts, problem=problem, method=method))
    store.add(mass_result(facts))
    return written(store, folder / "report.html")


def embedded(text: str) -> dict:
    data = re.search(r'<script type="application/gzip" id="data">(.*?)</script>', text, re.DOTALL).group(1)
    return json.loads(gzip.decompress(base64.b64decode(data)))


def test_the_file_names_no_address_and_loads_nothing(report):
    text = re.sub(r'(?<=id="data">)[A-Za-z0-9+/=]+', "", report.text)  # packed data, in which // is a chance
    assert not re.search(r"(https?:)?//[a-z0-9]", text, re.IGNORECASE)
    for tag, attributes in report.page.tags:
        assert tag not in ("link", "iframe", "object", "embed") or attributes.get("rel") == "icon"
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in report.text
    assert "default-src 'none'" in report.text


def test_it_says_what_was_run_and_what_was_left_out(report, study):
    words = " ".join(report.page.words)
    run = study.query("SELECT * FROM runs WHERE kind = 'trace'").to_pylist()[0]
    for value in (
        run["run_id"],
        run["model"],
        run["model_hash"],
        run["dtype"],
        run["protocol"],
        run["torch_version"],
    ):
        assert value in words
    assert "24, kept 23" in words
    assert "o_true is not among the first 36 greedy tokens" in words
    assert "the noise did not lower p(o_true)" in words
    assert "fasttrace trace --model smollm2-135m --dtype float32 --protocol paper --seed 0 --windows 5" in words
    assert "--layers 0,4,8,12,16,20,24,29" in words


def test_the_commands_take_the_facts_of_each_run_out_of_the_store(study, tmp_path):
    runs = study.query("SELECT * FROM runs").to_pylist()
    counts = {run["run_id"]: {"layers": [0, 4] if run["kind"] == "edit" else None} for run in runs}
    lines = commands(runs, counts, str(study.path.resolve()))
    place = lines.index(next(line for line in lines if line.startswith("fasttrace edit")))
    assert lines[place].endswith("--layers 0,4 --set steps=20 --facts facts-edit-err.jsonl --store again.duckdb")
    program, *arguments = shlex.split(lines[place - 1])
    assert (program, arguments[0], arguments[2:]) == ("python", "-c", [">", "facts-edit-err.jsonl"])
    told = subprocess.run([sys.executable, *arguments[:2]], capture_output=True, text=True, check=True)
    (tmp_path / "facts.jsonl").write_text(told.stdout)
    edited = [fact for fact in study_facts() if fact.fact_id != "place-21"]
    assert sorted(load_facts(tmp_path / "facts.jsonl"), key=lambda fact: fact.fact_id) == edited


def test_the_answer_is_computed_from_the_regression(report, study):
    row = regressions(study).to_pylist()[0]
    words = " ".join(report.page.words).replace("\u00a0", " ")
    assert f"Choosing the layer explains {100 * row['r2_layer']:.1f} % of the variance of the rewrite score" in words
    assert f"p = {row['p_value']:.3f}" in words
    assert f"F({row['df_num']:.0f}, {row['df_den']:.0f}) = {row['f_value']:.2f}" in words
    best = study.query("SELECT layer FROM edits GROUP BY layer ORDER BY avg(rewrite) DESC LIMIT 1").to_pylist()[0]
    assert f"rewriting works best at layer {best['layer']} " in words


def test_the_answer_says_whether_the_gain_is_more_than_chance():
    row = {
        "r2_layer": 0.585,
        "r2_effect": 0.01,
        "r2_both": 0.601,
        "diff": 0.016,
        "f_value": 4.0,
        "df_num": 8,
        "df_den": 160,
    }
    row |= {"problem": "error-injection", "method": "rome", "score": "rewrite"}
    said = answer([row | {"p_value": 0.0004}], [], [])[0].replace("\u00a0", " ")
    assert "explains 58.5 % of the variance" in said
    assert "raises that by 1.6 points, to 60.1 % (F-test: F(8, 160) = 4.00, p < 0.001)" in said
    assert said.endswith("that gain is more than chance.")
    assert answer([row | {"p_value": 0.4}], [], [])[0].endswith("cannot be told from chance.")
    assert "alone explains less than 0.1" in answer([row | {"p_value": 0.4, "r2_effect": 0.0002}], [], [])[0]
    many = answer([row | {"p_value": 0.4}, row | {"p_value": 0.01, "method": "memit", "diff": 0.03}], [], [])
    assert "at most 3.0 points (error-injection · memit;" in many[0]
    assert many[1].startswith("In 1 of the 2")
    clustered = [row | {"p_value": 0.01, "p_clustered": 0.2}, row | {"p_value": 0.4, "p_clustered": 0.01}]
    assert "with errors clustered by fact p = 0.200" in answer(clustered[:1], [], [])[0].replace("\u00a0", " ")
    assert answer(clustered[:1], [], [])[0].endswith("cannot be told from chance.")
    said = answer([clustered[0], clustered[1] | {"method": "memit"}], [], [])[1]
    assert said.startswith("In 1 of the 2")
    assert "level, with errors clustered by fact;" in said
    assert "does not say whether" in answer([row | {"r2_both": None}], [], [])[0]


def test_ways_of_tracing_are_answered_for_one_by_one():
    """Denoising, which is causal tracing proper, comes first; nothing is averaged over ways."""
    row = {"r2_layer": 0.5, "r2_effect": 0.01, "f_value": 4.0, "df_num": 8, "df_den": 160, "p_value": 0.01}
    row |= {"problem": "error-injection", "score": "rewrite", "model": "toy", "window_size": 5}
    rows = [
        row | {"localization": way, "method": method, "r2_both": 0.5 + diff, "diff": diff}
        for way, method, diff in (("attribution", "rome", 0.2), ("denoise", "rome", 0.01), ("denoise", "memit", 0.02))
    ]
    said = answer(rows, [], [])
    assert said[0].startswith("For denoise: over 2 regressions")
    assert "at most 2.0 points (error-injection · memit;" in said[0]
    assert said[1].startswith("In 2 of the 2")
    assert said[2].startswith("For attribution: Choosing the layer explains")


@pytest.fixture(scope="module")
def two_ways(tmp_path_factory):
    """A study traced by denoising and by zeroing."""
    folder = tmp_path_factory.mktemp("ways")
    store = Store(folder / "study.duckdb")
    facts = study_facts(count=6)
    store.add_facts(facts)
    store.add(trace_result(facts))
    zero = trace_result(facts, run_id="trace-zero")
    zero.run["settings"] = json.dumps(json.loads(zero.run["settings"]) | {"method": "zero"})
    store.add(zero)
    store.add(edit_result(facts))
    store.add(edit_result(facts, method="memit"))
    return written(store, folder / "report.html")


def test_headings_are_in_order_and_everything_has_a_name(report):
    levels = [int(tag[1]) for tag, _ in report.page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert ("html", {"lang": "en"}) in report.page.tags
    labels = {attributes.get("for") for tag, attributes in report.page.tags if tag == "label"}
    assert {attributes["id"] for tag, attributes in report.page.tags if tag in ("select", "input")} <= labels
    charts = [attributes for tag, attributes in report.page.tags if tag == "svg" and "aria-hidden" not in attributes]
    assert len(charts) == 1 + len(EDITED) + 4 + 1 + 1
    assert all(chart["role"] == "group" and chart["aria-label"] for chart in charts)
    ids = [attributes["id"] for _, attributes in report.page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'<a href="#([^"]+)"', report.text))
    for name in ("aria-labelledby", "for"):
        used |= {attributes[name] for _, attributes in report.page.tags if attributes.get(name)}
    assert used <= set(ids)


def test_a_fact_cannot_break_out_of_the_page(report):
    assert HOSTILE not in report.text
    assert report.text.count("</script>") == 2
    assert "Mall &lt;/script&gt;" not in report.text  # facts are in the packed data only
    assert not any(attributes.get("onerror") for _, attributes in report.page.tags)
    facts = {fact["id"]: fact for fact in embedded(report.text)["facts"]}
    assert HOSTILE in facts[HOSTILE_ID]["subject"]


def test_packed_data_cannot_end_a_script_and_is_the_same_every_time():
    value = {"a": "</script><!--\u2028&"}
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed(value))
    assert json.loads(gzip.decompress(base64.b64decode(packed(value)))) == value
    assert packed(value) == packed(value)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.83446, 0.83449999, 0.0004996, 1e-9, -0.12349999, 0.9995, 123456.789])
def test_a_shortened_number_keeps_its_three_decimals_and_four_digits(value):
    assert f"{short(value):.3f}" == f"{value:.3f}"
    assert short(value) == pytest.approx(value, rel=5e-4)


def test_what_is_no_number_is_null():
    assert short(float("nan")) is None
    assert short(float("inf")) is None


def test_embedded_numbers_are_the_stores(report, study):
    facts = {fact["id"]: fact for fact in embedded(report.text)["facts"]}
    assert len(facts) == 24
    rows = study.query("SELECT * FROM trace_cells WHERE fact_id = 'place-05'").to_pylist()
    trace = facts["place-05"]["traces"][0]
    for row in rows:
        for name, column in (("p", "p_restored"), ("sem", "p_restored_sem"), ("effect", "effect")):
            assert trace[name][row["token_index"]][row["layer"]] == short(row[column])
    assert all(value is None for line in facts[UNHURT]["traces"][0]["effect"] for value in line)
    effects = study.query("SELECT effect FROM trace_effects WHERE fact_id = 'place-05' ORDER BY layer")[
        "effect"
    ].to_pylist()
    assert trace["by_layer"] == [short(effect) for effect in effects]
    edits = study.query("SELECT * FROM edits WHERE fact_id = 'place-05' ORDER BY layer").to_pylist()
    for key in ("layer", "rewrite", "neighborhood", "p_after", "p_true_before", "success"):
        assert facts["place-05"]["edits"][key] == [short(edit[key]) for edit in edits]


def test_more_facts_than_asked_for_are_said_to_be_missing(study, tmp_path):
    text = write_report(study, tmp_path / "few.html", max_facts=3).read_text()
    assert len(embedded(text)["facts"]) == 3
    assert "The first 3 of 24 facts" in text
    small = write_report(study, tmp_path / "small.html", max_bytes=60_000).read_text()
    count = len(embedded(small)["facts"])
    assert 1 <= count < 24
    assert f"The first {count} of 24 facts" in small


def test_traces_alone_and_edits_alone_make_a_report(tmp_path):
    facts = study_facts(count=3)
    for name, result in (("trace", trace_result(facts)), ("edit", edit_result(facts))):
        store = Store(tmp_path / f"{name}.duckdb")
        store.add_facts(facts)
        store.add(result)
        text = write_report(store, tmp_path / f"{name}.html").read_text()
        assert "does not say whether" in text
        assert ("Tracing finds most at layer" in text) is (name == "trace")
        assert ("rewriting works best at layer" in text) is (name == "edit")
        assert ('id="layers"' in text, 'id="tracing"' in text, 'id="r2"' in text) == (
            name == "edit",
            name == "trace",
            False,
        )


def test_a_mass_edit_alone_makes_a_report(tmp_path):
    facts = study_facts(count=12)
    store = Store(tmp_path / "mass.duckdb")
    store.add_facts(facts)
    store.add(mass_result(facts))
    text = write_report(store, tmp_path / "mass.html").read_text()
    [last] = store.query("SELECT avg(rewrite) AS mean FROM mass_edits WHERE landed = 12").to_pylist()
    assert f"after 12 facts (error-injection · memit, layer 6) it is {last['mean']:.3f}" in text
    assert 'id="pick"' not in text
    assert "fasttrace mass --model smollm2-135m" in text
    assert "--layer 6 --at-once 4 --score-every 1 --set steps=25" in text
    ids = relation(store, "facts_of_run", {"run_id": "mass-1"})["fact_id"].to_pylist()
    assert ids == [fact.fact_id for fact in facts]


def test_every_setting_of_a_method_can_be_given_again():
    assert set(SETTINGS) == set(setting_names())


def test_the_commands_are_ones_that_the_command_line_takes(twenty):
    runs = twenty.store.query("SELECT * FROM runs").to_pylist()
    counts = {row["run_id"]: row for row in relation(twenty.store, "run_counts").to_pylist()}
    lines = [line for line in commands(runs, counts, "study.duckdb") if line.startswith("fasttrace")]
    assert len(lines) == 1 + 20 + 1 + 1
    for line in lines:
        _, verb, *words = shlex.split(line)
        cli.commands[verb].make_context(verb, words)  # raises where an option or a value is not known


def codes(page: str) -> list[tuple[str, str]]:
    """(name, text) of every block of code."""
    found = re.finditer(r'<pre tabindex="0" aria-label="([^"]+)"><code>(.*?)</code></pre>', page, re.DOTALL)
    return [(match.group(1), html.unescape(match.group(2))) for match in found]


def same(one: str, other: str) -> bool:
    """Whether two CSVs hold the same, but for the last digits (DuckDB's threads add in no fixed order)."""
    rows = [list(csv.reader(io.StringIO(text))) for text in (one, other)]
    for a, b in zip(*rows, strict=True):
        for x, y in zip(a, b, strict=True):
            if x != y and float(x) != pytest.approx(float(y), rel=1e-9, abs=1e-12):
                return False
    return True


def test_the_code_beside_every_exhibit_prints_its_numbers(twenty):
    shown = exhibits(twenty.store)
    assert [exhibit.key for exhibit in shown] == ["r2", "pairs", "layers", "curve", "peaks", "mass"]
    pythons = [text for name, text in codes(twenty.text) if name == "Python"]
    queries = [text for name, text in codes(twenty.text) if name == "SQL"]
    kept = embedded(twenty.text)["csv"]
    for exhibit, python, text in zip(shown, pythons, queries, strict=True):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(python, {})
        assert same(out.getvalue(), kept[exhibit.key])
        rows = query(twenty.store, text)
        assert rows.num_rows > 0
        assert set(rows.column_names) <= set(kept[exhibit.key].splitlines()[0].split(","))


def test_the_papers_counterparts_can_be_made_by_the_commands_given(twenty, tmp_path):
    lines = [
        line for name, text in codes(twenty.text) if name == "Commands for the paper’s" for line in text.splitlines()
    ]
    told = [" ".join(shlex.split(line)[1 : shlex.split(line).index("--store")]) for line in lines]
    assert told == ["tables 1 3", "figures 6", "figures 4 15", "figures 7", "figures 10", "figures 1 11"]
    for line in lines:
        _, *words = shlex.split(line)
        extra = ["--out", str(tmp_path)] if words[0] == "figures" else ["--resamples", "0"]
        assert CliRunner().invoke(cli, [*words, *extra], catch_exceptions=False).exit_code == 0
    assert len(list(tmp_path.glob("figure-*.svg"))) == 7


def test_every_mark_says_its_numbers(twenty):
    titles = [html.unescape(text) for text in re.findall(r"<title>(.*?)</title>", twenty.text)[1:]]
    assert twenty.text.count('class="mark"') == len(titles)
    row = fits_with_certainty(twenty.store).to_pylist()[0]
    spread = f"{row['r2_layer']:.3f} [{row['r2_layer_low']:.3f}, {row['r2_layer_high']:.3f}]"
    assert f"{row['problem']} · {row['method']}, edited layer: R² = {spread}, n = {row['n']}" in titles
    mean = twenty.store.query(
        "SELECT avg(neighborhood) AS mean, stddev_samp(neighborhood) / sqrt(count(*)) AS sem, count(*) AS n FROM edits "
        "WHERE problem = 'fact-forcing' AND method = 'ft-5' AND layer = 8"
    ).to_pylist()[0]
    assert (
        f"fact-forcing · ft-5, layer 8: mean neighborhood score {mean['mean']:.3f} ± {mean['sem']:.3f}, n = {mean['n']}"
        in titles
    )
    peaks = twenty.store.query(
        "SELECT count(*) AS n FROM (SELECT arg_max(layer, effect) AS layer FROM trace_effects WHERE window_size = 5 "
        "GROUP BY fact_id) WHERE layer = 4"
    ).to_pylist()[0]["n"]
    assert f"window 5, layer 4: {peaks} of 12 facts" in titles


def test_marks_stand_where_their_values_are(twenty):
    """A bar's length is its share of the axis from 0 to 1."""
    row = regressions(twenty.store).to_pylist()[0]
    chart = twenty.text[twenty.text.index('<svg class="chart bars"') :]
    axis = dict(re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">([01])<', chart)[:2])
    zero, one = sorted(map(float, axis))
    title = re.escape(f"{row['problem']} · {row['method']}, edited layer: R² = {row['r2_layer']:.3f}") + "[^<]*"
    [(x, width)] = re.findall(
        rf'{title}</title><rect class="bar" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', twenty.text
    )
    assert float(x) == zero
    assert float(width) / (one - zero) == pytest.approx(row["r2_layer"], abs=2e-3)


def test_a_report_of_twenty_cells_is_small(twenty):
    assert len(twenty.text) < 3_000_000


def test_an_empty_store_is_refused(tmp_path):
    store = Store(tmp_path / "empty.duckdb")
    store.create()
    with pytest.raises(StoreError, match="holds no trace and no edit"):
        write_report(store, tmp_path / "report.html")


# -- in a browser -----------------------------------------------------------------------------------------

READY = "document.documentElement.classList.contains('ready')"
CHECKS = (Path(__file__).parent / "page_checks.js").read_text(encoding="utf-8")
READOUT = "document.getElementById('readout').textContent"
TIP = "document.querySelector('.tip').hidden ? null : document.querySelector('.tip').textContent"


@contextlib.contextmanager
def opened(url: str, tmp_path, **window):
    """The page in a browser, its script done; afterwards nothing was fetched and nothing complained of."""
    with Browser(tmp_path / "profile", **window) as browser:
        browser.open(url)
        browser.until(READY)
        browser.run(CHECKS)
        yield browser
        assert {address.partition("#")[0] for address in browser.requests()} == {url.partition("#")[0]}
        assert browser.complaints() == []


def wrong(browser: Browser) -> dict[str, list[str]]:
    """What is not accessible, by kind."""
    return {what: found for what, found in browser.run("accessible()").items() if found}


def centre(browser: Browser, element: str) -> tuple[float, float]:
    """The middle of an element in the window, which is scrolled there."""
    browser.run(f"({element}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
    # Two frames later it is scrolled, and the page was told.
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    box = browser.run(
        f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])(({element}).getBoundingClientRect())"
    )
    return tuple(box)


def choose(browser: Browser, select: str, label: str) -> None:
    """Choose an option by its label, as a reader does."""
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

        # a search finds accents without accents; Enter takes the first found, and the address says so
        browser.run("document.getElementById('search').focus()")
        browser.write("familia barc")
        assert browser.run("document.getElementById('matches').textContent") == "1 of 24 facts match"
        browser.run("document.getElementById('search').select()")
        browser.write("kremlin")
        browser.press("Enter")
        assert browser.run("location.hash") == "#fact=place-03"
        assert browser.run("document.getElementById('fact-name').textContent") == "Kremlin → Moscow"

        # the arrow key goes from the search to the list, and along it
        browser.run("document.getElementById('search').select()")
        browser.write("paris")
        browser.press("ArrowDown")
        assert browser.run("document.activeElement.id") == "fact"
        first = browser.run("document.getElementById('fact-name').textContent")
        browser.press("ArrowDown")
        both = {first, browser.run("document.getElementById('fact-name').textContent")}
        assert both == {"Eiffel Tower → Paris", "Louvre → Paris"}

        # nothing found is said, and what is shown stays
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
            assert row[13] == ("yes" if edit["success"] else "no")

        # by layer: the effect above the score
        lines = browser.run(
            "[...document.querySelectorAll('#by-layer tr')].map(row => [...row.cells].map(one => one.textContent))"
        )
        assert lines[0] == ["layer", *map(str, EDITED)]
        assert lines[1] == ["tracing effect, window 5", *(f"{edit['effect']:.3f}" for edit in edits)]
        assert lines[2][1:] == [f"{edit['rewrite']:.3f}" for edit in edits]

        # sorted by a heading, there and back, by keyboard; the order stays when the filter changes
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

        # what was chosen is kept from fact to fact; a window of another size has its own grid
        browser.turn_to("fact=place-02")
        assert browser.run("document.getElementById('edits-shown').textContent") == "32 of 160 edits shown"
        p = browser.run("document.querySelector('#grid tbody td:nth-of-type(5)').getAttribute('aria-label')")
        choose(browser, "#trace", "window 10")
        assert browser.run("document.querySelector('#grid tbody tr:nth-child(3) td:nth-of-type(5)').ariaLabel") != p
        assert "window 10" in browser.run("document.getElementById('fact-numbers').textContent")


@needs_chromium
def test_a_facts_own_commands_read_its_numbers(report, study, tmp_path):
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

        # one stop a figure for the tab key; from there the arrows move, and the numbers follow
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
        # only what is shown has marks: the others are dots until they are chosen
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
        # code is copied: into the clipboard, or where the browser keeps it from files, as the selection
        browser.run("document.querySelector('#run-mass-1').open = true")
        block = "document.querySelector('#run-mass-1 .code')"
        browser.run(f"{block}.querySelector('button').click()")
        browser.until(f"{block}.querySelector('button').textContent === 'Copied'")
        browser.run("document.querySelector('#run-mass-1').open = false")
        # a link to a folded run opens it
        browser.turn_to("run-mass-1")
        assert browser.run("document.getElementById('run-mass-1').open")


@needs_chromium
def test_a_choice_that_leaves_nothing_takes_what_was_run(wide_study, tmp_path):
    """MEMIT was run for error injection only: choosing fact forcing goes on to ROME."""
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
def test_ways_of_tracing_are_chosen_between(two_ways, tmp_path):
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
    """Names of every kind of harm, in every place a name can be."""
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
def test_awkward_names_are_text_everywhere(awkward, tmp_path):
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
@pytest.mark.parametrize("width", [1100, 390])
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
