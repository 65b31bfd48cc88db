"""The pages of docs/ say what is so: their commands exist, and each page's blocks run, in order, in an empty folder.

`make test` reads every command. `make test-docs` runs the blocks too. A block that needs what a machine may not have
says so in its title, and is only read.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from fasttrace.cli import cli

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r'^```(sh|python)(?: title="([^"\n]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"needs |takes |once$|in the source folder$")  # how the title of a block begins that is only read
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if re.search("^```(sh|python)", path.read_text(), re.M))


class Block(NamedTuple):
    language: str
    title: str
    text: str

    @property
    def runs(self) -> bool:
        return not NOT_RUN.match(self.title)


def blocks(path: Path) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(path.read_text(encoding="utf-8"))]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands(text: str) -> list[list[str]]:
    """The words of every command of fasttrace in a shell block, without comments, pipes and redirections."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"(?:^|\s)# .*$", "", text, flags=re.MULTILINE))
    lexer = shlex.shlex(lines, posix=True, punctuation_chars="|&;<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;<>\n"):
            found.append([])
        else:
            found[-1].append(word)
    return [one for one in found if one[:1] == ["fasttrace"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fasttrace trace --limit 1   # a remark --here\n", [["fasttrace", "trace", "--limit", "1"]]),
        ('echo "x" | fasttrace sql - --json > a\n', [["fasttrace", "sql", "-", "--json"]]),
        ("fasttrace mass \\\n    --limit 4\nls\n", [["fasttrace", "mass", "--limit", "4"]]),
        ('fasttrace sql "\n SELECT 1\n" --csv\n', [["fasttrace", "sql", "\n SELECT 1\n", "--csv"]]),
    ],
)
def test_commands_are_read(text, words):
    assert commands(text) == words


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=name)
def test_every_command_and_option_exists(path):
    """In blocks, also those that are not run, and in prose."""
    text = path.read_text(encoding="utf-8")
    found = [words for block in blocks(path) if block.language == "sh" for words in commands(block.text)]
    found += [shlex.split(words) for words in re.findall(r"`(fasttrace [a-z][^`\n]*)`", text) if "…" not in words]
    verbs = set(cli.list_commands(None))
    for _, verb, *words in (words for words in found if not words[1].startswith("-")):
        if verb == "VERB":
            continue
        assert verb in verbs, verb
        known = {option for one in cli.get_command(None, verb).params for option in one.opts} | {"--help"}
        assert {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)} <= known, [verb, *words]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_python_compiles(path):
    for block in blocks(path):
        if block.language == "python":
            compile(block.text, name(path), "exec")


def test_every_title_is_a_reason_or_a_file():
    titles = {block.title for path in PAGES for block in blocks(path) if block.title}
    assert {title for title in titles if not NOT_RUN.match(title) and "." not in title} == set()


@pytest.mark.pages
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", [path for path in PAGES if any(block.runs for block in blocks(path))], ids=name)
def test_the_blocks_run(path, tmp_path):
    """All blocks of a page in one folder. Its Python blocks are one session, as a reader would have them, and a block
    with the name of a file is that file."""
    steps = [(block.title or block.language, block.text) for block in blocks(path) if block.runs]
    done = subprocess.run(
        [sys.executable, "-c", SESSION, repr(steps)],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


SESSION = """
import ast, subprocess, sys
here = {"__name__": "__main__"}
for what, text in ast.literal_eval(sys.argv[1]):
    print("-----", text, sep="\\n", flush=True)
    if what == "sh":
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True, stdin=subprocess.DEVNULL)
    elif what == "python":
        exec(compile(text, "block", "exec"), here)
    else:
        open(what, "w").write(text)
"""
