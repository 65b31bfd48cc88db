"""The results that the paper's claims and numbers are held to: those of one model under one protocol."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fasttrace.errors import StoreError
from fasttrace.store import Readable

from .naming import Row
from .paper import ZSRE_FORMS
from .regression import layer_correlations, layer_means, regressions
from .relation import relation
from .tables import fits_with_certainty

Cell = tuple[str, str]
"""A problem and a method."""


_METRIC = {"metric": "probability"}  # the paper's


class NoEvidence(Exception):
    """The store lacks what a claim is about. The message says what."""


@dataclass(frozen=True)
class Evidence:
    """The results of one model under one protocol, for the facts of one data set other than zsRE, traced at MLPs.

    window_size: the tracing window that edits are compared with where a claim names none; None: that of each edit.
    resamples: bootstrap samples of each interval. Every method raises NoEvidence where the store has no such results,
    or those of several runs or data sets, which are never pooled.
    """

    store: Readable
    model: str
    protocol: str
    window_size: int | None
    resamples: int
    _kept: dict[Any, list[Row]] = field(default_factory=dict, repr=False)

    def fits(self, score: str = "rewrite", **choice: Any) -> dict[Cell, Row]:
        """(problem, method) → its row of `fits_with_certainty`."""
        key = (score, *sorted(choice.items()))
        if key not in self._kept:
            same = {"localization": "denoise", "tokens": "all", "window_size": self.window_size} | _METRIC
            asked = self._asked | same | choice
            rows = fits_with_certainty(self.store, score, resamples=self.resamples, **asked).to_pylist()
            self._kept[key] = [row for row in rows if row["r2_both"] is not None]
        return self._apart(self._kept[key], ("problem", "method"))

    def correlations(self, score: str, **choice: Any) -> list[Row]:
        """ρ at each edited layer for ROME and error injection."""
        same = {"problem": "error-injection", "method": "rome", "window_size": self.window_size} | _METRIC
        asked = self._asked | same | choice
        rows = layer_correlations(self.store, score, **asked).to_pylist()
        rows = [row for row in rows if row["rho"] is not None and row["n"] > 3]
        return list(self._apart(rows, ("layer",)).values())

    def means(self, score: str) -> list[Row]:
        """The mean of a score at each method and layer for error injection, with its standard error."""
        wanted = self._asked | {"problem": "error-injection"}
        rows = layer_means(self.store, score).to_pylist()
        rows = [row for row in rows if row["mean"] is not None and all(row[k] == v for k, v in wanted.items())]
        return list(self._apart(rows, ("method", "layer")).values())

    @cached_property
    def n_layers(self) -> int:
        """Number of the model's layers."""
        return max(row["layer"] for row in self.curve()) + 1

    def curve(self) -> list[Row]:
        """The mean tracing effect of denoising at each window size and layer."""
        wanted = self._asked | {"localization": "denoise", "tokens": "all"} | _METRIC
        rows = relation(self.store, "mean_effect").to_pylist()
        rows = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
        return list(self._apart(rows, ("window_size", "layer")).values())

    @property
    def _asked(self) -> dict[str, Any]:
        return {"model": self.model, "protocol": self.protocol}

    @staticmethod
    def _apart(rows: Sequence[Row], keys: Sequence[str]) -> dict[tuple[Any, ...], Row]:
        """The rows by the values of `keys`, which are to tell them apart."""
        found: dict[tuple[Any, ...], Row] = {}
        rows = [row for row in rows if row.get("module", "mlp") == "mlp" and row.get("source") not in ZSRE_FORMS]
        for row in rows:
            place = tuple(row[key] for key in keys)
            if place in found:
                where = ", ".join(f"{row[key]}" if key != "layer" else f"layer {row[key]}" for key in keys)
                raise NoEvidence(f"several runs or data sets at {where}, which are never pooled")
            found[place] = row
        if not found:
            raise NoEvidence("no such results")
        return found


def evidence_of(
    store: Readable, model: str | None, protocol: str | None, window_size: int | None, resamples: int
) -> Evidence:
    """The evidence of one model under one protocol. model, protocol: which, if the store has several.

    Raises StoreError where the store has no traced edits, or those of several models or protocols.
    """
    found = regressions(store, model=model, protocol=protocol, window_size=window_size).to_pylist()
    kinds = sorted({(row["model"], row["protocol"]) for row in found if row["n"]})
    if not kinds:
        raise StoreError(f"expected edits of traced facts in {store.where}, got none")
    if len(kinds) > 1:
        names = ", ".join(f"{name} ({under})" for name, under in kinds)
        raise StoreError(f"expected a choice of model and protocol, got results of {names} in {store.where}")
    return Evidence(store, *kinds[0], window_size, resamples)
