"""The figure of mean indirect effects by token role: layers across, one line or one heatmap a role."""

import math

import pyarrow as pa
from matplotlib.figure import Figure, SubFigure

from fasttrace.show.roles import LAYER_LABEL, draw_role_heads, draw_role_lines, effect_label
from fasttrace.show.style import INK, color_bar, new_figure, two_lines
from fasttrace.show.words import ROLE_WORDS, count, title_of

from .draw import need_rows
from .naming import Row, group_names, in_group, own_way

PANELS = ("block", "mlp", "attn", "head", "expert")  # the order of the modules' panels


def draw_roles(averages: pa.Table) -> Figure:
    """Mean indirect effects by token role, layer and head, or expert (Meng et al. 2022, Figures 2 and 3).

    A run of heads or experts is a heatmap per role, these down and layers across. Every other run is one panel with a
    line per role, labelled at its end with the number of facts that have such a token. Its band is the 95 % confidence
    interval of the mean over facts.
    averages: the rows of sql/effects_by_role.sql, with the bands of `tracing.roles.with_bands`.
    """
    rows = need_rows(averages, "traces at single tokens")
    names = group_names(rows, always=("module", "localization", "metric", "window_size"))
    order = sorted(
        names, key=lambda group: (PANELS.index(dict(group)["module"]), not own_way(dict(group)), names[group])
    )
    heights = [4.6 if _has_heads(in_group(rows, group)) else 3.0 for group in order]
    figure = new_figure(9.0, 0.5 + sum(heights))
    parts = figure.subfigures(len(order), 1, height_ratios=heights, squeeze=False).flat
    for part, group in zip(parts, order, strict=True):
        members = in_group(rows, group)
        part.set_facecolor("none")
        facts = max(row["n"] for row in members)
        title = f"{names[group]}: {count(facts, 'fact')}, {title_of(members[0]['model'])}"
        if _has_heads(members):
            _heatmaps(part, members, title)
        else:
            draw_role_lines(part.subplots(), members, members[0]["metric"], title)
    return figure


def _has_heads(rows: list[Row]) -> bool:
    return any(row["head"] is not None for row in rows)


def _heatmaps(part: Figure | SubFigure, rows: list[Row], title: str) -> None:
    part.suptitle(title, color=INK, fontsize=10, x=0.01, ha="left", parse_math=False)
    roles = [role for role in ROLE_WORDS if any(row["role"] == role for row in rows)]
    columns = min(3, len(roles))
    panels = part.subplots(math.ceil(len(roles) / columns), columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for place, axes in enumerate(panels.flat):
        if place >= len(roles):
            axes.set_visible(False)
            continue
        image = draw_role_heads(axes, rows, roles[place], ROLE_WORDS[roles[place]])
    part.supxlabel(LAYER_LABEL, color=INK, fontsize=10)
    part.supylabel(rows[0]["module"], color=INK, fontsize=10)
    if image is not None:
        color_bar(part, image, list(panels.flat), two_lines(effect_label(rows[0]["metric"]), " on "))
