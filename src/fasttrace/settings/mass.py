"""Settings of mass edits, and of tuning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from .base import refusal, setting, settings, settings_of
from .edit import EditingSettings
from .kinds import MOST_ITEMS, MOST_LAYERS, MOST_TOKENS
from .methods import METHODS, SPREAD, Method

SAMPLED = "sampled"
# Setting → the setting without which it has no use.
NEEDED = {"held_out_tokens": "held_out", "lm_eval_limit": "lm_eval", "lm_eval_tasks": "lm_eval"}


@settings("mass", heading="Many edits")
class MassSettings(EditingSettings):
    """Every setting of a mass edit."""

    method: Method = setting(default="memit")
    layer: int | None = setting(
        default=None,
        least=0,
        most=MOST_LAYERS,
        names_run="always",
        help="Layer to edit, from 0; by default the model's published layer, or the one a fifth of the way up",
    )
    at_once: int | None = setting(
        default=None,
        least=1,
        most=MOST_ITEMS,
        names_run="always",
        help="Facts to solve together; by default 1 for rome, ft-1 and ft-5, and all for the others",
    )
    past_keys: Literal["keep", "ignore"] | None = setting(
        default=None,
        help="Whether the solve of a group keeps what the keys of earlier groups give; by default keep, with all "
        "methods but rome, ft-1 and ft-5",
    )
    continue_from: str | Path | None = setting(
        default=None,
        names_run="never",  # by the file's content, in `prepare_mass_edit`
        help="File of a mass edit (--delta) after which to go on: its edits stay, and its keys are earlier keys",
    )
    score_every: int | None = setting(
        default=None,
        least=1,
        most=MOST_ITEMS,
        names_run="always",
        help="Score every fact edited so far after this many groups of facts; by default ten scorings in all",
    )
    together: Literal["all", "case"] = setting(
        default="all",
        help="Edits that are in one model: all, or those of one case of the data set, each case in the unedited model",
    )
    held_out: Literal["sampled"] | str | Path | None = setting(
        default=None,
        help="Text whose perplexity is measured at each scoring: a UTF-8 file or a folder of .txt files in order of "
        "name, or sampled, which is text of the unedited model; by default none",
    )
    held_out_tokens: int = setting(
        default=10_000, least=2, most=MOST_TOKENS, help="With held_out: tokens to read; a shorter text is used whole"
    )
    fluency: int = setting(
        default=0,
        least=0,
        most=MOST_ITEMS,
        help="Texts to generate at each scoring, whose n-gram entropy is measured; 0 for none",
    )
    lm_eval: Sequence[str] | None = setting(
        default=None,
        help="Tasks of lm-evaluation-harness to run at each scoring, as in lambada_openai,winogrande; by default none",
    )
    lm_eval_limit: int | None = setting(
        default=None, least=1, most=MOST_ITEMS, help="With lm_eval: items of each task to run; by default all"
    )
    lm_eval_tasks: str | Path | None = setting(
        default=None, help="With lm_eval: folder with task files of your own; by default only the package's tasks"
    )
    essence: int = setting(default=0)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not METHODS[self.method].spread and self.at_once not in (None, 1):
            raise refusal(self, "at_once", f"1, as {self.method} edits one fact at a time", self.at_once)
        if self.continue_from is not None and self.together == "case":
            raise refusal(self, "continue_from", "a file only with together all", "one with together case")
        if self.continue_from is not None and self.after == "prune":
            raise refusal(self, "continue_from", "a file only without after prune", "one with after prune")
        if not METHODS[self.method].spread and self.past_keys is not None:
            raise refusal(self, "past_keys", f"a value only with {', '.join(SPREAD)}", f"one with {self.method}")
        for name, needed in NEEDED.items():
            if getattr(self, name) != settings_of(type(self))[name].default and getattr(self, needed) is None:
                raise refusal(self, name, f"a value only with {needed}", "one without")


@settings("tune", heading="Tuning")
class TuneSettings(EditingSettings):
    """Every setting of tuning. Each value of the tuned hyperparameter is tried in single edits."""

    layer: int | None = setting(
        default=None,
        least=0,
        most=MOST_LAYERS,
        names_run="never",
        help="Layer to edit, from 0; by default the model's published layer, or the one a fifth of the way up",
    )
    hyperparameter: str | None = setting(
        default=None,
        names_run="never",
        option="--setting",
        help="Hyperparameter to tune; by default epsilon for ft-1 and ft-5, kl_factor for the others",
    )
    values: Sequence[float] | None = setting(
        default=None, names_run="never", help="Values to try, as in 0.0625,0.9,1; by default the paper's"
    )
    essence: int = setting(default=0)
