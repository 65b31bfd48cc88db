"""The verb completion: what a shell reads to complete the words of a command."""

import click
from click.shell_completion import get_completion_class

from .help import Choice, command

SHELLS = {
    "bash": 'eval "$(fasttrace completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(fasttrace completion zsh)" in ~/.zshrc, after compinit',
    "fish": "fasttrace completion fish | source, in ~/.config/fish/config.fish",
}
HOW = "\n\n    ".join(f"{shell}: {line}" for shell, line in SHELLS.items())


@command(
    help=f"""Print what makes a shell complete verbs, options, choices, studies and saved queries.

    Let the shell read it when it starts:

    {HOW}
    """
)
@click.argument("shell", type=Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print the script of click for this shell."""
    from .boundary import cli

    kind = get_completion_class(shell)
    assert kind is not None, "SHELLS are those of click"
    click.echo(kind(cli, {}, "fasttrace", "_FASTTRACE_COMPLETE").source())
