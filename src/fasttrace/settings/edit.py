"""Settings of single edits."""

from collections.abc import Sequence
from typing import Literal

from .base import refusal, setting, settings
from .common import NoiseSettings, RunSettings
from .methods import METHOD_SETTINGS, FineTuneSettings, MemitSettings, Method, RomeSettings
from .moments import CORPUS_TOKENS, CorpusSettings

ProblemName = Literal["error-injection", "tracing-reversal", "fact-erasure", "fact-amplification", "fact-forcing"]


@settings("edit")
class EditingSettings(NoiseSettings, CorpusSettings, RunSettings):
    """What single edits, mass edits and tuning have in common."""

    method: Method = setting(
        default="rome",
        names_run="always",
        help="Editing method: memit and ft-5 change the window of layers around the layer, rome and ft-1 the layer",
    )
    problem: ProblemName = setting(default="error-injection", names_run="always", help="Editing problem")
    window_size: int = setting(
        default=5,
        least=1,
        unit="layers",
        names_run="always",
        help="Window of memit and ft-5, and the tracing window that the edits are compared with",
    )
    contexts: int | Sequence[str] = setting(
        default=20,
        least=0,
        names_run="always",
        help="How many prefixes are sampled, half of 5 tokens and half of 10; or templates, of which the first is {}",
    )
    essence: int = setting(
        default=5,
        least=0,
        names_run="always",
        help="Sampled texts about every subject that are scored before and after",
    )
    noise_sample: int = setting(default=0, least=0, names_run="always", help="Which noise sample corrupts the subject")
    corpus_tokens: int = setting(
        default=CORPUS_TOKENS, least=1, names_run="always", help="Tokens of the corpus to read for the second moments"
    )
    hyperparameters: RomeSettings | MemitSettings | FineTuneSettings | None = setting(
        default=None,
        names_run="never",
        option="--set",
        help="The method's own settings; what is not given there is the paper's value for the model and the problem",
    )

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.contexts, int) and self.contexts[0] != "{}":
            raise refusal(self, "contexts", "templates of which the first is '{}'", repr(self.contexts[0]))
        wanted = METHOD_SETTINGS[self.method]
        if self.hyperparameters is not None and not isinstance(self.hyperparameters, wanted):
            got = type(self.hyperparameters).__name__
            raise refusal(self, "hyperparameters", f"{wanted.__name__} for {self.method}", got)


@settings("edit")
class EditSettings(EditingSettings):
    """Every setting of single edits."""

    layers: Sequence[int] | None = setting(
        default=None,
        least=0,
        names_run="never",
        help="Layers to edit, from 0, as in 0,4,8; by default every fourth, the last and the model's own",
    )
