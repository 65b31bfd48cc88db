"""The progress of Python calls: a bar where somebody can see it, a function's calls, or nothing."""

import io
import re
import sys

import pytest
import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text
from small_models import small_model

import fasttrace as ft
from fasttrace.show.page import Page
from fasttrace.show.watched import watched

FACTS = [
    ft.Fact("The {} is located in the city of", "Eiffel Tower", "Paris", "Rome"),
    ft.Fact("The {} is located in the city of", "New York", "Rome", "Paris"),
]
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A function that makes stderr a terminal, and returns it. pytest sets stderr after fixtures."""

    def make():
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "stderr", screen := Screen())
        return screen

    return make


@pytest.fixture(scope="module")
def calls(small_tokenizer, tmp_path_factory):
    """name → (what its bars show, what it gives a function, a call of it)."""
    model = small_model("llama", small_tokenizer, torch.float32)
    folder = tmp_path_factory.mktemp("text")
    text, cache = folder / "text.txt", folder / "cache"
    text.write_text(" ".join(f"{fact.text} {fact.target_true}" for fact in FACTS * 20))
    trace = {"keep": "all", "sigma": 0.5, "samples": 2, "windows": [3]}
    tune = {"method": "ft-1", "steps": 2}
    moments = {"tokens": 300, "layers": [1], "ridge": 0.1}
    return {
        "trace": (["Tracing .*2 of 2 facts"], 2, lambda p: ft.trace(model, FACTS, **trace, progress=p)),
        "edit": (
            ["Editing .*4 of 4 edits"],
            4,
            lambda p: ft.edit(model, FACTS, layers=[0, 1], **tune, essence=0, progress=p),
        ),
        "mass_edit": (["Editing .*2 of 2 facts"], 2, lambda p: ft.mass_edit(model, FACTS, layer=1, **tune, progress=p)),
        "check_known": (["Checking facts .*2 of 2 facts"], 2, lambda p: ft.check_known(model, FACTS, progress=p)),
        "second_moments": (
            ["Moments: moments .*300 of 300 tokens"],
            None,
            lambda p: ft.second_moments(
                model, text, **moments, cache_dir=cache / ("none" if p is None else type(p).__name__), progress=p
            ),
        ),
    }


CALLS = ("trace", "edit", "mass_edit", "check_known", "second_moments")


@pytest.mark.parametrize("name", CALLS)
def test_a_terminal_has_a_bar_and_no_other_word(calls, terminal, monkeypatch, name):
    screen = terminal()
    bars, _, call = calls[name]
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    call(None)
    text = ANSI.sub("", screen.getvalue())
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert all(re.search(bar, lines[-len(bars) + n]) for n, bar in enumerate(bars))
    assert all(re.match(r"(Tracing|Editing|Checking facts|Moments: \w+) ", line) for line in lines)
    assert out.getvalue() == ""


@pytest.mark.parametrize("name", CALLS)
def test_false_and_a_file_show_nothing(calls, terminal, monkeypatch, name):
    screen = terminal()
    _, _, call = calls[name]
    call(False)
    assert screen.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    call(None)
    assert file.getvalue() == ""


@pytest.mark.parametrize("name", CALLS)
def test_a_function_is_called_instead(calls, terminal, name):
    screen = terminal()
    _, total, call = calls[name]
    seen = []
    call(lambda *args: seen.append(args))
    assert screen.getvalue() == ""
    if total is None:
        assert seen[-1] == ("moments", 300, 300)
    else:
        assert sum(n for (n,) in seen) == total


def test_a_display_of_the_callers_own_is_left_alone(calls, terminal):
    screen = terminal()
    _, _, call = calls["trace"]
    console = Console(file=screen, width=100)
    with Live(Text("mine"), console=console, auto_refresh=False, redirect_stderr=False) as own:
        call(None)
        own.refresh()
    assert ANSI.sub("", screen.getvalue()).strip().splitlines()[-1].endswith("mine")


def test_true_says_in_lines_how_it_goes_where_there_is_no_bar(monkeypatch):
    monkeypatch.setattr("fasttrace.show.watch.QUIET_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    with watched(True) as watch, watch.bar("Tracing", 2) as done:
        done(2)
    assert re.fullmatch(r"Tracing: 0 of 2 facts\nTracing: 2 of 2 facts in \d s\n", file.getvalue())


def test_a_page_has_its_text_and_no_markup_of_it():
    bundle = Page(lambda: Text("<b>Tracing</b>", style="green"))._bundle()
    assert bundle["text/plain"] == "<b>Tracing</b>"
    assert "&lt;b&gt;Tracing&lt;/b&gt;" in bundle["text/html"]
    assert bundle["text/html"].startswith("<pre style=")


def test_a_notebook_has_one_bar_that_stays(tmp_path):
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    pytest.importorskip("ipykernel")
    cell = nbformat.v4.new_code_cell(
        "import time\nfrom fasttrace.show.watched import watched\n"
        "with watched(None) as watch, watch.bar('Tracing', 3) as done:\n"
        "    for _ in range(3):\n        time.sleep(0.3)\n        done(1)"
    )
    book = nbformat.v4.new_notebook(cells=[cell])
    place = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(book, timeout=60, kernel_name="python3", resources=place).execute()
    [shown] = book.cells[0].outputs
    assert re.fullmatch(r"Tracing ━+ 3 of 3 facts .*", shown.data["text/plain"])
