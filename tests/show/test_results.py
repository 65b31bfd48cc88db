"""Results say what they are, draw themselves and become data frames."""

import json
import re
import typing
from html.parser import HTMLParser

import numpy as np
import pandas
import polars
import pytest
import torch
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from small_models import small_model

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.tracing.result import Role
from fasttrace.tracing.roles import ROLES

FACTS = [
    ft.Fact("The {} is located in the city of", "Eiffel Tower", "Paris", "Rome", fact_id="eiffel"),
    ft.Fact("The {} is located in the city of", "New York", "Rome", "Paris", fact_id="york"),
    ft.Fact("The capital of {} is", "France", "Paris", "Rome", fact_id="<script>alert(1)</script>"),
]
TRACE = {"keep": "all", "sigma": 0.5, "samples": 2, "windows": [5, 3]}


@pytest.fixture(scope="module")
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


@pytest.fixture(scope="module")
def traced(model):
    return ft.trace(model, FACTS, **TRACE)


@pytest.fixture(scope="module")
def heads(model):
    return ft.trace(model, FACTS, module="head", **TRACE | {"windows": [1]})


@pytest.fixture(scope="module")
def edited(model):
    return ft.edit(model, FACTS[:2], method="ft-1", steps=2, layers=[0, 2], essence=0)


@pytest.fixture(scope="module")
def many(model):
    return ft.mass_edit(model, FACTS[:2], method="ft-1", steps=2, layer=1, at_once=1, score_every=1)


@pytest.fixture
def axes():
    return Figure().subplots()


def test_a_plot_has_the_cells_of_the_fact_and_says_what_they_are(traced, axes):
    assert traced.plot(FACTS[1], window=3, ax=axes) is axes
    [mesh] = [one for one in axes.collections if isinstance(one, QuadMesh)]
    cells = traced.to_pandas().query("fact_id == 'york' and window_size == 3")
    shown = np.ma.filled(mesh.get_array(), np.nan)
    assert (shown[cells["token_index"], cells["layer"]] == cells["p_restored"]).all()
    row = traced.to_pandas("facts").set_index("fact_id").loc["york"]
    how, ends = axes.get_title(loc="left").split("\n")
    assert how == f"{traced.run['model']} · mlp · denoise · window 3"
    assert ends == f"p(Rome) clean {row['p_clean']:.3f}, noised {row['p_noised']:.3f}"
    assert axes.get_xlabel() == "restored layer (0-based), centre of a window of 3"
    marked = [label.get_text() for label in axes.get_yticklabels() if label.get_text().endswith("*")]
    assert len(marked) == row["subject_end"] - row["subject_begin"]
    assert all(tick == int(tick) for tick in axes.get_xticks())
    assert axes.figure.axes[1].get_ylabel() == "p(Rome) with the layer restored (probability)"


def test_without_axes_a_plot_is_a_figure_that_can_be_saved(model, tmp_path):
    from matplotlib import pyplot

    alone = ft.trace(model, "The {} is located in", subject="the Eiffel Tower", target="Paris", **TRACE)
    figure = alone.plot().figure
    assert figure.number in pyplot.get_fignums()
    figure.savefig(tmp_path / "one.svg")
    assert "<image" not in (tmp_path / "one.svg").read_text(), "all is vectors"
    pyplot.close(figure)


def test_a_head_alone_and_the_strongest_are_told_apart(heads, axes):
    heads.plot("eiffel", head=1, ax=axes)
    assert axes.get_title(loc="left").split("\n")[0].endswith("head · denoise · window 1 · head 1")
    assert heads.heatmap("eiffel").part == "strongest head of each cell"
    with pytest.raises(UserError, match="plot: head: expected one of 0, 1, 2, 3, 4, 5, got 9"):
        heads.plot("eiffel", head=9)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "fact: expected one of 3 traced facts, such as 'eiffel', 'york', '<script>alert.1.</script>', got none"),
        ({"fact": "rome"}, "fact: expected one of 3 traced facts, .*, got 'rome'"),
        ({"fact": "york", "window": 7}, "window: expected one of 3, 5, got 7"),
        ({"fact": "york", "head": 1}, "head: expected none with module mlp, got 1"),
        ({"fact": "york", "ax": 3}, "ax: expected matplotlib axes, got int"),
        ({"fact": 7}, "plot: fact: expected Fact or a text, got 7"),
    ],
)
def test_a_plot_says_what_there_is_to_draw(traced, given, said):
    with pytest.raises(UserError, match=said):
        traced.plot(**given)


def test_a_fact_that_was_left_out_has_its_reason(model):
    unknown = ft.trace(model, FACTS[:1], **TRACE | {"keep": "known"})
    with pytest.raises(UserError, match=r"'eiffel', which was left out: o_true is not .*; keep all traces it all the"):
        unknown.plot()
    assert unknown._repr_html_().count("<img") == 0
    assert repr(unknown).startswith("TraceResult: 0 of 1 fact kept, ")


def test_roles_are_drawn_as_their_means(traced, heads, axes):
    assert traced.plot_roles(window=3, ax=axes) is axes
    means = traced.average(by="role").to_pandas().query("window_size == 3 and role == 'last-subject'")
    lines = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == len(means)]
    assert any(np.array_equal(line, means["mean_effect"]) for line in lines)
    assert axes.get_title(loc="left") == f"{traced.run['model']} · mlp · denoise · window 3: 3 facts"
    second = Figure().subplots()
    heads.plot_roles(ax=second)
    assert second.images[0].get_array().shape == (6, 5)
    assert "last subject token" in second.get_title(loc="left")
    assert typing.get_args(Role) == ROLES
    with pytest.raises(UserError, match="role: expected a trace with a cell for each head or expert, got another"):
        traced.plot_roles(role="further")


def test_edits_are_drawn_as_their_means(edited, many, axes):
    edited.plot("rewrite", ax=axes)
    rows = edited.to_pandas()
    [line] = [line for line in axes.lines if line.get_label() == "rewrite"]
    assert line.get_ydata() == pytest.approx(rows.groupby("layer")["rewrite"].mean().tolist())
    assert len(axes.lines) == 1 + len(FACTS[:2]), "each fact, faintly"
    assert axes.get_title(loc="left").endswith("ft-1 · error-injection: 2 facts, rewrite")
    second = Figure().subplots()
    many.plot(ax=second)
    assert second.get_xlabel() == "edits in the model"
    assert second.get_title(loc="left").endswith("ft-1 · error-injection · layer 1: 2 facts")
    with pytest.raises(UserError, match="plot: expected an edit that has the score paraphrase, got none of 4 edits"):
        edited.plot("paraphrase")


def test_every_table_becomes_a_data_frame(traced, edited, many, model):
    known = ft.check_known(model, FACTS)
    for result in (traced, edited, many, known):
        for name in result.TABLES:
            table = getattr(result, name)
            assert isinstance(frame := result.to_pandas(name), pandas.DataFrame)
            assert isinstance(other := result.to_polars(table=name), polars.DataFrame)
            assert list(frame.columns) == other.columns == table.column_names
            assert len(frame) == len(other) == len(table)
        assert result.to_pandas().equals(result.to_pandas(result.TABLES[0]))
    with pytest.raises(UserError, match="to_polars: table: expected one of cells, facts, samples, routing, got 'x'"):
        traced.to_polars("x")


def test_everything_says_in_a_line_what_it_is(traced, edited, many, model, tmp_path):
    name = traced.run["model"]
    lines = [repr(one) for one in (traced, edited, many, ft.check_known(model, FACTS))]
    cells = len(traced.cells)
    assert re.fullmatch(
        rf"TraceResult: 3 facts, {name}, mlp, denoise, windows 5, 3; {cells} cells, \d+\.\d s", lines[0]
    )
    assert re.fullmatch(
        rf"EditResult: 4 edits of 2 facts, {name}, ft-1, error-injection, layers 0, 2; \d+\.\d s", lines[1]
    )
    assert re.fullmatch(
        rf"MassResult: 2 facts edited into one model, {name}, ft-1, error-injection, layer 1; \d+\.\d s", lines[2]
    )
    assert re.fullmatch(rf"KnownResult: 0 of 3 facts known, {name}, paper; \d+\.\d s", lines[3])
    store = ft.Store(tmp_path / "s.duckdb")
    store.add(traced)
    said = [*lines, repr(FACTS[0]), repr(model), repr(store), repr(ft.Stores({"a": store.path}))]
    assert not [line for line in said if "\n" in line or len(line) > 200]
    assert repr(FACTS[0]) == "Fact 'eiffel': The Eiffel Tower is located in the city of → Paris, not Rome"
    assert repr(model).startswith(f"Model {name}: llama, {model.n_layers} layers, ")
    assert repr(store) == f"Store({str(store.path)!r})"


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def test_a_notebook_shows_a_table_and_a_picture_and_no_markup_of_data(traced, edited, many, model):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    shown = traced._repr_html_()
    tags = Tags(shown).found
    assert tags.count("img") == tags.count("table") == 1
    assert "script" not in tags
    assert "&lt;script&gt;alert(1)" in shown
    for one in (edited, many, ft.check_known(model, FACTS)):
        assert Tags(one._repr_html_()).found.count("table") == 1
    assert pyplot.get_fignums() == before, "a picture that a notebook would show again"
    assert json.dumps(shown)
