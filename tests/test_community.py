"""The files for contributors: they parse, name what exists, and call what CI and `make` call."""

import re
from pathlib import Path

import pytest
import yaml

import fasttrace

ROOT = Path(__file__).resolve().parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", ".github/pull_request_template.md")
NAMED = re.compile(r"`((?:\.ci|analysis|bench|csrc|docs|kernels|src|tests)/[\w./-]*)`")
MADE_UP = re.compile(r"(\b|_)X\.")  # a file that a contributor writes


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_has_this_version_and_the_paper():
    cited = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= cited.keys(), "what the format requires"
    assert cited["version"] == fasttrace.__version__
    assert cited["license"] == "Apache-2.0"
    assert "2301.04213" in str(cited["references"])


@pytest.mark.parametrize("form", [form for form in FORMS if form.stem != "config"], ids=lambda form: form.stem)
def test_a_form_for_issues_is_whole(form):
    asked = read(form)
    assert {"name", "description", "body"} <= asked.keys()
    assert len({part["id"] for part in asked["body"]}) == len(asked["body"])
    assert all(part["attributes"]["label"] for part in asked["body"])


def test_a_report_of_a_bug_needs_the_output_of_env():
    [env] = [part for part in read(".github/ISSUE_TEMPLATE/bug.yml")["body"] if part["id"] == "env"]
    assert "fasttrace env" in env["attributes"]["label"]
    assert env["validations"]["required"] is True


def test_the_hosted_ci_runs_what_ci_runs():
    [job] = read(".github/workflows/ci.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


def test_hooks_run_the_programs_of_make_check():
    [local] = read(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local", "nothing is fetched"
    checks = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ncheck: setup\n")[2].partition("\n\n")[0]
    programs = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in local["hooks"]}
    assert programs == set(re.findall(r"\$\(BIN\)/(ruff|mypy)", checks))


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = [name for name in NAMED.findall(text) if not MADE_UP.search(name)]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [name for name in [*named, *links] if not (ROOT / name).exists()] == []
    made = re.findall(r"\bmake ([a-z-]+)", text)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(made) <= targets
    assert page != "CONTRIBUTING.md" or (len(named) > 20 and len(made) > 5), "this test would check nothing"
