"""The hyperparameters of every editing method.

The defaults here are the paper's for models and problems without a value of their own. For a setting that is `tabled`,
the tables of `editing.hyperparameters` may have another default for the model, problem and protocol. A value that the
caller gives overrides both.
"""

from typing import Any, Literal

from .base import Setting, check_names, setting, settings, settings_of
from .kinds import MOST_STEPS, MOST_WEIGHT

Method = Literal["rome", "memit", "ft-1", "ft-5"]
SOLVED = ("rome", "memit")  # methods that solve with second moments, which the cache folder keeps


@settings("optimisation")
class OptimiserSettings:
    """Settings of the optimiser, for every method."""

    steps: int = setting(default=25, least=1, most=MOST_STEPS, tabled=True, names_run="always", help="Steps of Adam")
    lr: float = setting(
        default=0.5, above=0, most=MOST_WEIGHT, tabled=True, names_run="always", help="Learning rate of Adam"
    )
    early_stop: float | None = setting(
        default=None,
        least=0,
        most=1000 * MOST_WEIGHT,
        tabled=True,
        names_run="always",
        help="Stop optimising an edit once its loss is below this; none never stops early",
    )


@settings("value")
class ValueSettings(OptimiserSettings):
    """Settings of the optimisation of δ in ROME and MEMIT: loss = NLL + kl_factor · KL + weight_decay · ‖δ‖/‖v0‖²."""

    kl_factor: float = setting(
        default=0.0625,
        least=0,
        most=MOST_WEIGHT,
        tabled=True,
        names_run="always",
        help="Weight of the KL divergence in the loss",
    )
    weight_decay: float = setting(
        default=0.5, least=0, most=MOST_WEIGHT, tabled=True, names_run="always", help="Weight of ‖δ‖/‖v0‖² in the loss"
    )
    clamp: float = setting(
        default=4.0,
        above=0,
        most=MOST_WEIGHT,
        tabled=True,
        names_run="always",
        unit="multiples of ‖v0‖",
        help="Largest norm of δ",
    )


@settings("rome")
class RomeSettings(ValueSettings):
    """ROME (Meng et al. 2022, arXiv 2202.05262)."""

    key_mode: Literal["rome", "r-rome"] = setting(
        default="rome",
        tabled=True,
        names_run="always",
        help="Key in the update's denominator: rome uses the key of the bare prompt, r-rome the mean key over the "
        "contexts",
    )
    steps: int = setting(default=20)


@settings("memit")
class MemitSettings(ValueSettings):
    """MEMIT (Meng et al. 2022, arXiv 2210.07229). δ is optimised on resid_post of the window's last layer, and spread
    over the window's layers by ΔW = R Kᵀ (covariance_weight · C + K Kᵀ)⁻¹."""

    covariance_weight: float = setting(
        default=15000.0,
        above=0,
        most=1000 * MOST_WEIGHT,
        tabled=True,
        names_run="always",
        help="Weight of the second moment C",
    )
    clamp: float = setting(default=0.75)


@settings("fine-tuning")
class FineTuneSettings(OptimiserSettings):
    """Constrained fine-tuning: Adam on the window's down-projections."""

    epsilon: float = setting(
        default=1e-4,
        above=0,
        most=MOST_WEIGHT,
        tabled=True,
        names_run="always",
        help="Largest change of a weight, enforced after each step",
    )
    bias: bool = setting(default=False, tabled=True, names_run="always", help="Tune the down-projections' biases too")
    lr: float = setting(default=5e-4)


MethodSettings = RomeSettings | MemitSettings | FineTuneSettings
METHOD_SETTINGS: dict[str, type[MethodSettings]] = {
    "rome": RomeSettings,
    "memit": MemitSettings,
    "ft-1": FineTuneSettings,
    "ft-5": FineTuneSettings,
}


def method_settings(method: str, values: dict[str, Any]) -> MethodSettings:
    """The hyperparameters of a method from {name: value}. Raises UserError for a name that the method does not have."""
    kind = METHOD_SETTINGS[method]
    check_names(method, values, settings_of(kind))
    return kind(**values)


def hyperparameters() -> dict[str, Setting]:
    """{name: setting} of the hyperparameters of all methods."""
    return {name: one for kind in METHOD_SETTINGS.values() for name, one in settings_of(kind).items()}
