"""Settings of causal tracing."""

from collections.abc import Sequence
from typing import Literal

from .base import refusal, resolve, setting, settings, settle
from .common import NoiseSettings, RunSettings
from .kinds import MOST_ITEMS, MOST_LAYERS, Size

Module = Literal["mlp", "attn", "block", "head", "expert"]
TraceMethod = Literal["denoise", "noise", "zero", "attribution"]
AskedMethod = Literal["denoise", "noise", "zero", "attribution", "hooked"]  # "hooked" becomes "denoise"
Engine = Literal["wavefront", "hooked"]
Tokens = Literal["all", "subject", "last-subject", "whole-subject"]
Corruption = Literal["noise", "counterfactual"]
Metric = Literal["probability", "log-probability", "logit-difference", "kl"]
Scored = Literal["sequence", "first-token", "argmax-first"]
# Representation zeroing zeroes all subject tokens at once (paper, Appendix B).
OWN_TOKENS: dict[AskedMethod, Tokens] = {"zero": "whole-subject"}


@settings("trace", heading="Intervention")
class TraceSettings(NoiseSettings, RunSettings):
    """Every setting of a causal-tracing sweep."""

    windows: Sequence[int] = setting(
        default=(5,), least=1, most=MOST_LAYERS, unit="layers", names_run="always", help="Window sizes, as in 10,5,1"
    )
    samples: int = setting(default=10, least=1, most=MOST_ITEMS, names_run="always", help="Noise samples per fact")
    module: Module = setting(
        default="mlp",
        names_run="always",
        help="Module whose output is replaced in the window's layers; head is one attention head, before the output "
        "projection, and expert is what one expert of a mixture adds to its output",
    )
    heads: Literal["all", "at-once"] | Sequence[int] | None = setting(
        default=None,
        least=0,
        most=MOST_ITEMS,
        help="With module head: all (each head by itself), the heads of these numbers, as in 3,7, or at-once (those "
        "of a layer in one cell); by default all",
    )
    experts: Literal["all", "shared"] | Sequence[int] | None = setting(
        default=None,
        least=0,
        most=MOST_ITEMS,
        help="With module expert: all (each expert by itself), shared, or the experts of these numbers, as in 3,7; the "
        "shared one has the number after the last; by default all",
    )
    corruption: Corruption = setting(
        default="noise",
        help="What corrupts a prompt: noise on the subject's embeddings, or the tokens of the fact's counterfactual "
        "prompts, each of which is a sample; samples, noise, sigma and seed then play no part",
    )
    metric: Metric = setting(
        default="probability",
        help="What effects are made of: the probability of the scored text, its logarithm, the difference between the "
        "logits of o_true and o_false at the first token in which they differ, or the KL divergence of that token's "
        "distribution from the clean pass's (of the first token without an o_false)",
    )
    method: AskedMethod = setting(
        default="denoise",
        names_run="always",
        help="Intervention: denoise puts outputs of the clean pass into the corrupted passes, noise puts outputs of "
        "the corrupted passes into the clean pass, zero puts zeros into the clean pass; attribution estimates denoise "
        "from one forward and one backward pass; hooked is short for denoise with engine hooked",
    )
    engine: Engine = setting(
        default="wavefront",
        help="What computes the passes: wavefront drives the model's blocks and computes only what a cell changes; "
        "hooked runs transformers' whole forward for every pass of every cell, with hooks, which is slow and takes any "
        "causal decoder",
    )
    tokens: Tokens | None = setting(
        default=None,
        names_run="always",
        help="Tokens to intervene at: one per cell, or the whole subject at once; by default whole-subject with method "
        "zero, and all otherwise",
    )
    scored: Scored = setting(
        default="sequence",
        names_run="always",
        stored="target",
        help="Text to score: all of the true object o_true, its first token, or the first token of the model's answer",
    )
    keep: Literal["known", "all"] = setting(
        default="known", names_run="always", help="Trace only the facts that the model knows, or all facts"
    )
    keep_samples: bool = setting(default=False, help="Also keep the probability of every noise sample (trace_samples)")
    keep_routing: bool = setting(
        default=False,
        help="Also keep which experts each token of the clean and the corrupted passes goes to (trace_routing)",
    )
    verify_top: int | None = setting(
        default=None,
        least=0,
        most=MOST_ITEMS,
        help="With method attribution: also compute exact values of the N cells per fact with the largest estimates",
    )
    memory: Size = setting(default="512MB")

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.method == "hooked":  # the only names that a run has are what is done, and by which engine
            settle(self, method="denoise", engine="hooked")
        if self.method == "attribution" and self.engine == "hooked":
            raise refusal(self, "method", "denoise, noise or zero with engine hooked", self.method)
        if self.module == "head":
            if self.heads is None:
                resolve(self, "heads", "all")
        elif self.heads is not None:
            raise refusal(self, "heads", "module head", f"module {self.module}")
        if self.module == "expert":
            if self.engine == "hooked":
                raise refusal(self, "module", "mlp, attn, block or head with engine hooked", self.module)
            if self.experts is None:
                resolve(self, "experts", "all")
        elif self.experts is not None:
            raise refusal(self, "experts", "module expert", f"module {self.module}")
        if self.keep_routing and self.engine == "hooked":
            raise refusal(self, "keep_routing", "engine wavefront", "engine hooked")
        if self.tokens is None:
            resolve(self, "tokens", OWN_TOKENS.get(self.method, "all"))
        if self.verify_top is not None and self.method != "attribution":
            raise refusal(self, "verify_top", "method attribution", f"method {self.method}")
        if self.method == "attribution" and self.tokens == "whole-subject":
            raise refusal(self, "tokens", "one token per cell with method attribution", self.tokens)
        if self.method == "attribution" and self.module == "expert":
            raise refusal(self, "module", "one whose slope estimates it with method attribution", self.module)
        if self.method == "attribution" and self.heads == "at-once":
            raise refusal(self, "heads", "one head per cell with method attribution", self.heads)
        if self.method == "attribution" and self.metric == "kl":
            raise refusal(self, "metric", "one whose slope estimates it with method attribution", self.metric)
        if self.method == "zero" and self.corruption != "noise":
            raise refusal(self, "corruption", "noise with method zero, which corrupts nothing", self.corruption)
        if self.method == "zero" and self.metric in ("log-probability", "kl"):
            raise refusal(self, "metric", "probability or logit-difference with method zero", self.metric)
