"""The hyperparameters of every editing method.

The defaults here are the paper's for models and problems without a value of their own. For a setting that is `tabled`,
the tables of `editing.hyperparameters` may have another default for the model, problem and protocol. A value that the
caller gives overrides both.
"""

from typing import Annotated, Any, Literal, NamedTuple, get_args

from .base import Setting, check_names, given_by, refusal, setting, settings, settings_of
from .kinds import MOST_STEPS, MOST_WEIGHT, one_of

Shipped = Literal["rome", "memit", "emmet", "alphaedit", "pmet", "ft-1", "ft-5"]


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
    """Settings of the optimisation of δ: loss = NLL + kl_factor · KL + weight_decay · ‖δ‖/‖v0‖²."""

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


@settings("spread")
class SpreadSettings(ValueSettings):
    """Settings of the methods that optimise δ at the window's last layer, and spread it over the window's layers with
    one solve a layer."""

    clamp: float = setting(default=0.75)


@settings("memit")
class MemitSettings(SpreadSettings):
    """MEMIT (Meng et al. 2022, arXiv 2210.07229): ΔW = R Kᵀ (covariance_weight · C + K Kᵀ + norm_weight · I)⁻¹."""

    covariance_weight: float = setting(
        default=15000.0,
        above=0,
        most=1000 * MOST_WEIGHT,
        tabled=True,
        names_run="always",
        help="Weight of the second moment C",
    )
    norm_weight: float = setting(
        default=0.0, least=0, most=1000 * MOST_WEIGHT, help="Weight of ‖ΔW‖² beside what the method minimises"
    )


@settings("emmet")
class EmmetSettings(MemitSettings):
    """EMMET (Gupta et al. 2024, arXiv 2403.14236): ΔW = R (Kᵀ B⁻¹ K + slack · I)⁻¹ Kᵀ B⁻¹ with
    B = covariance_weight · C + norm_weight · I."""

    covariance_weight: float = setting(default=1.0)
    slack: float = setting(
        default=0.1,
        least=0,
        most=MOST_WEIGHT,
        tabled=True,
        names_run="always",
        help="How freely EMMET may miss the values of several facts that are solved together; 0 gives them exactly, as "
        "do edits of one fact, whatever it is",
    )


@settings("alphaedit")
class AlphaEditSettings(SpreadSettings):
    """AlphaEdit (Fang et al. 2024, arXiv 2410.02355): ΔW = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + norm_weight · I)⁻¹.

    P projects on the null space of C: the eigenvectors whose eigenvalues are below a threshold.
    """

    norm_weight: float = setting(
        default=10.0,
        least=0,
        most=1000 * MOST_WEIGHT,
        tabled=True,
        names_run="always",
        help="Weight of ‖ΔW‖² beside what the method minimises",
    )
    null_threshold: float = setting(
        default=0.02,
        above=0,
        most=MOST_WEIGHT,
        tabled=True,
        names_run="always",
        help="Eigenvalue of C below which an eigenvector belongs to its null space",
    )
    null_unit: Literal["absolute", "trace"] = setting(
        default="absolute",
        tabled=True,
        names_run="always",
        help="What null_threshold is measured in: absolute, as published, or trace, in shares of the trace of C",
    )

    projections: str | None = setting(
        default=None,
        names_run="never",  # by the file's content, in `prepare_edit`
        help="File with P of every layer that is changed, in ascending order, such as AlphaEdit's "
        "null_space_project.pt; by default P is that of C",
    )

    def __attrs_post_init__(self) -> None:
        if self.norm_weight == 0:
            raise refusal(self, "norm_weight", "a number above 0", 0)
        if self.projections is not None and (both := sorted({"null_threshold", "null_unit"} & given_by(self).keys())):
            raise refusal(self, both[0], "a value only without projections", "both")


@settings("pmet")
class PmetSettings(MemitSettings):
    """PMET (Li et al. 2023, arXiv 2308.08742): of two δ that are optimised together, MEMIT's solve for the MLP's."""

    steps: int = setting(default=30)
    lr: float = setting(default=0.2)
    kl_factor: float = setting(default=1.0)
    early_stop: float | None = setting(default=0.05)
    covariance_weight: float = setting(default=6000.0)
    settled_factor: float = setting(
        default=0.1,
        least=0,
        most=MOST_WEIGHT,
        tabled=True,
        names_run="always",
        help="Weight of the NLL after a step at which each token of the target was the likeliest in every context",
    )
    settled_kl: float | None = setting(
        default=0.01,
        above=0,
        most=MOST_WEIGHT,
        tabled=True,
        names_run="always",
        help="At such a step, stop optimising the edit if kl_factor times KL is below this; none goes on",
    )


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


@settings("edit")
class Hyperparameters(RomeSettings, EmmetSettings, AlphaEditSettings, PmetSettings, FineTuneSettings):
    """The hyperparameters of every method, as keywords."""

    def __attrs_post_init__(self) -> None:
        pass  # The method's own type checks the values.


MethodSettings = RomeSettings | SpreadSettings | FineTuneSettings


class Traits(NamedTuple):
    """What a method is, for everything that does not compute it.

    settings: type of its hyperparameters. windowed: whether it changes the window around a layer, not the layer alone.
    contexts: prefixes that its keys are averaged over, None for a method without keys.
    """

    settings: type[MethodSettings]
    windowed: bool
    contexts: int | None = None

    @property
    def solved(self) -> bool:
        """Whether it solves with second moments of keys, which the cache folder keeps."""
        return self.contexts is not None

    @property
    def spread(self) -> bool:
        """Whether it solves for many facts at once."""
        return issubclass(self.settings, SpreadSettings)


METHODS: dict[str, Traits] = {
    "rome": Traits(RomeSettings, windowed=False, contexts=20),
    "memit": Traits(MemitSettings, windowed=True, contexts=5),
    "emmet": Traits(EmmetSettings, windowed=True, contexts=5),
    "alphaedit": Traits(AlphaEditSettings, windowed=True, contexts=5),
    "pmet": Traits(PmetSettings, windowed=True, contexts=5),
    "ft-1": Traits(FineTuneSettings, windowed=False),
    "ft-5": Traits(FineTuneSettings, windowed=True),
}


def reads_moments(method: str, own: "MethodSettings | None") -> bool:
    """Whether an edit reads second moments of keys, which a file of null-space projections takes the place of."""
    return METHODS[method].solved and getattr(own, "projections", None) is None


SOLVED, SPREAD = ([name for name, one in METHODS.items() if getattr(one, trait)] for trait in ("solved", "spread"))

# The name of a method: a shipped one, or one that `editing.methods.add_method` added to METHODS.
Method = Annotated[Shipped | str, one_of(METHODS, f"[{'|'.join(METHODS)}]")]


def is_shipped(method: str) -> bool:
    """Whether a method is fasttrace's own."""
    return method in get_args(Shipped)


def method_settings(method: str, values: dict[str, Any]) -> MethodSettings:
    """The hyperparameters of a method from {name: value}. Raises UserError for a name that the method does not have."""
    kind = METHODS[method].settings
    check_names(method, values, settings_of(kind))
    return kind(**values)


def hyperparameters(without: str | None = None) -> dict[str, Setting]:
    """{name: setting} of the hyperparameters of all methods, or of all but one."""
    kinds = [one.settings for method, one in METHODS.items() if method != without]
    return {name: one for kind in kinds for name, one in settings_of(kind).items()}
