"""Regressions of edit scores by formula, through statsmodels: any columns of edits and tracing effects."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa

from fasttrace.errors import UserError, did_you_mean
from fasttrace.settings.arguments import checked
from fasttrace.settings.kinds import MOST_LAYERS, Bounds
from fasttrace.show.results import Shown
from fasttrace.store import Stored

from .naming import number, p_text
from .render import render
from .selection import Selection, select
from .terminal import is_number

MODELS = {
    "layer": "{score} ~ C(layer)",
    "effect": "{score} ~ effect",
    "both": "{score} ~ C(layer) * effect",
}
"""The paper's three models by name (section 4.3). They give the same fits as `regressions`."""
EXAMPLE = "rewrite ~ C(layer) * effect"
_FUNCTIONS = (
    "np",
    "C",
    "I",
    "Treatment",
    "Sum",
    "Diff",
    "Helmert",
    "Poly",
    "bs",
    "cc",
    "cr",
    "te",
    "center",
    "standardize",
    "scale",
)
"""Names that a formula may use besides columns: numpy and patsy's functions."""


@dataclass(frozen=True)
class Regression(Shown):
    """One fit. str() is its coefficients, its statistics and an account of the rows.

    formula: the fitted formula. errors: how standard errors were computed, in words. fit: statsmodels' results object,
    for everything else (`fit.summary`, `fit.predict`, `fit.f_test`, `fit.resid`). selection: the rows used and dropped.
    variables: the columns of the formula. notes: statsmodels' warnings about the model.
    """

    TABLES: ClassVar = ("coefficients",)

    formula: str
    errors: str
    fit: Any
    selection: Selection
    variables: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def coefficients(self) -> pa.Table:
        """One row per term; for a mixed model, one row per fixed effect.

        Columns: term, estimate with its 95 % interval (estimate_low, estimate_high), std_error, statistic (t; z for a
        mixed model), p_value (two-sided). Units: score per unit of the term.
        """
        fit, k = self.fit, len(self.fit.model.exog_names)
        with _quiet():
            interval = np.asarray(fit.conf_int())
            columns = {
                "term": fit.model.exog_names,
                "estimate": np.asarray(fit.params)[:k],
                "estimate_low": interval[:k, 0],
                "estimate_high": interval[:k, 1],
                "std_error": np.asarray(fit.bse)[:k],
                "statistic": np.asarray(fit.tvalues)[:k],
                "p_value": np.asarray(fit.pvalues)[:k],
            }
        return pa.table(columns)

    @property
    def statistics(self) -> dict[str, float | int | None]:
        """Statistics of the whole fit.

        Every fit has n, n_facts, n_dropped and log_likelihood. Least squares has r2, r2_adjusted, rmse (root of the
        mean squared residual, in units of the score) and the F-test of all terms (f_value, df_num, df_den, p_value;
        None without a term). A mixed model has variance_groups and variance_residual.
        """
        fit = self.fit
        counts = {"n": len(self.selection.columns), "n_facts": self.selection.n_facts}
        counts["n_dropped"] = self.selection.n_selected - counts["n"]
        with _quiet():
            if self.mixed:
                found = {"variance_groups": fit.cov_re.iloc[0, 0], "variance_residual": fit.scale}
            else:
                found = {"r2": fit.rsquared, "r2_adjusted": fit.rsquared_adj, "rmse": np.sqrt(fit.ssr / fit.nobs)}
                found |= {"f_value": fit.fvalue, "df_num": fit.df_model, "df_den": _df_of_tests(fit)}
                found |= {"p_value": fit.f_pvalue}
            found |= {"log_likelihood": fit.llf}
        return counts | {name: _number(value) for name, value in found.items()}

    @property
    def mixed(self) -> bool:
        return hasattr(self.fit, "cov_re")

    def summary(self) -> str:
        """Lines of text: the statistics of the whole fit, and the distribution of its tests."""
        found = self.statistics
        end = f"log-likelihood {number(found['log_likelihood'])}\n"
        if self.mixed:
            return (
                f"Mixed model by REML: n = {found['n']:,}, {self.fit.model.n_groups:,} groups, "
                f"variance of the intercepts {_small(found['variance_groups'])}, "
                f"residual variance {_small(found['variance_residual'])}, {end}"
                "Tests and 95 % intervals: the normal distribution (z)\n"
            )
        r2 = "R²" if self.fit.k_constant else "R² (uncentered)"
        lines = (
            f"Least squares: n = {found['n']:,}, {r2} {number(found['r2'])}, adjusted {number(found['r2_adjusted'])}, "
            f"RMSE {_small(found['rmse'])}, {end}"
        )
        if found["df_num"]:
            degrees = f"{found['df_num']:g}, {found['df_den']:g}"
            lines += f"All terms: F({degrees}) = {number(found['f_value'])}, {p_text(found['p_value'])}\n"
        return f"{lines}Tests and 95 % intervals: Student's t with {_df_of_tests(self.fit):g} degrees of freedom\n"

    def account(self) -> str:
        """Lines of text: how many rows were used, how many were dropped and why, and statsmodels' warnings."""
        lines = [f"Errors: {self.errors}\n", self.selection.text(self.variables)]
        return "".join([*lines, *(f"Note: {note}\n" for note in self.notes)])

    def __str__(self) -> str:
        return f"{self.formula}\n\n{render(self.coefficients)}\n{self.summary()}{self.account()}"

    def __repr__(self) -> str:
        return f"Regression({self.formula!r}, n={len(self.selection.columns)}, errors={self.errors!r})"


@checked
def regress(
    store: Stored,
    formula: str,
    *,
    score: str | None = None,
    where: str | Sequence[str] = (),
    robust: bool = False,
    cluster: str | None = None,
    groups: str | None = None,
    tracing_window: Annotated[int | None, Bounds(1, most=MOST_LAYERS)] = None,
) -> Regression:
    """Fit a formula to the edits of a store and their tracing effects.

    formula: a statsmodels (patsy) formula over the columns of sql/traced_edits.sql, such as
        "rewrite ~ C(layer) * effect". Booleans are 0 and 1. Or the name of one of the paper's models, "layer", "effect"
        or "both", for `score` (default: rewrite). All three use the edits that have both a score and an effect.
    where: SQL conditions, all of which must hold, such as "problem = 'fact-forcing' AND layer < 12".
    robust: standard errors that allow for unequal variances (HC3; MacKinnon and White 1985).
    cluster: standard errors that allow the errors of rows with the same value of this column, such as "fact_id", to
        correlate. The t-tests have groups − 1 degrees of freedom.
    groups: a mixed model instead of least squares, with a random intercept for each value of this column, by REML.
    tracing_window: window size, in layers, of the tracing effects. None: the window of each edit.

    Raises UserError for an invalid formula, column or condition, and for rows that do not determine the coefficients.
    """
    formula, variables = _parsed(formula, score)
    chosen = [name for name, given in (("robust", robust), ("cluster", cluster), ("groups", groups)) if given]
    if len(chosen) > 1:
        raise UserError(f"expected one of robust, cluster and groups, got {' and '.join(chosen)}")
    grouping = cluster or groups
    needed = list(dict.fromkeys([*variables, *([grouping] if grouping else [])]))
    conditions = [where] if isinstance(where, str) else list(where)
    selection = select(store, needed, conditions, tracing_window=tracing_window)
    if not is_number(selection.columns.schema.field(variables[0]).type):
        raise UserError(f"expected a number to the left of ~, got {variables[0]}, which is text")
    with _quiet() as warned:
        fit = _fit(formula, selection, robust, cluster, groups)
    errors = (
        "HC3"
        if robust
        else f"clustered by {cluster}"
        if cluster
        else f"a random intercept for each {groups}"
        if groups
        else "plain (rows independent, of equal variance)"
    )
    return Regression(formula, errors, fit, selection, tuple(variables), _notes(warned))


def _parsed(formula: str, score: str | None) -> tuple[str, list[str]]:
    """(the formula, the columns it needs). Raises UserError where patsy cannot read it."""
    if formula in MODELS:
        score = "rewrite" if score is None else score
        if not score.isidentifier():
            raise UserError(f"expected the name of a score, got {score!r}")
        return MODELS[formula].format(score=score), [score, "layer", "effect"]
    if score is not None:
        raise UserError(f"expected a score only with {', '.join(MODELS)}, got {score!r} with the formula {formula!r}")
    import patsy
    from patsy.eval import ast_names

    try:
        described = patsy.ModelDesc.from_formula(formula)
        left, right = (
            [factor for term in terms for factor in term.factors]
            for terms in (described.lhs_termlist, described.rhs_termlist)
        )
        outcome, others = (
            [name for factor in side for name in sorted(ast_names(factor.code)) if name not in _FUNCTIONS]
            for side in (left, right)
        )
    except (patsy.PatsyError, SyntaxError) as error:
        raise UserError(_not_a_formula(formula, error)) from error
    if len(left) != 1 or len(described.lhs_termlist) != 1:
        raise UserError(_not_a_formula(formula))
    if not outcome:
        raise UserError(f"expected a column to the left of ~, got {formula!r}")
    if not described.rhs_termlist:
        raise UserError(f"expected at least one term to the right of ~, got none in {formula!r}")
    return formula, list(dict.fromkeys([*outcome, *others]))


def _not_a_formula(formula: str, error: Exception | None = None) -> str:
    reason = "" if error is None else f" ({str(error).splitlines()[0]})"
    hint = did_you_mean(formula, MODELS)
    return f"expected a formula such as '{EXAMPLE}', or one of {', '.join(MODELS)}, got {formula!r}{hint}{reason}"


def _fit(formula: str, selection: Selection, robust: bool, cluster: str | None, groups: str | None) -> Any:
    """statsmodels' results. Raises UserError where the rows do not determine them."""
    from statsmodels.formula.api import mixedlm, ols  # seconds to import

    frame = selection.columns.to_pandas()
    grouping = cluster or groups
    codes = _codes(frame, grouping) if grouping else None
    try:
        # `_parsed` checked the names, so the formula uses only columns, `np` and patsy's functions.
        if groups:
            model = mixedlm(formula, frame, groups=codes, missing="raise")
        else:
            model = ols(formula, frame, missing="raise")
    except Exception as error:  # the user's expression can raise anything
        first = (str(error).splitlines() or [type(error).__name__])[0].strip()
        raise UserError(f"expected a formula that can be evaluated, got {formula!r}: {first}") from error
    _check_design(model)
    if groups:
        return _mixed_fit(model)
    if cluster:
        fit = model.fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)
    else:
        fit = model.fit(cov_type="HC3" if robust else "nonrobust", use_t=True)
    if robust and (alone := int((fit.get_influence().hat_matrix_diag > 1 - 1e-10).sum())):
        raise UserError(
            f"expected several rows per coefficient, got a single row for some ({alone} of {len(frame)} rows), where "
            "HC3 has no standard error"
        )
    return fit


def _mixed_fit(model: Any) -> Any:
    try:
        fit = model.fit()
    except (np.linalg.LinAlgError, ValueError) as error:
        raise UserError(f"expected rows that determine the mixed model, got rows that do not: {error}") from error
    if not fit.converged:
        raise UserError("expected the mixed model's likelihood to converge, got no maximum: cluster the errors instead")
    return fit


def _codes(frame: Any, column: str) -> np.ndarray:
    """Group number of every row, (n,) int."""
    codes, values = frame[column].factorize()
    if len(values) < 2:
        raise UserError(f"expected at least two values of {column} to group by, got {values[0]!r} in all rows")
    return codes


def _check_design(model: Any) -> None:
    """Raise UserError if the least-squares problem has no unique solution or the outcome does not vary."""
    design, y, names = model.exog, model.endog, model.exog_names
    n, k = design.shape
    if not (np.isfinite(design).all() and np.isfinite(y).all()):
        raise UserError("expected finite numbers, got NaN or infinity from an expression of the formula")
    if n <= k:
        raise UserError(f"expected more rows than coefficients, got {n} rows and {k} coefficients")
    if y.std() <= 1e-12 * np.abs(y).max():
        raise UserError(f"expected {model.endog_names} to vary, got {y[0]:g} in all {n} rows")
    bad = _dependent(design, names)
    if bad:
        raise UserError(
            f"expected independent terms, got {', '.join(bad)}, which the other terms determine: leave the term out, "
            "or the rows in which it does not vary"
        )


def _dependent(design: np.ndarray, names: Sequence[str]) -> list[str]:
    """Names of the columns that are linear combinations of earlier columns.

    design: (n, k) float64. With columns of length 1, the diagonal of R is the distance of each column from the span of
    the earlier ones.
    """
    lengths = np.linalg.norm(design, axis=0)
    distances = np.abs(np.diag(np.linalg.qr(design / np.where(lengths > 0, lengths, 1), mode="r")))
    least = max(design.shape) * np.finfo(np.float64).eps
    return [name for name, distance in zip(names, distances, strict=True) if distance <= least]


def _df_of_tests(fit: Any) -> float:
    return getattr(fit, "df_resid_inference", None) or fit.df_resid


def _small(value: float | None) -> str:
    """A positive number in units of the score, which may be far below 1."""
    return "–" if value is None else f"{value:.4g}"


def _number(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Collect warnings instead of printing them. `_notes` keeps those about the model."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield warned


def _notes(warned: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    from statsmodels.tools.sm_exceptions import ModelWarning

    texts = (" ".join(str(one.message).split()) for one in warned if issubclass(one.category, ModelWarning))
    return tuple(dict.fromkeys(texts))
