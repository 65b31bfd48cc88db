"""Words in scripts that matplotlib's own font lacks."""

import logging
import warnings

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from fasttrace.analysis.figures import save
from fasttrace.show import fonts
from fasttrace.show.grids import Heatmap
from fasttrace.show.heatmap import draw_heatmap

OWN, OTHER, NONE = "日", "本", "語"  # matplotlib's own fonts lack all three


def made_font(path, name, letters):
    """A font in which each letter is a full square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(letter): "square" for letter in letters})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine that has no fonts but matplotlib's own."""
    own = [font for font in font_manager.fontManager.ttflist if font.fname.startswith(matplotlib.get_data_path())]
    assert own
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    fonts.fonts_for.cache_clear()
    yield
    fonts.fonts_for.cache_clear()


@pytest.fixture
def installed(machine, tmp_path):
    """Two fonts more: one has one of the letters, the other two."""
    for name, letters in (("One Square", OWN), ("Two Squares", OWN + OTHER)):
        font_manager.fontManager.addfont(made_font(tmp_path / f"{name}.ttf", name, letters))


def heatmap(*tokens):
    ends = {"model": f"m {tokens[0]}", "module": "mlp", "method": "denoise", "corruption": "noise"}
    return Heatmap(
        np.linspace(0, 1, 3 * len(tokens)).reshape(-1, 3),
        tokens, 0, 1, "{} is", "Paris", 0.9, 0.1, metric="probability", window=1, **ends,
    )  # fmt: skip


def test_the_fewest_further_fonts_have_the_letters(installed):
    assert fonts.fonts_for(frozenset(map(ord, OWN + OTHER))) == ("Two Squares",)
    assert fonts.fonts_for(frozenset(map(ord, OWN))) == ("One Square",), "the first by name"
    assert fonts.fonts_for(frozenset(map(ord, NONE))) == ()


def test_words_are_drawn_with_a_font_that_has_them(installed, tmp_path, caplog):
    axes = draw_heatmap(Figure().subplots(), heatmap(OWN, OTHER, "plain"))
    own, other, plain = axes.get_yticklabels()
    [default] = plain.get_fontfamily()
    assert own.get_fontfamily() == [*axes.title.get_fontfamily()[:1], "One Square"]
    assert other.get_fontfamily() == [default, "Two Squares"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(axes.figure, tmp_path / "a.png")
        save(axes.figure, tmp_path / "a.svg")
    assert not caplog.records
    assert "Two Squares" in (tmp_path / "a.svg").read_text()


def test_letters_that_no_font_has_are_said_once(tmp_path, caplog):
    axes = draw_heatmap(Figure().subplots(), heatmap(OWN, OTHER, OWN))
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        save(axes.figure, tmp_path / "a.svg")
        assert not caplog.records, "what shows an SVG file chooses the fonts"
        save(axes.figure, tmp_path / "a.png")
    [said] = caplog.messages
    assert said.startswith("no font of this machine has ")
    assert set(said.split(",")[0][len("no font of this machine has ") :]) == {OWN, OTHER}


def test_axes_have_one_heatmap_and_one_colour_bar():
    figure = Figure()
    axes = draw_heatmap(figure.subplots(), heatmap("a", "b"))
    axes.plot([0, 1], [0, 1])
    draw_heatmap(axes, heatmap("a", "b", "c"))
    assert len(figure.axes) == 2
    assert len(axes.collections) == 1
    assert axes.collections[0].get_array().shape == (3, 3)
    assert len(axes.lines) == 1, "what the caller drew stays"
