"""The report: one file, safe whatever the facts say, and alive in a real browser."""

import itertools
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from fasttrace.analysis.embed import script_json
from fasttrace.analysis.regression import regressions
from fasttrace.analysis.report import commands, write_report
from fasttrace.analysis.sentences import answer
from headless import Browser, chromium
from plausible import HOSTILE, HOSTILE_ID, UNHURT, edit_result, study_facts, trace_result

from fasttrace.errors import StoreError
from fasttrace.facts import load_facts
from fasttrace.store import Store

needs_chromium = pytest.mark.skipif(
    chromium() is None, reason="no chromium on this machine to open the report in"
)


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


@pytest.fixture(scope="module")
def report(study, tmp_path_factory):
    path = write_report(study, tmp_path_factory.mktemp("report") / "sub" / "report.html")
    text = path.read_text(encoding="utf-8")
    return SimpleNamespace(path=path, text=text, page=Page(text), url=path.as_uri())


def embedded(text: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1)
    )


def test_the_file_names_no_address_and_loads_nothing(report):
    assert not re.search(r"(https?:)?//[a-z0-9]", report.text, re.IGNORECASE)
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
    assert (
        "fasttrace trace --model smollm2-135m --dtype float32 --protocol paper --seed 0 --windows 5" in words
    )
    assert "--layers 0,4,8,12,16,20,24,29" in words


def test_the_commands_take_the_facts_of_each_run_out_of_the_store(study, tmp_path):
    runs = study.query("SELECT * FROM runs").to_pylist()
    counts = {run["run_id"]: {"layers": [0, 4] if run["kind"] == "edit" else None} for run in runs}
    lines = commands(runs, counts, str(study.path.resolve()))
    place = lines.index(next(line for line in lines if line.startswith("fasttrace edit")))
    assert lines[place].endswith("--layers 0,4 --facts facts-edit-err.jsonl --store again.duckdb")
    program, *arguments = shlex.split(lines[place - 1])
    assert (program, arguments[0], arguments[2:]) == ("python", "-c", [">", "facts-edit-err.jsonl"])
    told = subprocess.run([sys.executable, *arguments[:2]], capture_output=True, text=True, check=True)
    (tmp_path / "facts.jsonl").write_text(told.stdout)
    edited = [fact for fact in study_facts() if fact.fact_id != "place-21"]
    assert sorted(load_facts(tmp_path / "facts.jsonl"), key=lambda fact: fact.fact_id) == edited


def test_the_answer_is_computed_from_the_regression(report, study):
    row = regressions(study).to_pylist()[0]
    words = " ".join(report.page.words).replace("\u00a0", " ")
    assert (
        f"Choosing the layer explains {100 * row['r2_layer']:.1f} % of the variance of the rewrite score"
        in words
    )
    assert f"p = {row['p_value']:.3f}" in words
    assert f"F({row['df_num']:.0f}, {row['df_den']:.0f}) = {row['f_value']:.2f}" in words
    best = study.query(
        "SELECT layer FROM edits GROUP BY layer ORDER BY avg(rewrite) DESC LIMIT 1"
    ).to_pylist()[0]
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
    assert "does not say whether" in answer([row | {"r2_both": None}], [], [])[0]


def test_headings_are_in_order_and_everything_has_a_name(report):
    levels = [int(tag[1]) for tag, _ in report.page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert ("html", {"lang": "en"}) in report.page.tags
    labels = {attributes.get("for") for tag, attributes in report.page.tags if tag == "label"}
    assert {attributes["id"] for tag, attributes in report.page.tags if tag == "select"} <= labels
    pictures = [attributes for tag, attributes in report.page.tags if tag == "svg"]
    assert len(pictures) == 5
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in pictures)
    ids = [attributes["id"] for _, attributes in report.page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    used = re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"|<a href="#([^"]+)"', report.text)
    assert {name for found in used for name in found if name} <= set(ids)


def test_a_fact_cannot_break_out_of_the_page(report):
    assert HOSTILE not in report.text
    assert report.text.count("</script>") == 2
    assert not any(attributes.get("onerror") for _, attributes in report.page.tags)
    facts = {fact["id"]: fact for fact in embedded(report.text)["facts"]}
    assert HOSTILE in facts[HOSTILE_ID]["subject"]


def test_json_in_a_script_cannot_end_it():
    text = str(script_json({"a": "</script><!--\u2028&"}))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028&"}


def test_embedded_numbers_are_the_stores(report, study):
    facts = {fact["id"]: fact for fact in embedded(report.text)["facts"]}
    assert len(facts) == 24
    rows = study.query("SELECT * FROM trace_cells WHERE fact_id = 'place-05'").to_pylist()
    trace = facts["place-05"]["traces"][0]
    for row in rows:
        for name, column in (("p", "p_restored"), ("sem", "p_restored_sem"), ("effect", "effect")):
            assert trace[name][row["token_index"]][row["layer"]] == pytest.approx(row[column], rel=6e-6)
    assert all(value is None for line in facts[UNHURT]["traces"][0]["effect"] for value in line)
    assert len(facts["place-05"]["edits"]) == 8


def test_more_facts_than_asked_for_are_said_to_be_missing(study, tmp_path):
    text = write_report(study, tmp_path / "few.html", max_facts=3).read_text()
    assert len(embedded(text)["facts"]) == 3
    assert "The first 3 of 24 facts" in text


def test_traces_alone_and_edits_alone_make_a_report(tmp_path):
    facts = study_facts(count=3)
    for name, result in (("trace", trace_result(facts)), ("edit", edit_result(facts))):
        store = Store(tmp_path / f"{name}.duckdb")
        store.add_facts(facts)
        store.add(result)
        assert "does not say whether" in write_report(store, tmp_path / f"{name}.html").read_text()


def test_an_empty_store_is_refused(tmp_path):
    store = Store(tmp_path / "empty.duckdb")
    store.create()
    with pytest.raises(StoreError, match="holds no trace and no edit"):
        write_report(store, tmp_path / "report.html")


READOUT = "document.getElementById('readout').textContent"


@needs_chromium
def test_in_a_browser_nothing_is_fetched_and_a_fact_is_picked_by_address_and_by_hand(report, study, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"{report.url}#fact=place-05")
        row = study.query("SELECT * FROM traces WHERE fact_id = 'place-05'").to_pylist()[0]
        shown = browser.run("document.getElementById('fact-numbers').textContent")
        assert f"clean {row['p_clean']:.3f}, noised {row['p_noised']:.3f}" in shown
        assert browser.run("document.getElementById('fact-name').textContent").startswith("Sagrada Família")

        # the cell under the pointer is read out with its effect and standard error
        cell = study.query(
            "SELECT * FROM trace_cells WHERE fact_id = 'place-05' AND token_index = 2 AND layer = 4"
        ).to_pylist()[0]
        browser.run(
            "document.querySelectorAll('#grid tbody tr')[2].cells[5]"
            ".dispatchEvent(new MouseEvent('mouseenter'))"
        )
        error = cell["p_restored_sem"] / (row["p_clean"] - row["p_noised"])
        assert browser.run(READOUT) == (
            f"token “Família” (subject), layer 4: "
            f"p_restored {cell['p_restored']:.3f} ± {cell['p_restored_sem']:.3f}, "
            f"effect {cell['effect']:.3f} ± {error:.3f}"
        )
        # the keyboard moves from there
        browser.run("document.querySelector('#grid td[tabindex=\"0\"]').focus()")
        browser.press("ArrowRight")
        assert "layer 5:" in browser.run(READOUT)

        assert browser.run("document.querySelectorAll('#edits tbody tr').length") == 8
        first = study.query(
            "SELECT rewrite FROM edits WHERE fact_id = 'place-05' ORDER BY layer"
        ).to_pylist()[0]
        assert (
            browser.run("document.querySelector('#edits tbody tr').cells[4].textContent")
            == f"{first['rewrite']:.3f}"
        )

        # picking another in the list shows it and puts it in the address
        option = "[...document.querySelectorAll('#fact option')].find(o => o.text.startsWith('Kremlin'))"
        browser.run(
            f"(() => {{ const list = document.getElementById('fact'); list.value = {option}.value; "
            "list.dispatchEvent(new Event('change')); })()"
        )
        assert browser.run("location.hash") == "#fact=place-03"
        assert browser.run("document.getElementById('fact-name').textContent").startswith("Kremlin")

        assert set(browser.requests()) == {report.url}
        assert browser.complaints() == []


@needs_chromium
def test_in_a_browser_a_hostile_fact_is_only_text(report, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"{report.url}#fact={HOSTILE_ID}")
        assert HOSTILE in browser.run("document.getElementById('fact-prompt').textContent")
        assert browser.run("typeof window.broken") == "undefined"
        assert browser.run("document.images.length") == 0
        browser.turn_to(f"fact={UNHURT}")
        assert "no effect defined" in browser.run(READOUT)
        browser.turn_to("fact=place-21")
        assert "36 greedy tokens" in browser.run("document.getElementById('fact-numbers').textContent")
        assert browser.run("document.getElementById('tracing-grid').hidden")
        assert browser.complaints() == []


CONTRAST = """
(() => {
  const light = (color) => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * parts[0] + .7152 * parts[1] + .0722 * parts[2];
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/^rgba.*, 0\\)$|transparent/.test(color)) return color;
    }
  };
  let worst = 99;
  const texts = "h1, h2, h3, p, a, th, td, caption span, figcaption, label, select, code, summary, svg text";
  for (const element of document.querySelectorAll(texts)) {
    if (!element.textContent.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const ink = element.namespaceURI.includes("svg") ? style.fill : style.color;
    const [a, b] = [light(ink), light(behind(element))];
    worst = Math.min(worst, (Math.max(a, b) + .05) / (Math.min(a, b) + .05));
  }
  return worst;
})()
"""


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1100, False), (1100, True), (390, False), (390, True)])
def test_in_a_browser_it_fits_the_window_and_can_be_read(report, tmp_path, width, dark):
    with Browser(tmp_path / "profile", width=width, dark=dark) as browser:
        browser.open(report.url)
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
        page = [
            int(part)
            for part in re.findall(r"\d+", browser.run("getComputedStyle(document.body).backgroundColor"))
        ]
        assert (max(page) < 60) is dark
        assert browser.run(CONTRAST) >= 4.5
        heights = (
            "[...document.querySelectorAll('figure svg text')].map(t => t.getBoundingClientRect().height)"
        )
        assert browser.run(f"Math.min(...{heights})") > 8
        picture = browser.screenshot(tmp_path / "page.png")
        assert picture.stat().st_size > 20_000
