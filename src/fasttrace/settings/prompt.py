"""One fact stated in words, instead of read from a file."""

from fasttrace.errors import UserError

from .base import setting, settings


@settings("prompt", heading="Facts")
class StatedFact:
    """What makes a prompt a fact."""

    subject: str | None = setting(
        default=None, names_run="never", help="Of a prompt as text: its subject, whose tokens are marked"
    )
    target: str | None = setting(
        default=None, names_run="never", help="Of a prompt as text: the true answer o_true, whose probability is read"
    )
    new_target: str | None = setting(
        default=None,
        names_run="never",
        help="Of a prompt as text: the false answer o_false, which an edit makes the model give, and which logit "
        "differences compare with",
    )


@settings("--prompt", heading="Facts")
class PromptSettings(StatedFact):
    """The same with the prompt, for the command line."""

    prompt: str | None = setting(
        default=None,
        names_run="never",
        help="Take one fact from this prompt instead of a file: text with {} in place of the subject, or with the "
        "subject itself",
    )

    def __attrs_post_init__(self) -> None:
        if self.prompt is None:
            for name in ("subject", "target", "new_target"):
                if getattr(self, name) is not None:
                    option = f"--{name.replace('_', '-')}"
                    raise UserError(f"{option}: expected --prompt TEXT, whose {name.replace('_', ' ')} it is, got none")
