"""The first screen of the report: the answer in a sentence without terms of the trade, how sure it is, what weakens it.

Every word is chosen by the store's numbers; sentences.py has the same in the terms of the paper."""

from collections.abc import Sequence
from typing import NamedTuple

from fasttrace.show.words import count, title_of

from .naming import Row, group_names, own_way, p_text, percent, points
from .regression import FLOORED
from .sentences import is_sure, outside, p_of, ways

LITTLE = 0.1
"""A share of the variance. Where tracing adds less than it in every regression, it tells little."""

_KNOWING = "nowing where tracing finds a fact"


class Verdict(NamedTuple):
    """answer: one sentence. sure: how sure it is. weak: what weakens it. The last two are empty without regressions."""

    answer: str
    sure: list[str]
    weak: list[str]


def verdict(fits: Sequence[Row], means: Sequence[Row], curve: Sequence[Row]) -> Verdict:
    """The answer of a store, from its regressions of the rewrite score (tables.fits_with_floor).

    means, curve: the mean scores by edited layer and the mean tracing effects, which say what there is where nothing
    can be compared. Of several ways of tracing, the paper's own decides where there is one.
    """
    whole = [
        row
        for row in fits
        if row["score"] not in FLOORED.values() and row["r2_both"] is not None and row["r2_layer"] is not None
    ]
    if not whole:
        return Verdict(_no_answer(means, curve), [], [])
    main = [row for row in whole if own_way(row)] or ways(whole)[0][1]
    others = [row for row in whole if row not in main]
    return Verdict(_answer(main), _how_sure(main), _weak(main, others, curve))


def _no_answer(means: Sequence[Row], curve: Sequence[Row]) -> str:
    why = "no edit of it is compared with a trace of the same fact, model and window"
    if not means:
        why = "it holds no edit of one fact at a time"
    elif not curve:
        why = "it holds edits and no traces"
    return f"This store does not say whether k{_KNOWING} tells you where to edit it: {why}."


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _answer(rows: Sequence[Row]) -> str:
    most = max(row["diff"] for row in rows)
    here = f"in this store, {'on average, ' * (len(rows) > 1)}"
    layer = f"{here}which layer is edited accounts for {percent(_mean(rows, 'r2_layer'))} of the differences"
    layer += " in how well edits work"
    gain = f"and where tracing finds the fact adds {points(_mean(rows, 'diff'))} to that"
    gain += f" ({points(most)} at most)" if len(rows) > 1 else ""
    sure = [row for row in rows if is_sure(row)]
    if all(p_of(row) is None for row in rows):
        what = f"k{_KNOWING} tells you where to edit it"
        return f"This store has too few facts to say whether {what}: {layer}, {gain}."
    if _beats_the_layer(rows):
        effect = percent(_mean(rows, "r2_effect"))
        return (
            f"K{_KNOWING} tells you more about where to edit it than the layer does: {here}where tracing finds the "
            f"fact accounts for {effect} of the differences in how well edits work, and which layer is edited for "
            f"{percent(_mean(rows, 'r2_layer'))}."
        )
    if not sure:
        return f"K{_KNOWING} does not tell you where to edit it: {layer}, {gain}, no more than chance would."
    if max(row["diff"] for row in sure) < LITTLE:
        return f"K{_KNOWING} tells you little about where to edit it: {layer}, {gain}."
    return f"K{_KNOWING} helps to tell where to edit it: {layer}, {gain}."


def _beats_the_layer(rows: Sequence[Row]) -> bool:
    """Whether the effect alone explains more than the layer alone in most regressions, with intervals apart."""
    known = [row for row in rows if row.get("r2_effect_low") is not None]
    return 2 * sum(row["r2_effect_low"] > row["r2_layer_high"] for row in known) > len(rows)


def _how_sure(rows: Sequence[Row]) -> list[str]:
    tested = [row for row in rows if p_of(row) is not None]
    if not tested:
        return ["No test is possible with so few facts."]
    once = all(row.get("p_hotelling") is not None for row in tested)
    test = "Hotelling’s test, in which each fact counts once" if once else "an F-test, in which each edit counts"
    if len(rows) == 1:
        verb = "more than chance would add" if is_sure(rows[0]) else "not more than chance would add"
        said = [f"At the 5\u00a0% level that is {verb} ({test}: {p_text(p_of(rows[0]))})."]
    else:
        sure = sum(map(is_sure, tested))
        said = [
            f"In {sure} of {len(tested)} combinations of problem and method it adds more than chance would, at the "
            f"5\u00a0% level ({test}); by chance alone, {_by_chance(len(tested))} would."
        ]
    top = max(rows, key=lambda row: row["diff"])
    if top.get("diff_low") is not None:
        which = f"The largest gain ({_name(rows, top)})" if len(rows) > 1 else "The gain"
        said.append(
            f"{which} is {points(top['diff'])}; between {points(top['diff_low'])} and {points(top['diff_high'])} in "
            "95\u00a0% of resamples of the facts."
        )
    return said


def _by_chance(tests: int) -> str:
    expected = 0.05 * tests
    return f"about {expected:.0f}" if expected >= 0.5 else "none or one"


def _name(rows: Sequence[Row], one: Row) -> str:
    return list(group_names(rows).values())[list(rows).index(one)]


def _weak(rows: Sequence[Row], others: Sequence[Row], curve: Sequence[Row]) -> list[str]:
    models = sorted({title_of(row["model"]) for row in rows if row.get("model")})
    sources = sorted({row["source"] for row in rows if row.get("source")})
    said = []
    if any(row.get("n_facts") for row in rows):
        facts = count(max(row.get("n_facts") or 0 for row in rows), "fact")
        known = f" ({', '.join(sources)})" if sources else ""
        told = f" and {count(len(models), 'model')}, {' and '.join(models)}" if models else ""
        said.append(f"It rests on {facts}{known}{told}.")
    total = 1 + max((row["layer"] for row in curve if row["model"] == rows[0].get("model")), default=-1)
    edited = max(row.get("n_layers") or 0 for row in rows)
    if len(models) == 1 and 0 < edited < total:
        said.append(f"Edits were made at {edited} of {total} layers.")
    working = [row for row in rows if row.get("r2_layer_working") is not None]
    if working and (among := _mean(working, "r2_layer_working")) < 0.8 * _mean(rows, "r2_layer"):
        most = max(row["diff_working"] for row in working)
        said.append(
            "Part of what the layer accounts for is that edits at some layers fail. Among the layers where edits work, "
            f"it accounts for {percent(among)}, and tracing adds {points(most)}{' at most' * (len(working) > 1)}."
        )
    if others:
        top = max(others, key=lambda row: row["diff"])
        larger = "more" if top["diff"] > max(row["diff"] for row in rows) else "no more"
        said.append(
            f"Traced in other ways, a fact’s place adds {larger}: {points(top['diff'])} at most ({_way(top)})."
        )
    if left := max(row.get("n_facts_left_out") or 0 for row in rows):
        said.append(f"{count(left, 'fact')} had no tracing effect or no score.")
    return [*said, *outside(list(rows)), "Only a straight line was looked for: a bend would not be seen."]


def _way(one: Row) -> str:
    """How the facts of a regression were traced, and its problem and method."""
    how = f"{one.get('module') or 'mlp'} by {one.get('localization') or 'denoise'}"
    how += f" in {one['metric']}" if one.get("metric", "probability") != "probability" else ""
    return f"{how}; {one['problem']} · {one['method']}"
