"""Every section of docs/algorithms.md that a file cites exists, and so does every file that the page names."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "algorithms.md"
FOLDERS = ("analysis", "bench", "csrc", "docs", "kernels", "src", "tests")
SUFFIXES = {".c", ".cpp", ".cu", ".cuh", ".h", ".j2", ".js", ".md", ".py", ".sh", ".sql", ".toml"}

# "docs/algorithms.md, sections 4 (score) and 9": numbers with optional remarks, joined by a comma, "and" or "to". A
# citation may continue in the next line, after a comment mark.
GAP = r"(?:\s|\n[ \t]*(?:#|--|//|\*))+"
NUMBER = rf"\d+(?:{GAP}\([^)]*\))?"
CITATION = re.compile(rf"docs/algorithms\.md,?{GAP}sections?{GAP}({NUMBER}(?:(?:,|{GAP}and|{GAP}to){GAP}{NUMBER})*)")
HEADING = re.compile(r'^<a id="([a-z-]+)"></a>\n## (\d+)\. ', re.MULTILINE)
LINK = re.compile(r"\[(?:section )?(\d+)\b[^\]]*\]\(#([a-z-]+)\)", re.IGNORECASE)


def cited(text: str) -> list[int]:
    """Section numbers of docs/algorithms.md that a text cites. Of a range, only the ends."""
    return [int(n) for found in CITATION.findall(text) for n in re.findall(r"\d+", re.sub(r"\([^)]*\)", "", found))]


def files() -> Iterator[Path]:
    yield from ROOT.glob("*.md")
    yield from ROOT.glob("*.toml")
    for folder in FOLDERS:
        yield from (file for file in (ROOT / folder).rglob("*") if file.suffix in SUFFIXES and file.is_file())


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """{path: text} of every file that may cite the page, except this file."""
    return {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8") for f in files() if f != Path(__file__).resolve()}


@pytest.fixture(scope="module")
def sections() -> dict[int, str]:
    """{number: anchor} of the page's sections."""
    return {int(number): anchor for anchor, number in HEADING.findall(PAGE.read_text(encoding="utf-8"))}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("(docs/algorithms.md, section 4)", [4]),
        ("docs/algorithms.md, sections 4 (score) and 9 (logits, 2 of them).", [4, 9]),
        ("docs/algorithms.md, sections 1, 2 and 8; Meng et al. 2022, section 3", [1, 2, 8]),
        ("docs/algorithms.md, sections 3 to 19.", [3, 19]),
        ("    # docs/algorithms.md,\n    # section 12", [12]),
        ("-- docs/algorithms.md, sections 12\n-- and 14", [12, 14]),
        ("docs/algorithms.md says more", []),
        ("paper, section 4.1", []),
    ],
)
def test_citations_are_read(text, numbers):
    assert cited(text) == numbers


def test_sections_are_numbered_in_order_and_have_unique_anchors(sections):
    headings = re.findall(r"^## (\d+)\. ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert list(sections) == [int(number) for number in headings] == list(range(1, len(sections) + 1))
    assert len(set(sections.values())) == len(sections)


def test_every_cited_section_exists(texts, sections):
    found = {path: numbers for path, text in texts.items() if (numbers := cited(text))}
    assert len(found) > 20, "without citations this test would check nothing"
    assert {path: lost for path, numbers in found.items() if (lost := sorted(set(numbers) - set(sections)))} == {}


def test_code_cites_a_section_and_never_the_page_alone(texts):
    """A citation in a form that `cited` does not read would escape the test above."""
    code = {path: text for path, text in texts.items() if not path.endswith(".md")}
    unread = [path for path, text in code.items() if text.count("algorithms.md") != len(CITATION.findall(text))]
    assert unread == []


def test_links_within_the_page_lead_to_the_section_they_name(sections):
    links = LINK.findall(PAGE.read_text(encoding="utf-8"))
    assert {int(number) for number, _ in links} == set(sections), "the table of contents names every section"
    assert [link for link in links if sections.get(int(link[0])) != link[1]] == []


def test_files_that_the_page_names_exist():
    named = re.findall(r"`((?:analysis|src|tests)/[\w./-]*)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 30
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_nothing_cites_the_unpublished_algorithms_sheet(texts):
    assert [path for path, text in texts.items() if "ALGORITHMS" in text] == []
