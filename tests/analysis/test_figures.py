"""Figures draw the values that the store has."""

import re
from datetime import datetime
from typing import Any

import numpy as np
import plausible
import pyarrow as pa
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection, QuadMesh
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure, FigureBase
from matplotlib.legend import Legend
from matplotlib.text import Text
from panels import panels_of
from plausible import EDITED, N_LAYERS, UNHURT, edit_result, study_facts, trace_result
from scipy.stats import pearsonr
from statsmodels.api import OLS, add_constant

from fasttrace.analysis import draw, figures
from fasttrace.analysis.exhibits import exhibits
from fasttrace.analysis.naming import number, p_text
from fasttrace.analysis.paper import FIGURES, RowFilter
from fasttrace.analysis.regression import regressions
from fasttrace.errors import StoreError, UserError
from fasttrace.store import Store

PEAKS, SCATTER, BARS, CURVE, LAYERS = 11, 15, 6, 10, 7  # their numbers in the paper
SHARE = "tracing effect\n(share of p_clean − p_noised)"
OUTSIDE = r"\n[\d,]+ of [\d,]+ effects lies? outside 0 to 1"
LAST = "tracing effect at the last subject token\n(share of p_clean − p_noised)"
ABSOLUTE = "absolute tracing effect at the last subject token\n(p_restored − p_noised)"
ZEROED = "share of p(o_true) deleted by zeroing"
MAGNITUDE = "rewrite magnitude\n(p(o_false) − p(o_true) after the edit)"
STACK = ["edited layer (lower number)", "edited layer and tracing effect (upper number)"]
FIT = ["perfect relationship", "least squares", "95 % confidence band"]
PEAK_AXIS = ("layer with the fact's largest tracing effect (0-based)", "facts")
MEANS = ("edited layer (0-based)", "mean ± SE (1 = full success)")
# Number of a figure of the store `whole`: (panels, x axis, y axis, legend).
HOLDS = {
    1: (3, *PEAK_AXIS, []),
    2: (1, "restored layer (0-based), centre of a window of 10", "token (* subject, noised)", []),
    4: (2, SHARE, "rewrite score", FIT),
    6: (5, "", "R² of the rewrite score", STACK),
    7: (3, *MEANS, None),
    8: (1, *MEANS, None),
    9: (2, *MEANS, None),
    10: (1, "layer at the centre of the restored window (0-based)", f"mean {SHARE} ± SE", None),
    11: (5, *PEAK_AXIS, []),
    12: (5, "", "R² of the rewrite score", STACK),
    13: (1, "", "R² of the rewrite score", STACK),
    14: (2, ABSOLUTE, MAGNITUDE, FIT),
    15: (16, SHARE, "rewrite score", FIT),
    16: (16, LAST, "rewrite score", FIT),
    17: (8, SHARE, "rewrite score", FIT),
    18: (16, SHARE, "overall score", FIT),
    19: (8, SHARE, "rewrite score", FIT),
    20: (8, SHARE, "overall score", FIT),
    21: (8, ZEROED, "rewrite score", FIT),
    22: (8, ZEROED, "overall score", FIT),
}


def drawn(figure: Figure) -> str:
    """All visible text of a figure."""
    figure.draw_without_rendering()
    return "\n".join(
        text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_visible()
    )


def axis_labels(figure: Figure, axis: str) -> set[str]:
    """The labels of the panels' x or y axes, and of the axes that they share."""
    parts = [part for part in figure.findobj(FigureBase) if not isinstance(part, Axes)]
    shared = [getattr(part, f"get_sup{axis}label")() for part in parts]
    return {text for text in [getattr(axes, f"get_{axis}label")() for axes in panels_of(figure)] + shared if text}


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.findobj(Legend) for text in legend.get_texts()]


def labelled(axes: Axes, label: str) -> Any:
    """The one line, bar group or band of a panel with that label."""
    handles, labels = axes.get_legend_handles_labels()
    [found] = [handle for handle, text in zip(handles, labels, strict=True) if text == label]
    return found


def series_of(axes: Axes) -> dict[str, int]:
    """How many series of each kind a panel shows."""
    counts = {
        "lines": sum(not line.get_label().startswith("_") for line in axes.lines),
        "error bars": sum(isinstance(one, ErrorbarContainer) for one in axes.containers),
        "bars": len(axes.patches),
        "heatmaps": sum(isinstance(one, QuadMesh) for one in axes.collections),
        "points": sum(isinstance(one, PathCollection) for one in axes.collections),
        "bands": sum(isinstance(one, PolyCollection) for one in axes.collections),
    }
    return {name: count for name, count in counts.items() if count}


def check_on_page(figure: Figure) -> None:
    """Every title, label, number and legend lies within the figure. matplotlib hides ticks outside an axis itself."""
    FigureCanvasAgg(figure).draw()
    ticks = {label for axes in panels_of(figure) for label in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    shown = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    page = figure.bbox.padded(1)
    for text in shown:
        if text not in ticks:
            box = text.get_window_extent()
            assert page.contains(box.x0, box.y0), text.get_text()
            assert page.contains(box.x1, box.y1), text.get_text()


@pytest.mark.parametrize("number_there", FIGURES)
def test_every_figure_has_its_panels_series_axes_and_legend(number_there, whole):
    figure = figures.paper_figure(whole, number_there)
    panels, x, y, legend = HOLDS[number_there]
    shown = panels_of(figure)
    assert len(shown) == panels
    assert {re.sub(OUTSIDE, "", label) for label in axis_labels(figure, "x")} == ({x} if x else set())
    assert axis_labels(figure, "y") == {y}
    named = legend_of(figure)
    assert named == legend if legend is not None else len(named) > 2
    wanted = {
        "peaks": {"bars": N_LAYERS},
        "heatmap": {"heatmaps": 1},
        "layers": {"error bars": len(named)},
        "curve": {"lines": len(named), "bands": len(named)},
        "bars": None,  # two for each method that the problem has
    }.get(FIGURES[number_there].kind, {"lines": 2, "points": 1, "bands": 1})
    for axes in shown:
        assert series_of(axes) == (wanted or {"bars": 2 * len(axes.get_xticklabels())})
    check_on_page(figure)


@pytest.mark.parametrize("number_there", [PEAKS, SCATTER, BARS, CURVE, LAYERS])
def test_figures_save_in_every_format(number_there, study, tmp_path):
    figure, again = (figures.paper_figure(study, number_there) for _ in range(2))  # drawing one again moves its layout
    for ending, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        saved = figures.save(figure, tmp_path / f"{number_there}{ending}").read_bytes()
        assert saved.startswith(magic)
        assert figures.save(again, tmp_path / f"again{ending}").read_bytes() == saved, "a date or a random id"


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
    image = figure.axes[0].collections[0].get_array()
    assert image.shape == (max(row["token_index"] for row in rows) + 1, N_LAYERS)
    assert all(image[row["token_index"], row["layer"]] == row["p_restored"] for row in rows)
    trace = study.query("SELECT p_clean, p_noised FROM traces WHERE fact_id = 'place-00'").to_pylist()[0]
    how, ends = figure.axes[0].get_title(loc="left").split("\n")
    assert how.endswith(" · mlp · denoise · window 5")
    assert ends == f"p(Paris) clean {trace['p_clean']:.3f}, noised {trace['p_noised']:.3f}"
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


def test_figure_2_is_of_denoising_all_tokens_whatever_was_traced_last(tmp_path):
    store, facts = Store(tmp_path / "s.duckdb"), study_facts(count=3)
    for place, (method, tokens) in enumerate([("denoise", "all"), ("denoise", "subject"), ("zero", "whole-subject")]):
        day = datetime(2026, 1, 1 + place)
        store.add(trace_result(facts, (5, 10), method, tokens=tokens, run_id=f"t{place}", created_at=day))
    for figure, window in ((figures.paper_figure(store, 2), 10), (figures.heatmap(store, "place-00"), 5)):
        assert f"window of {window}" in "".join(axis_labels(figure, "x"))
        assert axis_labels(figure, "y") == {"token (* subject, noised)"}
        assert np.isfinite(np.ma.filled(figure.axes[0].collections[0].get_array(), np.nan)).all()
    zeroed = figures.heatmap(store, "place-00", localization="zero")
    assert axis_labels(zeroed, "y") == {"token (* subject)"}
    there = "denoise probability all mlp, denoise probability subject mlp, zero probability whole-subject mlp"
    with pytest.raises(StoreError, match=f"by noise, got {there}"):
        figures.heatmap(store, "place-00", localization="noise")


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
    panels = panels_of(figure)
    assert len(panels) == len(EDITED)
    for axes, layer in zip(panels, EDITED, strict=True):
        x, y = (np.array([pair[key] for pair in pairs if pair["layer"] == layer]) for key in ("effect", "rewrite"))
        rho, p = pearsonr(x, y)
        assert axes.get_title(loc="left") == f"layer {layer}:  ρ = {number(rho, 2)}\n{p_text(p)}, n = 22"
        offsets = axes.collections[0].get_offsets()
        assert sorted(map(tuple, offsets.tolist())) == sorted(zip(x.tolist(), y.tolist(), strict=True))


def test_the_line_and_band_of_a_scatter_are_those_of_statsmodels(study):
    for axes in panels_of(figures.paper_figure(study, SCATTER)):
        x, y = axes.collections[0].get_offsets().T
        line = labelled(axes, "least squares")
        at = np.asarray(line.get_xdata())
        assert (at.min(), at.max()) == (x.min(), x.max())
        predicted = OLS(y, add_constant(x)).fit().get_prediction(add_constant(at))
        np.testing.assert_allclose(line.get_ydata(), predicted.predicted_mean, rtol=1e-9)
        outline = labelled(axes, "95 % confidence band").get_paths()[0].vertices
        for place, (low, high) in zip(at, predicted.conf_int(alpha=0.05), strict=True):
            edge = outline[outline[:, 0] == place, 1]
            assert (edge.min(), edge.max()) == pytest.approx((low, high), rel=1e-9)
        assert labelled(axes, "perfect relationship").get_xydata().tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("x", "y"), [([0.1, 0.2], [0.5, 0.6]), ([0.3, 0.3, 0.3], [0.1, 0.5, 0.6]), ([0.0] * 4, [0.1, 0.5, 0.6, 0.7])]
)
def test_there_is_no_line_through_two_points_or_one_effect(x, y):
    assert draw.fit_and_band(np.array(x), np.array(y), np.array([0.2])) is None


def test_the_legend_has_the_series_of_every_panel():
    """At layer 0 all effects are equal, so that only the panel of layer 4 has a line."""
    rows = [
        {
            "problem": "p",
            "method": "m",
            "localization": "denoise",
            "metric": "probability",
            "effect_at": "max",
            "layer": layer,
            "effect": x,
            "score": y,
        }
        for layer, xs in ((0, (0.5, 0.5, 0.5)), (4, (0.1, 0.5, 0.9)))
        for x, y in zip(xs, (0.2, 0.4, 0.9), strict=True)
    ]
    rhos = [row | {"rho": 0.1, "p_value": 0.5} for row in rows]
    figure = draw.draw_effect_vs_score(pa.Table.from_pylist(rows), pa.Table.from_pylist(rhos), "rewrite")
    assert [series_of(axes)["lines"] for axes in panels_of(figure)] == [1, 2]
    assert legend_of(figure) == FIT


def test_effects_outside_0_to_1_are_counted_and_shown(whole):
    for number_there, run_id, column in ((21, "zeroed", "effect"), (15, "trace-1", "effect")):
        figure = figures.paper_figure(whole, number_there)
        effects = whole.query(
            f"SELECT {column} AS effect FROM trace_effects AS t JOIN edits USING (fact_id, layer) WHERE "
            f"t.run_id = '{run_id}' AND edits.run_id = 'edit-error-injection-rome' AND t.window_size = 5"
        )["effect"].to_pylist()
        outside = [effect for effect in effects if not 0 <= effect <= 1]
        told = re.findall(OUTSIDE, "\n".join(axis_labels(figure, "x")))
        assert bool(told) == bool(outside)
        if told:
            assert told == [f"\n{len(outside)} of {len(effects)} effects lie outside 0 to 1"]
            assert all(axes.get_xlim()[0] <= min(outside) for axes in panels_of(figure))
    assert outside == []


def test_figure_14_has_probability_restored_at_the_last_subject_token_and_magnitude(whole):
    wanted = whole.query(
        "SELECT cell.p_restored - trace.p_noised AS effect, edits.p_after - edits.p_true_after AS magnitude "
        "FROM trace_cells AS cell JOIN traces AS trace USING (run_id, fact_id) "
        "JOIN edits ON edits.fact_id = cell.fact_id AND edits.layer = cell.layer AND edits.run_id = 'edit-xl' "
        "WHERE cell.run_id = 'trace-xl' AND cell.window_size = 5 AND cell.token_index = trace.subject_end - 1 "
        "AND cell.layer = 4"
    ).to_pylist()
    panels = panels_of(figures.paper_figure(whole, 14))
    shown = [sorted(map(tuple, axes.collections[0].get_offsets().tolist())) for axes in panels]
    pairs = sorted((row["effect"], row["magnitude"]) for row in wanted)
    assert len(pairs) == 14
    assert any(np.allclose(points, pairs, rtol=1e-9) for points in shown)


def test_figure_16_has_the_effect_at_the_last_subject_token(whole):
    largest, last = (
        np.concatenate([axes.collections[0].get_offsets()[:, 0] for axes in panels_of(figures.paper_figure(whole, n))])
        for n in (15, 16)
    )
    assert (last <= largest + 1e-12).all()
    assert (last < largest - 0.01).any()


def test_figure_4_is_of_one_layer(whole):
    panels = panels_of(figures.paper_figure(whole, 4, layer=8))
    assert len(panels) == 2, "one for each model"
    assert all("layer 8:" in panel.get_title(loc="left") for panel in panels)
    with pytest.raises(StoreError, match=r"expected an edited layer of .*, got 7"):
        figures.paper_figure(whole, 4, layer=7)


@pytest.mark.parametrize(
    ("name", "n_layers", "edited", "shown"),
    [
        ("EleutherAI/gpt-j-6b", 28, (0, 4, 5, 6, 8, 27), 5),
        ("openai-community/gpt2-xl", 48, (0, 10, 17, 47), 17),
        ("gpt2-xl", 48, (0, 10, 24, 47), 10),  # 17 is not edited: 10 and 24 are as near, and the lower one is taken
        ("smollm2-135m", 30, (0, 5, 8, 29), 5),  # nearest to 30 / 5
    ],
)
def test_figures_4_and_14_show_the_models_own_layer(name, n_layers, edited, shown, tmp_path, monkeypatch):
    monkeypatch.setattr(plausible, "N_LAYERS", n_layers)
    monkeypatch.setattr(plausible, "EDITED", edited)
    store, facts = Store(tmp_path / "own.duckdb"), study_facts(count=4)
    store.add(trace_result(facts, model=name))
    store.add(edit_result(facts, model=name))
    for number_there in (4, 14):
        [panel] = panels_of(figures.paper_figure(store, number_there))
        assert panel.get_title(loc="left").startswith(f"layer {shown}:")


def test_r2_bars_are_stacked(whole):
    """R² by layer, and on it the gain of the effect. The numbers are R² by layer and R² by both."""
    rows = RowFilter().kept(regressions(whole, localization="denoise")).to_pylist()
    panels = panels_of(figures.paper_figure(whole, BARS))
    assert [axes.get_title(loc="left") for axes in panels] == list(dict.fromkeys(row["problem"] for row in rows))
    for axes in panels:
        here = [row for row in rows if row["problem"] == axes.get_title(loc="left")]
        low, high = (labelled(axes, name).patches for name in STACK)
        assert [bar.get_height() for bar in low] == pytest.approx([row["r2_layer"] for row in here])
        assert [bar.get_y() for bar in high] == pytest.approx([row["r2_layer"] for row in here])
        assert [bar.get_y() + bar.get_height() for bar in high] == pytest.approx([row["r2_both"] for row in here])
        told = [text.get_text() for text in axes.texts]
        assert told == [number(row[key]) for row in here for key in ("r2_layer", "r2_both")]
        names = [label.get_text() for label in axes.get_xticklabels()]
        assert len(set(names)) == len(here)
        assert all(name.startswith(row["method"]) for name, row in zip(names, here, strict=True))


def test_figure_13_is_of_gpt2_xl_with_window_10(whole):
    [fit] = [
        row
        for row in regressions(whole, window_size=10, localization="denoise").to_pylist()
        if "gpt2-xl" in row["model"] and row["n"]
    ]
    [axes] = panels_of(figures.paper_figure(whole, 13))
    assert [text.get_text() for text in axes.texts] == [number(fit["r2_layer"]), number(fit["r2_both"])]


def test_figure_1_is_of_window_5(whole):
    assert all("window 5" in axes.get_title(loc="left") for axes in panels_of(figures.paper_figure(whole, 1)))
    others = [axes.get_title(loc="left") for axes in panels_of(figures.paper_figure(whole, PEAKS))]
    assert any("window 10" in title for title in others)


def test_score_by_layer_draws_the_means(study):
    panels = panels_of(figures.paper_figure(study, LAYERS))
    assert [axes.get_title(loc="left") for axes in panels] == [
        f"{s} score" for s in ("rewrite", "paraphrase", "neighborhood")
    ]
    means = study.query("SELECT avg(neighborhood) AS mean FROM edits GROUP BY layer ORDER BY layer")["mean"].to_pylist()
    assert panels[2].lines[0].get_ydata().tolist() == pytest.approx(means)


def test_figure_9_has_the_overall_score_without_and_with_essence(whole):
    panels = panels_of(figures.paper_figure(whole, 9))
    assert [axes.get_title(loc="left") for axes in panels] == ["overall score", "overall score with essence"]
    values = ("overall", "(rewrite + paraphrase + neighborhood + essence) / 4")
    for axes, value in zip(panels, values, strict=True):
        means = whole.query(
            f"SELECT avg({value}) AS mean FROM edits WHERE problem = 'error-injection' AND method = 'memit' "
            "GROUP BY layer ORDER BY layer"
        )
        [line] = [one for one in axes.containers if "memit" in one.get_label()]
        assert line.lines[0].get_ydata().tolist() == pytest.approx(means["mean"].to_pylist())


def test_a_store_without_edits_or_cells_is_refused(tmp_path):
    store = Store(tmp_path / "empty.duckdb")
    store.create()
    for number_there in FIGURES:
        said = rf"Figure {number_there} .* are in .*empty\.duckdb; make them with: fasttrace"
        with pytest.raises(StoreError, match=said):
            figures.paper_figure(store, number_there)


def test_saving_under_another_ending_is_refused(study, tmp_path):
    with pytest.raises(UserError, match=r"ends in \.png, \.svg, \.pdf, got 'r2\.gif'"):
        figures.save(figures.paper_figure(study, BARS), tmp_path / "r2.gif")


def test_svg_text_stays_text(study, tmp_path):
    path = figures.save(figures.paper_figure(study, BARS), tmp_path / "r2.svg")
    assert re.search(r"<text[^>]*>edited layer \(lower number\)</text>", path.read_text())


def test_a_large_scatter_is_drawn_as_pixels(study, monkeypatch):
    monkeypatch.setattr(draw, "MAX_VECTOR_POINTS", 10)
    figure = figures.paper_figure(study, SCATTER)
    assert all(axes.collections[0].get_rasterized() for axes in panels_of(figure))


def test_the_reports_panels_have_one_method_each_and_name_its_effects(two_ways):
    shown = {exhibit.key: exhibit for exhibit in exhibits(two_ways.store)}
    assert {panel.x.label for panel in shown["pairs"].panels if panel.facets["localization"] == "zero"} == {ZEROED}
    assert {panel.facets["method"] for panel in shown["pairs"].panels} == {"rome", "memit"}
    assert {panel.x.label for panel in shown["pairs"].panels} == {ZEROED, SHARE.replace("\n", " ")}
    effects = two_ways.store.query(
        "SELECT effect FROM trace_effects AS t JOIN edits AS e ON e.fact_id = t.fact_id AND e.layer = t.layer "
        "WHERE effect IS NOT NULL"
    )["effect"].to_pylist()
    outside = sum(not 0 <= effect <= 1 for effect in effects)
    assert outside > 0
    assert shown["pairs"].caption.endswith(f" {outside} of {len(effects)} effects lie outside 0 to 1.")
    assert [(panel.title, panel.y.label) for panel in shown["curve"].panels] == [
        ("denoise", f"mean {SHARE}".replace("\n", " ")),
        ("zero", f"mean {ZEROED}"),
    ]


def test_two_traces_of_a_fact_are_two_lines_never_one(study, tmp_path):
    store = Store(tmp_path / "two.duckdb")
    facts = study_facts(count=4)
    store.add(trace_result(facts))
    store.add(trace_result(facts, run_id="trace-2", seed=1))
    labels = [line.get_label() for line in figures.paper_figure(store, CURVE).axes[0].lines]
    assert labels == ["window 5 · trace seed 0 (4 facts)", "window 5 · trace seed 1 (4 facts)"]
