"""Exhibits of tracing methods: mean indirect effects by token role, and noise compared with counterfactual prompts."""

from collections.abc import Sequence

from fasttrace.show.roles import effect_label
from fasttrace.show.words import ROLE_WORDS, count
from fasttrace.store import Readable

from . import chart
from .chart import Panel, Series
from .exhibit import COUNT, VALUE, Column, Exhibit, Source, Table, facets, keys_of, or_dash, run_ids, several, two
from .figures import role_effects
from .naming import Row, group_names, heading, in_group, number, percent
from .relation import relation


def roles(store: Readable) -> Exhibit | None:
    note = "tracing/roles.py adds the bands"
    source = Source(role_effects, (), "effects_by_role", note=note)
    table = source.table(store)
    rows = [row for row in table.to_pylist() if row["head"] is None]
    if not rows:
        return None
    panels = [
        _role_panel(in_group(rows, group), name)
        for group, name in group_names(rows, always=("module", "localization", "window_size")).items()
    ]
    window = [] if several(rows, "window_size") else [Column("window_size", "window", str, numeric=True)]
    columns = [
        *keys_of(rows),
        *window,
        Column("role", "role", ROLE_WORDS.__getitem__, choose=True),
        Column("layer", "layer", str, numeric=True),
        Column("n", "facts", **COUNT),
        Column("mean_effect", "mean effect", **VALUE),
        Column("sem_effect", "standard error", **VALUE),
        Column("low", "95 % from", **VALUE),
        Column("high", "to", **VALUE),
    ]
    heads = " Runs of single heads are in the CSV and in fasttrace figures roles." if len(rows) < len(table) else ""
    return Exhibit(
        key="roles",
        section="tracing",
        title="Mean indirect effect by token role",
        caption="By how much a cell moves the traced metric, in its own units: the mean over a fact’s tokens of the "
        f"role, then over facts, with its 95 % confidence band (Meng et al. 2022, Figures 2 and 3).{heads}",
        source=source,
        data=table,
        runs=run_ids(rows),
        table=Table("Mean indirect effects.", columns, rows, folded=True),
        panels=panels,
        facets=facets(panels, ("module", "localization", "window")),
    )


def _band(row: Row) -> str:
    """The ends of the confidence band, or nothing where there are too few facts for one."""
    return "" if row["low"] is None else f" [{number(row['low'])}, {number(row['high'])}]"


def _role_panel(rows: Sequence[Row], name: str) -> Panel:
    """One line per role, with the 95 % confidence band."""
    highest = max(row["layer"] for row in rows)
    x = chart.across(0, highest, "layer at the window’s centre", chart.layer_ticks(range(highest + 1)))
    ends = [end for row in rows for end in (row["mean_effect"], row["low"], row["high"]) if end is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    y = chart.upward(low, max(high, low + 1e-6), effect_label(rows[0]["metric"]))
    series: list[Series] = []
    for place, role in enumerate(ROLE_WORDS):
        points = [
            (
                row["layer"],
                row["mean_effect"],
                None if row["high"] is None else row["high"] - row["mean_effect"],
                f"{ROLE_WORDS[role]}, layer {row['layer']}: mean indirect effect {number(row['mean_effect'])}"
                f"{_band(row)}, {count(row['n'], 'fact')}",
            )
            for row in rows
            if row["role"] == role
        ]
        if points:
            series.append(chart.line(ROLE_WORDS[role], place, x, y, points, as_band=True))
    shown = {
        "module": rows[0]["module"],
        "localization": rows[0]["localization"],
        "window": str(rows[0]["window_size"]),
    }
    summary = f"{name}: mean indirect effect by layer, one line per token role"
    return Panel(title=name, kind="lines", x=x, y=y, series=series, summary=summary, facets=shown)


def corruptions(store: Readable) -> Exhibit | None:
    source = Source(relation, ("corruption_correlations",), "corruption_correlations")
    table = source.table(store)
    rows = table.to_pylist()
    if not rows:
        return None
    keys = ("model", "protocol", "module", "method", "metric", "tokens", "window_size", "noise_run_id")
    told = several(rows, *keys, "counterfactual_run_id")
    columns = [
        *(Column(key, heading(key), or_dash, numeric=key == "window_size", choose=True) for key in told),
        Column("layer", "layer", lambda layer: "all" if layer is None else str(layer), numeric=True),
        Column("n", "pairs", **COUNT),
        Column("pearson", "Pearson’s ρ", two, numeric=True),
        Column("spearman", "Spearman’s ρ", two, numeric=True),
        Column("mean_noise", "mean by noise", **VALUE),
        Column("mean_counterfactual", "by counterfactuals", **VALUE),
        Column("same_peak", "same peak layer", lambda share: "–" if share is None else percent(share), numeric=True),
    ]
    return Exhibit(
        key="corruptions",
        section="tracing",
        title="Noise against counterfactual prompts",
        caption="Whether the effects that noise finds are those that counterfactual prompts find: their correlation "
        "over facts at each layer and over all facts and layers, and the share of facts whose effect is largest at the "
        "same layer.",
        source=source,
        data=table,
        runs=list(dict.fromkeys(row[key] for row in rows for key in ("noise_run_id", "counterfactual_run_id"))),
        table=Table("Correlation of the effects of two corruptions.", columns, rows),
    )
