"""What the report says in sentences; every number in them comes from the store."""

from .naming import Row, group_names, number, p_text, percent, plural, points

R2_NOTE = (
    "Layer is a category; in “both” the tracing effect enters as one straight line a layer. The F-test "
    "compares “both” with the layer alone and takes every edit as independent, although each fact is edited "
    "at several layers. Left out: edits without a tracing effect or a score."
)


def answer(fits: list[Row], means: list[Row], curve: list[Row]) -> list[str]:
    """The study's question answered in sentences whose every number comes from the store."""
    whole = [row for row in fits if row["r2_both"] is not None and row["r2_layer"] is not None]
    said: list[str] = []
    if not whole:
        said.append(
            "The store does not yet hold enough edits of traced facts for a regression, so it does not say "
            "whether localization informs editing."
        )
    elif len(whole) == 1:
        said.append(_one_answer(whole[0]))
    else:
        names = list(group_names(whole).values())
        layer = [row["r2_layer"] for row in whole]
        top = max(range(len(whole)), key=lambda place: whole[place]["diff"])
        said.append(
            f"Over {len(whole)} regressions, one a problem and method, choosing the layer explains "
            f"{percent(sum(layer) / len(layer))} of the variance of the rewrite score on average "
            f"({percent(min(layer))} to {percent(max(layer))}); adding the tracing effect raises that by at "
            f"most {points(whole[top]['diff'])} ({names[top]}; {f_text(whole[top])})."
        )
        sure = sum(row["p_value"] is not None and row["p_value"] < 0.05 for row in whole)
        said.append(
            f"In {sure} of the {len(whole)} the gain is more than chance at the 5\u00a0% level; "
            "the table below has each."
        )
    best = _best_layer(means, curve)
    if best:
        said.append(best)
    return said


def _one_answer(row: Row) -> str:
    gain = (
        f"Choosing the layer explains {percent(row['r2_layer'])} of the variance of the {row['score']} "
        f"score; adding the tracing effect raises that by {points(row['diff'])}, to "
        f"{percent(row['r2_both'])} (F-test: {f_text(row)}). "
        f"The tracing effect alone explains {percent(row['r2_effect'])}."
    )
    if row["p_value"] is None:
        return gain
    if row["p_value"] >= 0.05:
        return gain + " At the 5\u00a0% level that gain cannot be told from chance."
    return gain + " At the 5\u00a0% level that gain is more than chance."


def _best_layer(means: list[Row], curve: list[Row]) -> str | None:
    rewrite = [row for row in means if row["score"] == "rewrite" and row["mean"] is not None]
    groups = group_names(rewrite)
    if len(groups) != 1 or len(rewrite) < 2:
        return None
    best, worst = (pick(rewrite, key=lambda row: row["mean"]) for pick in (max, min))
    said = (
        f"Of the {len(rewrite)} layers edited, rewriting works best at layer {best['layer']} "
        f"(mean score {number(best['mean'])}) and worst at layer {worst['layer']} ({number(worst['mean'])})"
    )
    traced = [
        row for row in curve if all(row[key] == best[key] for key in ("model", "protocol", "window_size"))
    ]
    if len(group_names(traced)) == 1:
        peak = max(traced, key=lambda row: row["mean_effect"])
        said += (
            f"; tracing finds most at layer {peak['layer']} "
            f"(mean effect {number(peak['mean_effect'])}, window {peak['window_size']})"
        )
    return said + "."


def f_text(row: Row) -> str:
    if row["f_value"] is None:
        return "no F-test possible"
    text = (
        f"F({row['df_num']:.0f}, {row['df_den']:.0f}) = {number(row['f_value'], 2)}, {p_text(row['p_value'])}"
    )
    return text.replace(", ", ",\u00a0", 1).replace(" = ", "\u00a0=\u00a0")


def byline(runs: list[Row], names: list[Row]) -> str:
    main = [run for run in runs if run["kind"] in ("trace", "edit")]
    protocols = sorted({run["protocol"] for run in main})
    days = sorted({run["created_at"].strftime("%Y-%m-%d") for run in main})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    words = [plural(len(names), "fact"), f"{' and '.join(protocols)} protocol", plural(len(main), "run")]
    return f"{' · '.join(words)}, {when}"


def pick_note(shown: int, there: int) -> str:
    text = (
        "Colour is p_restored, the probability of the true target after restoring a window of layers at one "
        "token. Hover over a cell, or move with the arrow keys, to read it. Add #fact= and a fact’s id to "
        "this file’s address to open it there."
    )
    return (
        text
        if shown == there
        else f"{text} The first {shown} of {there} facts by subject are embedded here; all are in the store."
    )
