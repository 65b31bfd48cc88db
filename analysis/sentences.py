"""The sentences of the report. Every number in them comes from the store."""

from collections import Counter
from typing import Any

from fasttrace.show.words import count

from .naming import GROUP, Row, group_names, in_group, number, own_way, p_text, percent, points
from .regression import FLOORED

R2_NOTE = (
    "Layer is a category. “Both” fits one straight line in the tracing effect per layer. The F-test compares “both” "
    "with the layer alone. Its p treats every edit as independent, as the paper does, although each fact is edited at "
    "several layers. “p clustered” allows the errors of one fact to correlate, and is too small where facts are few. "
    "“p Hotelling” takes each fact as one draw, and decides here. Intervals are 95 % bootstrap intervals over facts. "
    "“Left out” counts edits without a tracing effect or a score."
)


def answer(fits: list[Row], means: list[Row], curve: list[Row], mass: list[Row] | None = None) -> list[str]:
    """Sentences that answer the question of the study in the paper's terms. verdict.py answers it without them."""
    plain = [row for row in fits if row["score"] not in FLOORED.values()]
    whole = [row for row in plain if row["r2_both"] is not None and row["r2_layer"] is not None]
    sentences: list[str] = []
    if not whole:
        edited, traced = ({row["window_size"] for row in rows} for rows in (means, curve))
        if edited and traced and not edited & traced:
            sentences.append(
                f"Its edits are compared with tracing windows of {_listed(edited)} by default, and it has traces of "
                f"{_listed(traced)}: fasttrace tables --tracing-window {max(traced)} compares them."
            )
    for name, members in ways(whole):
        lead = f"For {name}: " if name else ""
        sentences += [lead + _one_answer(members[0])] if len(members) == 1 else _many_answers(members, lead)
    sentences += [*fewer_layers(whole), *outside(whole)]
    sentences += [text for text in (_best_layer(means, curve), _tracing_peak(means, curve), _mass(mass or [])) if text]
    return sentences


def _listed(sizes: set[int]) -> str:
    return " and ".join(map(str, sorted(sizes)))


def ways(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """[(name, rows)] of the sets of rows that differ only in problem, method and runs. A single set has the name ""."""
    keys = [key for key in GROUP if key not in ("problem", "method") and rows and key in rows[0]]
    sets: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        sets.setdefault(tuple(row[key] for key in keys), []).append(row)
    names = group_names([dict(zip(keys, values, strict=True)) for values in sets], always=())
    named = {tuple(value for _, value in group): name for group, name in names.items()}
    order = sorted(sets, key=lambda values: not own_way(dict(zip(keys, values, strict=True))))
    return [(named[values], sets[values]) for values in order]


def _many_answers(rows: list[Row], lead: str) -> list[str]:
    names = list(group_names(rows).values())
    layer = [row["r2_layer"] for row in rows]
    top = max(range(len(rows)), key=lambda place: rows[place]["diff"])
    over = f"{'over' if lead else 'Over'} {len(rows)} regressions"
    sure = sum(map(is_sure, rows))
    counted = "" if all(row.get("p_hotelling") is None for row in rows) else " by Hotelling's test"
    return [
        f"{lead}{over}, one per problem and method, choosing the layer explains "
        f"{percent(sum(layer) / len(layer))} of the variance of the rewrite score on average "
        f"({percent(min(layer))} to {percent(max(layer))}); adding the tracing effect raises that by at "
        f"most {points(rows[top]['diff'])} ({names[top]}; {f_text(rows[top])}{_hotelling_text(rows[top])}).",
        f"In {sure} of the {len(rows)} regressions the gain is more than chance at the 5\u00a0% level{counted}; "
        "the table below lists them all.",
    ]


def _one_answer(row: Row) -> str:
    gain = (
        f"Choosing the layer explains {percent(row['r2_layer'])} of the variance of the {row['score']} "
        f"score; adding the tracing effect raises that by {points(row['diff'])}, to "
        f"{percent(row['r2_both'])} (F-test: {f_text(row)}{_hotelling_text(row)}). "
        f"The tracing effect alone explains {percent(row['r2_effect'])}."
    )
    if p_of(row) is None:
        return gain
    verdict = "is more than chance" if is_sure(row) else "cannot be told from chance"
    return f"{gain} At the 5\u00a0% level that gain {verdict}."


def fewer_layers(rows: list[Row]) -> list[str]:
    """What the layer explains without the layers that cannot act, and among those at which editing works.

    rows: of tables.fits_with_certainty. Rows without its columns of fewer layers have no sentence.
    """
    rows = [row for row in rows if row.get("r2_layer_working") is not None]
    idle = [row for row in rows if row["n_layers_acting"] < row["n_layers"] and row["r2_layer_acting"] is not None]
    if len(rows) != 1:
        return _many_fewer_layers(rows, idle) if rows else []
    [row] = rows
    working = (
        f"mong the {count(row['n_layers_working'], 'layer')} with at least nine tenths of the best mean rewrite "
        f"score, the layer explains {percent(row['r2_layer_working'])}, and both {percent(row['r2_both_working'])} "
        f"({p_text(row['p_working'])})."
    )
    if not idle:
        return [f"A{working}"]
    there = count(row["n_layers"] - row["n_layers_acting"], "layer")
    share = percent(row["r2_layer_acting"])
    return [f"Without the {there} where {row['method'].upper()} cannot act, the layer explains {share}; a{working}"]


def _many_fewer_layers(rows: list[Row], idle: list[Row]) -> list[str]:
    top = max(rows, key=lambda row: row["diff_working"])
    name = list(group_names(rows).values())[rows.index(top)]
    said = [
        f"Among the layers with at least nine tenths of the best mean rewrite score, the layer explains "
        f"{_mean_and_range([row['r2_layer_working'] for row in rows])}; there the tracing effect adds at most "
        f"{points(top['diff_working'])} ({name}; {p_text(top['p_working'])})."
    ]
    if idle:
        lead = f"In {len(idle)} of the {len(rows)} regressions some layer cannot act. Without such layers, the layer"
        with_all, without = (_mean_and_range([row[key] for row in idle]) for key in ("r2_layer", "r2_layer_acting"))
        said.insert(0, f"{lead} explains {without} there; with them, {with_all}.")
    return said


def _mean_and_range(shares: list[float]) -> str:
    mean = percent(sum(shares) / len(shares))
    return mean if len(shares) == 1 else f"{mean} on average ({percent(min(shares))} to {percent(max(shares))})"


def outside(rows: list[Row]) -> list[str]:
    """How many tracing effects are outside 0 to 1, and how many scores are below 0, where there are any."""
    edits = count(sum(row.get("n") or 0 for row in rows), "edit")
    outside_range, below = (sum(row.get(name) or 0 for row in rows) for name in ("n_outside", "n_below_0"))
    said = []
    if outside_range:
        lows, highs = ([row[name] for row in rows if row[name] is not None] for name in ("effect_min", "effect_max"))
        ends = f"{number(min(lows), 2)} to {number(max(highs), 2)}"
        said.append(
            f"Of {edits}, {outside_range:,} have a tracing effect below 0 or above 1 (effects: {ends}), which is kept."
        )
    if below:
        said.append(f"Of {edits}, {below:,} have a score below 0, which is kept.")
    return said


def p_of(row: Row) -> float | None:
    """The p value that decides: Hotelling's, or the plain one where there are too few facts."""
    hotelling: float | None = row.get("p_hotelling")
    return row["p_value"] if hotelling is None else hotelling


def is_sure(row: Row) -> bool:
    """Whether the gain of a regression is more than chance at the 5 % level."""
    p = p_of(row)
    return p is not None and p < 0.05


def _hotelling_text(row: Row) -> str:
    if row.get("p_hotelling") is None:
        return ""
    return f"; Hotelling's test, with each fact as one draw: {p_text(row['p_hotelling'])}".replace(
        " = ", "\u00a0=\u00a0"
    )


def _best_layer(means: list[Row], curve: list[Row]) -> str | None:
    rewrite = [row for row in means if row["score"] == "rewrite" and row["mean"] is not None]
    groups = group_names(rewrite)
    if len(groups) > 1:
        return _best_layers([in_group(rewrite, group) for group in groups])
    if len(rewrite) < 2:
        return None
    best, worst = (pick(rewrite, key=lambda row: row["mean"]) for pick in (max, min))
    text = (
        f"Of the {len(rewrite)} layers edited, rewriting works best at layer {best['layer']} "
        f"(mean score {number(best['mean'])}) and worst at layer {worst['layer']} ({number(worst['mean'])})"
    )
    traced = [row for row in curve if all(row[key] == best[key] for key in ("model", "protocol", "window_size"))]
    traced = [row for row in traced if own_way(row)] or traced
    if len(group_names(traced)) == 1:
        peak = max(traced, key=lambda row: row["mean_effect"])
        text += (
            f"; the mean tracing effect is largest at layer {peak['layer']} "
            f"({number(peak['mean_effect'])}, window {peak['window_size']})"
        )
    return text + "."


def _best_layers(groups: list[list[Row]]) -> str:
    """Where rewriting works best, of many editing runs: the layers, how often, and the range of the best means."""
    best = [max(members, key=lambda row: row["mean"]) for members in groups]
    times = sorted(Counter(row["layer"] for row in best).items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"layer {layer} ({count}×)" for layer, count in times)
    low, high = (pick(row["mean"] for row in best) for pick in (min, max))
    return (
        f"Over {len(groups)} combinations of problem and method, rewriting works best at {listed}; "
        f"its mean score at these layers is {number(low)} to {number(high)}."
    )


def _tracing_peak(means: list[Row], curve: list[Row]) -> str | None:
    """The layer of the largest mean tracing effect. None where _best_layer gives it."""
    # Of several windows, use those that the edits are compared with.
    compared = {row["window_size"] for row in means} & {row["window_size"] for row in curve}
    groups = group_names(
        [row for row in curve if not compared or row["window_size"] in compared], always=("window_size",)
    )
    rewrite = [row for row in means if row["score"] == "rewrite" and row["mean"] is not None]
    if not groups or (len(rewrite) > 1 and len(group_names(rewrite)) == 1):
        return None
    found = []
    for group, name in groups.items():
        peak = max(in_group(curve, group), key=lambda row: row["mean_effect"])
        found.append(f"layer {peak['layer']} ({number(peak['mean_effect'])}, {name}, {count(peak['n'], 'fact')})")
    return f"The mean tracing effect is largest at {', '.join(found)}."


def _mass(rows: list[Row]) -> str | None:
    parts = []
    for group, name in group_names(rows).items():
        last = max(in_group(rows, group), key=lambda row: row["n_edits"])
        many, score = count(last["n_edits"], "fact"), number(last["rewrite"])
        parts.append(f"{many} ({name}, layer {last['layer']}) it is {score}")
    return f"Mean rewrite score of facts edited into one model: after {'; after '.join(parts)}." if parts else None


def f_text(row: Row) -> str:
    if row["f_value"] is None:
        return "no F-test possible"
    text = f"F({row['df_num']:.0f}, {row['df_den']:.0f}) = {number(row['f_value'], 2)}, {p_text(row['p_value'])}"
    return text.replace(", ", ",\u00a0", 1).replace(" = ", "\u00a0=\u00a0")


def byline(runs: list[Row], names: list[Row]) -> str:
    main = [run for run in runs if run["kind"] in ("trace", "edit", "mass")]
    protocols = sorted({run["protocol"] for run in main})
    days = sorted({run["created_at"].strftime("%Y-%m-%d") for run in main})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    facts = [count(len(names), "fact")] if names else []
    words = [*facts, f"{' and '.join(protocols)} protocol", count(len(main), "run")]
    return f"{' · '.join(words)}, {when}"


def pick_note(shown: int, there: int) -> str:
    """The note above the facts. shown: number of facts embedded, of `there` in the store."""
    text = "Add #fact= and a fact’s id to this file’s address to open the file at that fact."
    if shown == there:
        return text
    return f"{text} The first {shown:,} of {there:,} facts by subject are embedded here; all are in the store."
