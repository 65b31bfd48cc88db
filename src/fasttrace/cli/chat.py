"""The verb chat: continues prompts with a model, edited or not."""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from fasttrace.errors import UserError
from fasttrace.optional import require
from fasttrace.settings.generate import GenerateSettings

from . import signals
from .help import command, option
from .options import OF_MODEL, options, read_stdin, setting_options
from .work import load

if TYPE_CHECKING:
    from fasttrace.models import Decoder

TOGETHER = 16  # lines of stdin that are continued together, and thus the most that a stopped command does not print
HELP = """\
Type a prompt. The model continues it: no line knows of the lines before it.
Arrow up shows the history. Ctrl-C clears the line, or stops a text.
.help   show this help
.quit   leave, as Ctrl-D does
"""


@command()
@options(*OF_MODEL)
@option(
    "--delta",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Edit the model by a file of --delta of edit or mass; by default it is not edited.",
)
@option("--compare", is_flag=True, help="Show each text before and after the edit of --delta.")
@setting_options(GenerateSettings)
@option("--json", "as_json", heading="Output", is_flag=True, help="Print a line of JSON for each prompt.")
def chat(
    model: str,
    dtype: str,
    device: str,
    tokenizer: str | None,
    trust_remote_code: bool,
    delta: str | None,
    compare: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Continue prompts with a model, and show what an edit changes.

    On a terminal, fasttrace opens a prompt. Otherwise it reads stdin, one prompt per line, and prints the text that
    follows each; blank lines are left out.

    The model continues a prompt as plain text, as it is given a fact's prompt when it is traced and edited ("The Eiffel
    Tower is located in the city of"). The default model is trained to answer messages: --chat-template asks it so. Each
    prompt stands alone, without those before it.
    """
    from fasttrace.editing.delta import check_delta
    from fasttrace.editing.generate import with_delta

    asked = GenerateSettings(**given)
    if compare and delta is None:
        raise UserError("--compare: expected --delta FILE with an edit to compare with, got none")
    if delta is not None:
        check_delta(delta)
    terminal = sys.stdin.isatty()
    if terminal:
        if not sys.stdout.isatty():
            raise UserError("expected prompts on stdin, or a terminal for stdin and stdout, got one for stdin alone")
        require("prompt_toolkit")
        prompts = []
    else:
        lines = read_stdin("the text").split("\n")
        prompts = [line.removesuffix("\r") for line in lines if line.strip()]
        if not prompts:
            raise UserError("stdin: expected one prompt per line, got none")
    decoder = load(model, dtype, device, tokenizer, trust_remote_code)
    after = decoder if delta is None else with_delta(decoder, delta)
    talk = Chat(decoder if compare else None, after, asked, as_json)
    if terminal:
        talk.run()
        return
    try:
        for text in talk.texts(prompts):
            click.echo(text, nl=False)
    except KeyboardInterrupt as stop:
        click.echo("fasttrace: stopped; the texts of the prompts before are printed", err=True)
        sys.exit(signals.exit_code(stop))


class Chat:
    """Continues prompts by the settings `asked`, each as a line of JSON or as text.

    before: the model without the edit, or None to show one text of each prompt. after: the model whose text is shown.
    """

    def __init__(self, before: "Decoder | None", after: "Decoder", asked: GenerateSettings, as_json: bool) -> None:
        self.before, self.after, self.asked, self.as_json = before, after, asked, as_json

    def texts(self, prompts: Sequence[str]) -> Iterator[str]:
        """Yield what to print for each prompt."""
        from fasttrace.models.texts import continued

        views = [view for view in (self.before, self.after) if view is not None]
        found = zip(*(continued(view, prompts, self.asked, TOGETHER) for view in views), strict=True)
        for prompt, (*before, text) in zip(prompts, found, strict=True):
            if self.as_json:
                yield json.dumps({"prompt": prompt, **({"before": before[0]} if before else {}), "text": text}) + "\n"
            elif before:
                yield f"before: {before[0].strip()}\nafter:  {text.strip()}\n"
            else:
                yield f"{text.strip()}\n"

    def answer(self, line: str) -> str:
        """The text to print for a line of the prompt. Raises UserError, one sentence, where there is none."""
        if line == ".help":
            return HELP
        if line.startswith("."):
            raise UserError(f"expected a prompt, .help or .quit, got {line}")
        try:
            [text] = self.texts([line])
        except KeyboardInterrupt as stop:
            signals.go_on(stop)
            raise UserError("the text was stopped") from None
        return text

    def run(self) -> None:
        """Continue prompts until Ctrl-D or .quit."""
        from prompt_toolkit import PromptSession

        from .session import converse, history

        converse(PromptSession(history=history("chat")), self.answer)
