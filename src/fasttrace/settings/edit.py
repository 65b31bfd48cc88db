"""Settings of single edits."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fasttrace.errors import shown

from .base import arguments_of, refusal, resolve, setting, settings
from .common import NoiseSettings, RunSettings
from .generate import Stop
from .kinds import (
    MOST_CHARACTERS,
    MOST_ITEMS,
    MOST_LAYERS,
    MOST_SECONDS,
    MOST_TOKENS,
    MOST_WEIGHT,
    Address,
    Bounds,
    kind_of,
)
from .methods import METHODS, SOLVED, Method, MethodSettings, method_settings, reads_moments
from .moments import CORPUS_TOKENS, CorpusSettings

ProblemName = Literal["error-injection", "tracing-reversal", "fact-erasure", "fact-amplification", "fact-forcing"]

HYPERPARAMETERS = kind_of(MethodSettings | Mapping[str, Any] | None, Bounds())
OF_MOMENTS = ("corpus", "corpus_tokens", "ridge")
READ_BY_SOLVED = ("contexts", *OF_MOMENTS)  # fine-tuning has no use for them


@settings("edit", heading="Edit")
class EditingSettings(NoiseSettings, CorpusSettings, RunSettings):
    """Settings that single edits, mass edits and tuning share."""

    method: Method = setting(
        default="rome",
        names_run="always",
        help="Editing method: rome and ft-1 change one layer, the others the window of layers around it",
    )
    problem: ProblemName = setting(default="error-injection", names_run="always", help="Editing problem")
    window_size: int = setting(
        default=5,
        least=1,
        most=MOST_LAYERS,
        unit="layers",
        names_run="always",
        help="Size of the window that all methods but rome and ft-1 change, and of the tracing windows that edits are "
        "compared with",
    )
    contexts: int | Sequence[str] | None = setting(
        default=None,
        least=0,
        most=MOST_ITEMS,
        names_run="always",
        help="Number of prefixes to sample; or prompt templates, the first being {}; by default 20 for rome, half of 5 "
        "tokens and half of 10; 5 for the other methods with keys, which begin with The, Therefore, Because, I and You",
    )
    essence: int = setting(
        default=5,
        least=0,
        most=MOST_ITEMS,
        names_run="always",
        help="Texts to sample about every subject and score before and after the edit; 0 leaves out the essence score",
    )
    noise_sample: int = setting(
        default=0, least=0, most=MOST_ITEMS, names_run="always", help="Noise sample that corrupts the subject"
    )
    score_noise_sample: int | None = setting(
        default=None,
        least=0,
        most=MOST_ITEMS,
        help="Noise sample that corrupts the subject in the scores of fact-forcing; by default noise_sample, on which "
        "the edit was optimised",
    )
    corpus_tokens: int = setting(
        default=CORPUS_TOKENS,
        least=1,
        most=MOST_TOKENS,
        names_run="always",
        help="Tokens of the corpus to read for the second moments",
    )
    generate: int = setting(
        default=0,
        least=0,
        most=MOST_ITEMS,
        unit="tokens",
        help="Longest greedy continuation of every scored prompt, before and after the edit, which is stored as text "
        "and matched with the answer, which matches only if it has no more tokens; 0 generates nothing",
    )
    stop: Stop | None = setting(
        default="sentence",
        help="Where a continuation ends early: after its first line or sentence; none goes on to the last token",
    )
    judge_url: Address | None = setting(
        default=None,
        names_run="never",
        help="OpenAI-compatible address whose model judges every continuation after the edit, as in "
        "http://localhost:8000/v1; the key is in FASTTRACE_JUDGE_KEY or OPENAI_API_KEY; with a store, the same command "
        "again asks once more where it failed; by default nothing is asked",
    )
    judge_model: str | None = setting(default=None, help="Name of the model at judge_url")
    judge_timeout: float = setting(
        default=30.0,
        above=0,
        most=MOST_SECONDS,
        names_run="never",
        unit="seconds",
        help="Longest time for one judgement",
    )
    experts: Literal["routed", "top", "shared"] | Sequence[int] | None = setting(
        default=None,
        least=0,
        most=MOST_ITEMS,
        help="Experts to edit, at layers that have any: those that the prompt's last subject token goes to (routed), "
        "the one of them with the largest weight (top), the shared one (shared), or numbers from 0, as in 3,7; by "
        "default routed",
    )
    routing: Literal["redecided", "unchanged"] = setting(
        default="redecided",
        help="Experts that a token goes to when prompts are scored after an edit: those that the edited model's "
        "routers choose, or, with unchanged, those of the unedited model with their weights",
    )
    after: Literal["nothing", "rect", "prune"] = setting(
        default="nothing",
        help="What is done to an update: nothing; rect keeps the entries that change their weights most; prune presses "
        "down singular values of the sum of all updates that are above the weights' own",
    )
    rect_share: float = setting(
        default=0.4, above=0, most=1, help="With after rect: share of an update's entries to keep, by |ΔW/W|"
    )
    prune_base: float = setting(
        default=math.e,
        above=1,
        most=MOST_WEIGHT,
        help="With after prune: base of the logarithm; a larger one presses large singular values down more",
    )
    max_norm: float | None = setting(
        default=None,
        above=0,
        most=MOST_WEIGHT,
        unit="multiples of ‖W‖",
        help="Largest ‖ΔW‖ (Frobenius) of a layer's summed updates, which are scaled down to it; by default no bound",
    )
    hyperparameters: Annotated[MethodSettings | None, HYPERPARAMETERS] = setting(
        default=None,
        names_run="never",
        option="--set",
        help="The method's hyperparameters; those not given have the default for the model, problem and protocol",
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.score_noise_sample == self.noise_sample:
            resolve(self, "score_noise_sample", None)
        if isinstance(self.contexts, Sequence):
            if self.contexts[0] != "{}":
                raise refusal(self, "contexts", "'{}' as the first template", shown(self.contexts[0]))
            if bad := [text for text in self.contexts if text.count("{}") != 1 or len(text) > MOST_CHARACTERS]:
                raise refusal(self, "contexts", "templates with one '{}' each", shown(bad[0]))
        if self.method not in SOLVED:
            about = arguments_of(type(self))
            if unread := [name for name in READ_BY_SOLVED if getattr(self, name) != about[name].default]:
                raise refusal(self, unread[0], f"a value only with {', '.join(SOLVED)}", f"one with {self.method}")
        for name, owner in (("rect_share", "rect"), ("prune_base", "prune")):
            if getattr(self, name) != arguments_of(type(self))[name].default and self.after != owner:
                raise refusal(self, name, f"a value only with after {owner}", f"one with after {self.after}")
        if self.routing == "unchanged" and self.generate:
            raise refusal(
                self, "routing", "redecided with generate, whose tokens the unedited model lacks", "unchanged"
            )
        if self.stop != "sentence" and not self.generate:
            raise refusal(self, "stop", "a value only with generate", "one without it")
        if (self.judge_url is None) != (self.judge_model is None):
            missing = "judge_url" if self.judge_url is None else "judge_model"
            raise refusal(self, missing, "a value, as judge_url and judge_model belong together", "none")
        if self.contexts is None:
            resolve(self, "contexts", METHODS[self.method].contexts or 0)
        if isinstance(self.hyperparameters, Mapping):
            object.__setattr__(self, "hyperparameters", method_settings(self.method, dict(self.hyperparameters)))
        wanted = METHODS[self.method].settings
        if self.hyperparameters is not None and not isinstance(self.hyperparameters, wanted):
            got = type(self.hyperparameters).__name__
            raise refusal(self, "hyperparameters", f"{wanted.__name__} for {self.method}", got)
        if not reads_moments(self.method, self.hyperparameters):
            about = arguments_of(type(self))
            if unread := [name for name in OF_MOMENTS if getattr(self, name) != about[name].default]:
                raise refusal(self, unread[0], "a value only without projections", "both")


@settings("edit", heading="Edit")
class EditSettings(EditingSettings):
    """Every setting of single edits."""

    layers: Sequence[int] | None = setting(
        default=None,
        least=0,
        most=MOST_LAYERS,
        names_run="never",
        help="Layers to edit, from 0, as in 0,4,8; by default every fourth, the last, and the model's published layer "
        "or the one a fifth of the way up",
    )
