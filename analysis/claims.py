"""The paper's claims, each with a verdict from a store's results.

A verdict follows from the ends of 95 % intervals, never from an estimate alone. A claim is confirmed if every number in
its intervals agrees with it, refuted if none does, and otherwise not decided.

To add a claim, write a function Evidence -> Finding and name it in CLAIMS.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any

import pyarrow as pa
from scipy import stats

from fasttrace.settings.arguments import checked
from fasttrace.settings.kinds import MOST_ITEMS, Bounds
from fasttrace.show.words import count
from fasttrace.store import Stored
from fasttrace.windows import default_layer

from .evidence import Cell, Evidence, NoEvidence, evidence_of
from .naming import Row, number, p_text
from .paper import METHODS, PROBLEMS
from .relation import one_reading

CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "not decided"
MOST_GAIN = 0.032  # "at most an additional 3.2% of the variance" (paper, section 5.3)
NEAR_ZERO = 0.1  # a correlation above 0 counts as positive, and one below this as near zero


@dataclass(frozen=True)
class Finding:
    """theirs, ours: numbers with their intervals, as text. verdict: CONFIRMED, REFUTED or OPEN."""

    theirs: str
    ours: str
    verdict: str


@checked
@one_reading()
def claims(
    store: Stored,
    *,
    model: str | None = None,
    protocol: str | None = None,
    window_size: int | None = None,
    resamples: Annotated[int, Bounds(200, most=MOST_ITEMS)] = 1000,  # the ends of fewer would decide a verdict
) -> pa.Table:
    """The paper's claims, what the store says of each, and a verdict.

    model, protocol: whose results, if the store has several. window_size: tracing window in layers that edits are
    compared with where a claim names none; None: that of each edit. resamples: bootstrap samples of each interval, at
    least 200.
    Columns: claim, source (of the paper), paper, here, verdict (confirmed, refuted, not decided, or no data).
    Raises StoreError where the store has no traced edits, or those of several models or protocols.
    """
    evidence = evidence_of(store, model, protocol, window_size, resamples)
    rows = []
    for one in CLAIMS:
        try:
            found = one.found(evidence)
            rows.append((one.text, one.source, found.theirs, found.ours, found.verdict))
        except NoEvidence as why:
            rows.append((one.text, one.source, "", str(why), "no data"))
    names = ("claim", "source", "paper", "here", "verdict")
    return pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})


# -- verdicts ---------------------------------------------------------------------------------------------


def _spread(value: float | None, low: float | None, high: float | None) -> str:
    return number(value) + ("" if low is None else f" [{number(low)}, {number(high)}]")


def _share(row: Row, name: str) -> str:
    return _spread(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _named(cell: Cell) -> str:
    return f"{cell[0]}, {cell[1]}"


def _at_most(fits: dict[Cell, Row], most: float, theirs: str) -> Finding:
    """Whether the tracing effect adds at most `most` to R² in every cell. A cell refutes it only if its gain is also
    more than chance by Hotelling's test (Bonferroni), because a gain is never negative."""
    sure = {c: row for c, row in fits.items() if row["diff_low"] is not None and row["p_hotelling"] is not None}
    over = {c: row for c, row in sure.items() if row["diff_low"] > most and row["p_hotelling"] < 0.05 / len(fits)}
    below = len(sure) == len(fits) and all(row["diff_high"] <= most for row in sure.values())
    verdict = REFUTED if over else CONFIRMED if below else OPEN
    ours = f"at most {_largest_gain(fits)}; {count(len(fits), 'regression')}"
    if over:
        ours += f", of which {len(over)} refute{'s' * (len(over) == 1)} it"
        if (largest := _largest_gain(over)) not in ours:
            ours += f", the largest {largest}"
    return Finding(theirs, ours, verdict)


def _largest_gain(fits: dict[Cell, Row]) -> str:
    cell, row = max(fits.items(), key=lambda item: item[1]["diff"])
    return f"{_share(row, 'diff')} ({_named(cell)}; {_p_text(row)})"


def _p_text(row: Row) -> str:
    return f"Hotelling's {p_text(row['p_hotelling'])}"


def _fisher(row: Row, tests: int) -> tuple[float, float]:
    """The interval of ρ at 95 %, for one of `tests` intervals that are to hold together (Bonferroni)."""
    half = stats.norm.ppf(1 - 0.025 / tests) / math.sqrt(row["n"] - 3)
    centre = math.atanh(max(-1 + 1e-15, min(1 - 1e-15, row["rho"])))
    return math.tanh(centre - half), math.tanh(centre + half)


def _not_positive(rows: Sequence[Row], theirs: str) -> Finding:
    """Whether no layer has a positive correlation."""
    ends = [_fisher(row, len(rows)) for row in rows]
    top = max(range(len(rows)), key=lambda place: rows[place]["rho"])
    verdict = (
        REFUTED if any(low > 0 for low, _ in ends) else CONFIRMED if all(high < NEAR_ZERO for _, high in ends) else OPEN
    )
    many = f"at most, of {len(rows)} layers, " if len(rows) > 1 else ""
    return Finding(theirs, f"ρ {many}{_spread(rows[top]['rho'], *ends[top])} at layer {rows[top]['layer']}", verdict)


# -- claims -----------------------------------------------------------------------------------------------


def _layer_over_effect(evidence: Evidence) -> Finding:
    row = evidence.fits().get(("error-injection", "rome"))
    if row is None or row["r2_layer_low"] is None:
        raise NoEvidence("no edits by ROME for error injection, or too few facts")
    ours = f"{_share(row, 'r2_layer')} against {_share(row, 'r2_effect')}"
    return Finding("0.947 against 0.016", f"{ours}{_without_idle([row])}", _over(row))


def _without_idle(rows: Sequence[Row]) -> str:
    """What the layer explains without the layers that cannot act, where there are any, in parentheses."""
    if all(row["n_layers_acting"] == row["n_layers"] for row in rows):
        return ""
    mean = _mean_of([row for row in rows if row["r2_layer_acting"] is not None], "r2_layer_acting")
    return f" ({number(mean)} without layers that cannot act)"


def _of_all(fits: dict[Cell, Row], found: Finding) -> Finding:
    """A claim about every problem and method is not confirmed by some of them."""
    count = len(PROBLEMS) * len(METHODS)
    return replace(found, verdict=OPEN) if found.verdict == CONFIRMED and len(fits) < count else found


def _over(row: Row) -> str:
    if row["r2_layer_low"] is None:
        return OPEN
    if row["r2_layer_low"] > row["r2_effect_high"]:
        return CONFIRMED
    return REFUTED if row["r2_effect_low"] > row["r2_layer_high"] else OPEN


def _layer_over_effect_everywhere(evidence: Evidence) -> Finding:
    verdicts = [_over(row) for row in evidence.fits().values()]
    count = verdicts.count(CONFIRMED)
    verdict = CONFIRMED if count == len(verdicts) else REFUTED if REFUTED in verdicts else OPEN
    found = Finding("in 20 of 20 regressions", f"in {count} of {len(verdicts)}, intervals apart", verdict)
    return _of_all(evidence.fits(), found)


def _most_by_layer(evidence: Evidence) -> Finding:
    rows = list(evidence.fits().values())
    value, low, high = (_mean_of(rows, name) for name in ("r2_layer", "r2_layer_low", "r2_layer_high"))
    verdict = OPEN if low is None or high is None else CONFIRMED if low >= 0.5 else REFUTED if high < 0.5 else OPEN
    ours = f"{_spread(value, low, high)} on average of {count(len(rows), 'regression')}{_without_idle(rows)}"
    return _of_all(evidence.fits(), Finding("0.585 on average", ours, verdict))


def _mean_of(rows: Sequence[Row], name: str) -> float | None:
    """The mean of a number, None where a row lacks it."""
    values = [row[name] for row in rows]
    return None if None in values else sum(values) / len(values)


def _small_gain(score: str, most: float, theirs: str, **choice: Any) -> Callable[[Evidence], Finding]:
    def found(evidence: Evidence) -> Finding:
        fits = evidence.fits(score, **choice)
        return _of_all(fits, _at_most(fits, most, theirs))

    return found


def _forcing_gains_most(evidence: Evidence) -> Finding:
    fits = evidence.fits()
    forced = [cell for cell in (("fact-forcing", "ft-1"), ("fact-forcing", "ft-5")) if cell in fits]
    others = [row for cell, row in fits.items() if cell not in forced]
    if len(forced) < 2 or not others or any(fits[cell]["diff_low"] is None for cell in forced):
        raise NoEvidence("no fact forcing with fine-tuning beside other edits")
    least = min(fits[cell]["diff_low"] for cell in forced)
    sure = all(fits[cell]["p_hotelling"] is not None and fits[cell]["p_hotelling"] < 0.05 for cell in forced)
    above = all(row["diff_high"] is not None and row["diff_high"] < least for row in others)
    most = max(fits[cell]["diff_high"] for cell in forced)
    beaten = any(row["diff_low"] is not None and row["diff_low"] > most for row in others)
    top = max(fits, key=lambda cell: fits[cell]["diff"])
    ours = " and ".join(f"{_share(fits[cell], 'diff')} ({cell[1]}, {_p_text(fits[cell])})" for cell in forced)
    verdict = CONFIRMED if above and sure else REFUTED if beaten else OPEN
    return Finding(
        "0.027 and 0.032, p < 1e-4", f"{ours}; the largest is {_share(fits[top], 'diff')} ({_named(top)})", verdict
    )


def _not_positive_at_own_layer(score: str, theirs: str, **choice: Any) -> Callable[[Evidence], Finding]:
    def found(evidence: Evidence) -> Finding:
        rows = evidence.correlations(score, localization="denoise", tokens="all", **choice)
        nearest = min(
            rows,
            key=lambda row: (abs(row["layer"] - default_layer(evidence.n_layers, name=evidence.model)), row["layer"]),
        )
        return _not_positive([nearest], theirs)

    return found


def _not_positive_anywhere(score: str, theirs: str, **choice: Any) -> Callable[[Evidence], Finding]:
    return lambda evidence: _not_positive(evidence.correlations(score, **choice), theirs)


def _half(row: Row, name: str = "sem") -> float | None:
    """Half of the 95 % interval of a mean, None where one fact alone gives it."""
    return None if row[name] is None else 1.96 * row[name]


def _apart_by(pairs: Sequence[tuple[float, float | None]]) -> str:
    """Whether all differences, each with half of its interval, are above 0."""
    if any(half is None for _, half in pairs):
        return OPEN
    if all(d > (half or 0.0) for d, half in pairs):
        return CONFIRMED
    return REFUTED if any(d < -(half or 0.0) for d, half in pairs) else OPEN


def _hypot(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else math.hypot(one, other)


def _plus_minus(value: float, half: float | None) -> str:
    return number(value) + ("" if half is None else f" ± {number(half)}")


def _grows_with_window(evidence: Evidence) -> Finding:
    by_size: dict[int, list[Row]] = {}
    for row in evidence.curve():
        by_size.setdefault(row["window_size"], []).append(row)
    if len(by_size) < 2:
        raise NoEvidence("traces of one window size")
    means = {}
    for size, rows in sorted(by_size.items()):
        halves = [_half(row, "sem_effect") for row in rows]
        # The layers of one fact are not independent, so their errors are averaged as if they were one.
        half = None if None in halves else sum(filter(None, halves)) / len(halves)
        means[size] = sum(row["mean_effect"] for row in rows) / len(rows), half
    steps = [(means[b][0] - means[a][0], _hypot(means[a][1], means[b][1])) for a, b in pairwise(means)]
    ours = ", ".join(f"{_plus_minus(*mean)} (window {size})" for size, mean in means.items())
    return Finding("grows with the window", ours, _apart_by(steps))


def _rome_succeeds(evidence: Evidence) -> Finding:
    last = evidence.n_layers - 1
    rows = [row for row in evidence.means("rewrite") if row["method"] == "rome" and row["layer"] != last]
    if not rows:
        raise NoEvidence("no edits by ROME below the last layer")
    above = [(row["mean"] - 0.96, _half(row)) for row in rows]
    worst = min(rows, key=lambda row: row["mean"])
    least = f"layer {worst['layer']}, the least of {count(len(rows), 'layer')}"
    ours = f"{_plus_minus(worst['mean'], _half(worst))} at {least}"
    return Finding("above 0.96", ours, _apart_by(above))


def _lower_errors(evidence: Evidence) -> Finding:
    row = evidence.fits().get(("error-injection", "rome"))
    if row is None or row["rmse_layer"] is None:
        raise NoEvidence("no edits by ROME for error injection")
    ours = "; ".join(
        f"{name.upper()} {number(row[f'{name}_layer'])} against {number(row[f'{name}_effect'])}"
        for name in ("rmse", "mae")
    )
    # The ratio of the RMSEs is that of the residuals, so its interval is that of R².
    return Finding("RMSE 0.073 against 0.315; MAE 0.020 against 0.206", ours, _over(row))


def _essence_later(evidence: Evidence) -> Finding:
    by_method: dict[str, list[Row]] = {}
    for row in sorted(evidence.means("essence"), key=lambda row: row["layer"]):
        by_method.setdefault(row["method"], []).append(row)
    ends = {method: (rows[0], rows[-1]) for method, rows in by_method.items() if len(rows) > 1}
    if not ends:
        raise NoEvidence("no essence scores at several layers")
    steps = {method: (b["mean"] - a["mean"], _hypot(_half(a), _half(b))) for method, (a, b) in ends.items()}
    ours = ", ".join(f"{method} {_plus_minus(*step)}" for method, step in steps.items())
    found = _apart_by(list(steps.values()))
    return Finding("later layers generally preferable", f"last less first edited layer: {ours}", found)


@dataclass(frozen=True)
class Claim:
    text: str
    source: str
    found: Callable[[Evidence], Finding]


CLAIMS = (
    Claim(
        "The edited layer explains more of ROME's rewrite score than the tracing effect does",
        "Table 1",
        _layer_over_effect,
    ),
    Claim("So it does for every problem and method", "Table 3", _layer_over_effect_everywhere),
    Claim("The layer explains most of the variance of the rewrite score", "section 5.3", _most_by_layer),
    Claim(
        "Beside the layer, the tracing effect adds at most 0.032",
        "Table 3",
        _small_gain("rewrite", MOST_GAIN, "at most 0.032"),
    ),
    Claim("It adds most to fact forcing with fine-tuning", "section 5.3", _forcing_gains_most),
    Claim(
        "To the paraphrase score it adds less than 0.03", "Table 4", _small_gain("paraphrase", 0.03, "at most 0.027")
    ),
    Claim(
        "To the neighborhood score it adds at most 0.02", "Table 5", _small_gain("neighborhood", 0.02, "at most 0.020")
    ),
    Claim("To the overall score it adds at most 0.02", "Table 6", _small_gain("overall", 0.02, "at most 0.017")),
    Claim(
        "Where the effects are concentrated in few layers, it adds no more",
        "Table 2, Appendix B",
        _small_gain("rewrite", MOST_GAIN, "at most 0.032", subset="concentrated"),
    ),
    Claim(
        "Nor does it with a tracing window of 10",
        "Figure 12",
        _small_gain("rewrite", MOST_GAIN, "nearly identical", window_size=10),
    ),
    Claim(
        "At the default layer, ROME's success does not grow with the tracing effect",
        "Figure 4",
        _not_positive_at_own_layer("rewrite", "ρ = −0.13"),
    ),
    Claim(
        "Nor does it in the metrics of Meng et al.",
        "Figure 14",
        _not_positive_at_own_layer("magnitude", "ρ = −0.006", effect_at="last-subject-absolute"),
    ),
    Claim(
        "At no layer does it grow with the effect at the last subject token",
        "Figure 16",
        _not_positive_anywhere("rewrite", "none", effect_at="last-subject", localization="denoise", tokens="all"),
    ),
    Claim(
        "Nor with the effect of zeroing the subject",
        "Figure 21",
        _not_positive_anywhere("rewrite", "near zero", localization="zero", tokens="whole-subject"),
    ),
    Claim(
        "Nor does ROME's overall score",
        "Figure 22",
        _not_positive_anywhere("overall", "near zero", localization="zero", tokens="whole-subject"),
    ),
    Claim("Regressions on the layer have lower errors than on the effect", "Table 7", _lower_errors),
    Claim("Tracing effects grow with the window", "Figure 10", _grows_with_window),
    Claim("ROME's mean rewrite score is above 0.96 at all edited layers but the last", "section 4.1", _rome_succeeds),
    Claim("Edits of later layers keep more of the essence", "Figure 8", _essence_later),
)


def lines(table: pa.Table) -> Iterator[str]:
    """The claims as paragraphs, because sentences are too long for columns."""
    for place, row in enumerate(table.to_pylist(), 1):
        yield f"{place:2}. {row['claim']} ({row['source']}): {row['verdict']}"
        if row["paper"]:
            yield f"      paper  {row['paper']}"
        yield f"      here   {row['here']}"
    verdicts = table["verdict"].to_pylist()
    counted = ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(sorted(verdicts)))
    yield f"{len(verdicts)} claims: {counted}"
