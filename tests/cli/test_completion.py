"""What shells complete, asked of the shells themselves."""

import os
import shutil
import subprocess
import sys

import pytest

# Each script prints what the shell offers for the words in "$@", the last of which is begun.
SCRIPTS = {
    "bash": """
        eval "$(fasttrace completion bash)"
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _fasttrace_completion fasttrace 2>/dev/null
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        compdef() { : }
        _describe() { print -l -- "${(@P)3}" }
        compadd() { print -l -- "${(@P)@[-1]}" }
        eval "$(fasttrace completion zsh)"
        words=("$@") CURRENT=$#
        _fasttrace_completion
    """,
    "fish": """
        fasttrace completion fish | source
        complete -C "$argv"
    """,
}


@pytest.fixture(params=SCRIPTS)
def complete(request, tmp_path):
    """A function: the words that a shell offers after the given ones."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "bin" / "fasttrace"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom fasttrace.cli import main\n\nmain()\n")
    program.chmod(0o755)
    (tmp_path / "own.toml").touch()
    (tmp_path / "s.duckdb").touch()
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def ask(*words):
        arguments = [shell, "-c", SCRIPTS[shell], *(() if shell == "fish" else ("shell",)), "fasttrace", *words]
        done = subprocess.run(arguments, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return {line.split("\t")[0].partition(":")[0] for line in done.stdout.split("\n") if line}

    return ask


def test_a_shell_completes_verbs_options_choices_and_names(complete):
    assert complete("tr") == {"trace"}
    assert complete("trace", "--wi") == {"--windows"}
    assert complete("trace", "--module", "a") == {"attn"}
    assert {"fact-forcing", "fact-erasure", "fact-amplification"} <= complete("edit", "--problem", "fact-")
    assert complete("study", "gpt") == {"gpt-j", "gpt2-xl"}
    assert complete("study", "ow") == {"own.toml"}
    assert complete("sql", "scores_by_l") == {"scores_by_layer"}
    assert complete("trace", "--model", "smol") == {"smollm2-135m"}
    assert complete("completion", "z") == {"zsh"}
