"""Figures draw the values that the store has."""

import re

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure
from plausible import EDITED, N_LAYERS, UNHURT, study_facts, trace_result
from scipy.stats import pearsonr

from fasttrace.analysis import draw, figures
from fasttrace.analysis.naming import group_names, number, p_text, visible
from fasttrace.analysis.paper import RowFilter
from fasttrace.analysis.regression import regressions
from fasttrace.errors import StoreError, UserError
from fasttrace.store import Store

PEAKS, SCATTER, BARS, CURVE, LAYERS = 11, 15, 6, 10, 7  # their numbers in the paper
ALL = (PEAKS, SCATTER, BARS, CURVE, LAYERS)


def drawn(figure: Figure) -> str:
    """All visible text of a figure."""
    figure.draw_without_rendering()
    return "\n".join(
        text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_visible()
    )


@pytest.mark.parametrize("number_there", ALL)
def test_every_figure_of_a_wide_study_can_be_drawn(number_there, wide_study):
    figure = figures.paper_figure(wide_study, number_there)
    figure.draw_without_rendering()
    assert figure.get_size_inches().max() < 30


@pytest.mark.parametrize("number_there", ALL)
def test_every_figure_has_labels_and_saves_in_every_format(number_there, study, tmp_path):
    figure = figures.paper_figure(study, number_there)
    assert isinstance(figure, Figure)
    labels = drawn(figure)
    assert "layer" in labels
    for ending, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        assert figures.save(figure, tmp_path / f"{number_there}{ending}").read_bytes().startswith(magic)


def test_drawing_leaves_pyplot_alone(study):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.paper_figure(study, BARS)
    figures.heatmap(study, "place-00")
    assert dict(matplotlib.rcParams) == before
    pyplot = __import__("sys").modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_heatmap_shows_the_grid_its_probabilities_and_the_subject(study):
    figure = figures.heatmap(study, "place-00")
    rows = study.query("SELECT token_index, layer, p_restored FROM trace_cells WHERE fact_id = 'place-00'").to_pylist()
    image = figure.axes[0].images[0].get_array()
    assert image.shape == (max(row["token_index"] for row in rows) + 1, N_LAYERS)
    assert all(image[row["token_index"], row["layer"]] == row["p_restored"] for row in rows)
    trace = study.query("SELECT p_clean, p_noised FROM traces WHERE fact_id = 'place-00'").to_pylist()[0]
    assert (
        figure.axes[0].get_title(loc="left") == f"p(Paris) clean {trace['p_clean']:.3f}, noised {trace['p_noised']:.3f}"
    )
    tokens = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert tokens == ["The", "Eiffel*", "Tower*", "is", "located", "in", "the", "city", "of"]


def test_heatmap_shows_dollars_and_foreign_letters_unchanged(study, tmp_path):
    figure = figures.heatmap(study, "place-19")
    assert "$100*" in drawn(figure)
    figures.save(figure, tmp_path / "dollar.svg")
    assert "$bill*" in (tmp_path / "dollar.svg").read_text()


def test_heatmap_names_its_window_and_prefers_five(wide_study):
    assert "window of 5" in drawn(figures.heatmap(wide_study, "place-00"))
    assert "window of 3" in drawn(figures.heatmap(wide_study, "place-00", window_size=3))


@pytest.mark.parametrize(
    ("fact_id", "window", "said"),
    [
        ("nobody", None, "was not traced in"),
        ("place-21", None, "36 greedy tokens"),
        ("place-00", 7, "one of 5, got 7"),
    ],
)
def test_heatmap_names_what_is_missing(study, fact_id, window, said):
    with pytest.raises(StoreError, match=said):
        figures.heatmap(study, fact_id, window)


def test_colors_run_from_noised_to_the_highest_cell_but_do_not_magnify_noise():
    assert draw.color_range(np.array([[0.1, 0.6]]), 0.9, 0.1) == (0.1, 0.6)
    low, high = draw.color_range(np.array([[0.1, 0.1001]]), 0.9, 0.1)
    assert low == 0.1
    assert high == pytest.approx(0.18)
    assert draw.color_range(np.array([[0.05, np.nan]]), 0.3, 0.31)[0] == 0.05


def test_peaks_count_every_fact_with_an_effect_once(study):
    axes = figures.paper_figure(study, PEAKS).axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    told = study.query("SELECT DISTINCT fact_id FROM trace_effects WHERE effect IS NOT NULL")
    facts = set(told["fact_id"].to_pylist())
    assert UNHURT not in facts
    assert sum(heights) == len(facts) == 22
    peaks = {}
    for row in study.query(
        "SELECT fact_id, layer, effect FROM trace_effects WHERE effect IS NOT NULL ORDER BY layer"
    ).to_pylist():
        best = peaks.setdefault(row["fact_id"], row)
        if row["effect"] > best["effect"]:
            peaks[row["fact_id"]] = row
    assert heights == np.bincount([row["layer"] for row in peaks.values()], minlength=N_LAYERS).tolist()


def test_mean_effect_curve_is_the_mean_over_facts_and_its_standard_error(study):
    axes = figures.paper_figure(study, CURVE).axes[0]
    rows = study.query("SELECT layer, effect FROM trace_effects WHERE effect IS NOT NULL").to_pylist()
    effects = np.array([[row["effect"] for row in rows if row["layer"] == layer] for layer in range(N_LAYERS)])
    line = axes.lines[0]
    np.testing.assert_allclose(line.get_ydata(), effects.mean(axis=1), rtol=1e-12)
    band = axes.collections[0].get_paths()[0].vertices
    top = (effects.mean(axis=1) + effects.std(axis=1, ddof=1) / np.sqrt(effects.shape[1])).max()
    assert band[:, 1].max() == pytest.approx(top, rel=1e-9)
    assert "(22 facts)" in line.get_label()


def test_scatter_has_a_panel_a_layer_with_its_correlation(study):
    figure = figures.paper_figure(study, SCATTER)
    pairs = study.query(
        "SELECT edits.layer, effect, rewrite FROM edits "
        "JOIN trace_effects USING (fact_id, layer, window_size) WHERE effect IS NOT NULL"
    ).to_pylist()
    panels = [axes for axes in figure.findobj(lambda artist: hasattr(artist, "get_title")) if axes.get_visible()]
    assert len(panels) == len(EDITED)
    for axes, layer in zip(panels, EDITED, strict=True):
        x, y = (np.array([pair[key] for pair in pairs if pair["layer"] == layer]) for key in ("effect", "rewrite"))
        rho, p = pearsonr(x, y)
        assert axes.get_title(loc="left") == f"layer {layer}:  ρ = {number(rho, 2)}\n{p_text(p)}, n = 22"
        offsets = axes.collections[0].get_offsets()
        assert sorted(map(tuple, offsets.tolist())) == sorted(zip(x.tolist(), y.tolist(), strict=True))


def test_r2_bars_show_the_regressions(wide_study):
    axes = figures.paper_figure(wide_study, BARS).axes[0]
    rows = RowFilter().kept(regressions(wide_study)).to_pylist()
    wanted = [row[key] for key in ("r2_layer", "r2_effect", "r2_both") for row in rows]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(wanted)
    assert len({label.get_text() for label in axes.get_xticklabels()}) == len(rows) == 4


def test_score_by_layer_draws_the_means(study):
    figure = figures.paper_figure(study, LAYERS)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == [
        f"{s} score" for s in ("rewrite", "paraphrase", "neighborhood")
    ]
    means = study.query("SELECT avg(neighborhood) AS mean FROM edits GROUP BY layer ORDER BY layer")["mean"].to_pylist()
    assert panels[2].lines[0].get_ydata().tolist() == pytest.approx(means)


def test_a_store_without_edits_or_cells_is_refused(tmp_path):
    store = Store(tmp_path / "empty.duckdb")
    store.create()
    for number_there in ALL:
        said = rf"Figure {number_there} .* are in .*empty\.duckdb; make them with: fasttrace"
        with pytest.raises(StoreError, match=said):
            figures.paper_figure(store, number_there)


def test_saving_under_another_ending_is_refused(study, tmp_path):
    with pytest.raises(UserError, match=r"ends in \.png, \.svg, \.pdf, got 'r2\.gif'"):
        figures.save(figures.paper_figure(study, BARS), tmp_path / "r2.gif")


def test_a_group_is_named_by_what_distinguishes_it():
    row = {
        "problem": "error-injection",
        "method": "rome",
        "protocol": "paper",
        "model": "a",
        "edit_run_id": "e" * 16,
    }
    assert list(group_names([row, row]).values()) == ["error-injection · rome"]
    assert list(group_names([row, row | {"model": "b"}]).values()) == [
        "error-injection · rome · a",
        "error-injection · rome · b",
    ]
    told = list(group_names([row, row | {"edit_run_id": "f" * 16}]).values())
    assert told == [
        "error-injection · rome · edit run eeeeeeee",
        "error-injection · rome · edit run ffffffff",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.123"), (-0.5, "−0.500"), (-0.0001, "0.000"), (None, "–"), (float("nan"), "–")],
)
def test_numbers_for_labels(value, text):
    assert number(value) == text


def test_p_values_and_tokens_as_words():
    assert [p_text(p) for p in (0.0004, 0.03149, None)] == ["p < 0.001", "p = 0.031", "p –"]
    assert [visible(token) for token in (" Tower", "\n", "  ", "a\tb")] == ["Tower", "⏎", "␣", "a⇥b"]


def test_absent_cells_stay_blank():
    cells = pa.table({"token_index": [1, 2], "layer": [0, 1], "p": [0.5, None]})
    grid = draw.grid_of(cells, "p")
    assert grid.shape == (3, 2)
    assert grid[1, 0] == 0.5
    assert np.isnan(np.delete(grid.ravel(), 2)).all()


def test_svg_text_stays_text(study, tmp_path):
    path = figures.save(figures.paper_figure(study, BARS), tmp_path / "r2.svg")
    assert re.search(r"<text[^>]*>edited layer</text>", path.read_text())


def test_a_large_scatter_is_drawn_as_pixels(study, monkeypatch):
    monkeypatch.setattr(draw, "MAX_VECTOR_POINTS", 10)
    figure = figures.paper_figure(study, SCATTER)
    assert all(
        axes.collections[0].get_rasterized()
        for axes in figure.findobj(lambda a: hasattr(a, "get_title"))
        if axes.get_visible()
    )


def test_two_traces_of_a_fact_are_two_lines_never_one(study, tmp_path):
    store = Store(tmp_path / "two.duckdb")
    facts = study_facts(count=4)
    store.add(trace_result(facts))
    store.add(trace_result(facts, run_id="trace-2", seed=1))
    labels = [line.get_label() for line in figures.paper_figure(store, CURVE).axes[0].lines]
    assert labels == ["window 5 · trace run trace-1 (4 facts)", "window 5 · trace run trace-2 (4 facts)"]
