"""`fasttrace chat` as real processes: piped prompts, a terminal, Ctrl-C and what a user gets wrong."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
import torch
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

import fasttrace as ft
from fasttrace.cli.chat import Chat
from fasttrace.editing.delta import LowRank, save_delta
from fasttrace.editing.generate import with_delta

ARGV = [sys.executable, "-c", "from fasttrace.cli import main; main()", "chat", "--model", "model"]
PROMPTS = ["The Eiffel Tower is located in", "Paris is the capital of"]


@pytest.fixture(scope="module")
def model(workplace):
    return ft.load_model(workplace / "model")


@pytest.fixture(scope="module")
def updates():
    torch.manual_seed(0)
    return {2: LowRank(torch.randn(1, 48), torch.randn(1, 80))}


@pytest.fixture(scope="module")
def delta(model, updates, workplace):
    return save_delta(workplace / "one.safetensors", model, updates)


@pytest.fixture
def run(workplace, monkeypatch, command):
    """`command`, run in the workplace."""
    monkeypatch.chdir(workplace)
    return command


def ran(workplace, *words, stdin):
    """(exit code, stdout, stderr) of a process."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(workplace / "cache"), "OMP_NUM_THREADS": "1"}
    given = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    done = subprocess.run([*ARGV, *words], cwd=workplace, env=environment, capture_output=True, timeout=120, **given)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_piped_prompts_are_continued(workplace, model, updates, delta):
    text = "\r\n".join([*PROMPTS, "", "é"]).encode()
    code, out, err = ran(workplace, "--delta", delta.name, "--compare", "--json", stdin=text)
    assert (code, err) == (0, "")
    prompts = [*PROMPTS, "é"]
    rows = zip(prompts, model.generate(prompts), ft.generate(model, prompts, delta=updates), strict=True)
    wanted = [{"prompt": prompt, "before": before, "text": after} for prompt, before, after in rows]
    assert [json.loads(line) for line in out.splitlines()] == wanted
    assert all(row["before"] != row["text"] for row in wanted)


def test_text_is_printed_without_json(model, run, delta, updates):
    words, stdin = ("chat", "--model", "model", "--stop", "line"), "\n".join(PROMPTS)
    plain = [text.strip() for text in model.generate(PROMPTS, stop="line")]
    edited = [text.strip() for text in ft.generate(model, PROMPTS, delta=updates, stop="line")]
    assert run(*words, stdin=stdin).stdout == "".join(f"{text}\n" for text in plain)
    assert run(*words, "--delta", str(delta), stdin=stdin).stdout == "".join(f"{text}\n" for text in edited)
    both = "".join(f"before: {a}\nafter:  {b}\n" for a, b in zip(plain, edited, strict=True))
    assert run(*words, "--delta", str(delta), "--compare", stdin=stdin).stdout == both


def test_draws_are_those_of_python_however_many_prompts(model, run):
    prompts = [f"{PROMPTS[0]} {n}" for n in range(20)]  # more than are continued together
    draws = ("--top-k", "none", "--seed", "4", "--max-new-tokens", "5")
    done = run("chat", "--model", "model", "--json", *draws, stdin="\n".join(prompts))
    texts = [json.loads(line)["text"] for line in done.stdout.splitlines()]
    assert texts == model.generate(prompts, top_k=None, seed=4, max_new_tokens=5)


@pytest.mark.parametrize(
    ("words", "stdin", "sentence"),
    [
        (("--compare",), b"Paris", "--compare: expected --delta FILE with an edit to compare with, got none"),
        ((), b" \n\n", "stdin: expected one prompt per line, got none"),
        ((), b"\xff\xfe", "the text on stdin is not UTF-8 text"),
        (("--delta", "text.txt"), b"Paris", "cannot be read"),
        (("--delta", "absent"), b"Paris", "Invalid value for '--delta': File 'absent' does not exist."),
        (("--stop", "word"), b"Paris", "chat: stop: expected one of line, sentence, got 'word'"),
        (
            ("--max-new-tokens", "0"),
            b"Paris",
            "chat: max_new_tokens: expected a whole number from 1 to 1000000, got '0'",
        ),
        (
            ("--chat-template",),
            b"Paris",
            "generate: chat_template: expected a tokenizer that has one, got that of 'model'",
        ),
        ((), b"a" * 200, "a prompt to continue: expected at most 160 tokens for 'model' to read, got 200"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(words, stdin, sentence, run):
    done = run("chat", "--model", "model", *words, stdin=stdin, code=2)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert done.stderr.startswith("fasttrace: ")
    assert sentence in done.stderr


def test_a_terminal_for_stdin_alone_is_refused(workplace):
    ours, terminal = pty.openpty()
    try:
        code, out, err = ran(workplace, stdin=terminal)
    finally:
        os.close(ours)
        os.close(terminal)
    said = "expected prompts on stdin, or a terminal for stdin and stdout, got one for stdin alone"
    assert (code, out, err) == (2, "", f"fasttrace: {said}\n")


def test_ctrl_c_ends_piped_prompts_with_130(workplace):
    stdin = "\n".join([PROMPTS[0]] * 100_000).encode()
    words = [*ARGV, "--max-new-tokens", "100", "--json"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(words, cwd=workplace, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes) as process:
        process.stdin.write(stdin)
        process.stdin.close()
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, said = process.stdout.read(), process.stderr.read().decode()
    assert process.returncode == 130
    assert "fasttrace: stopped" in said
    assert [json.loads(line)["prompt"] for line in [first, *rest.splitlines()]][:1] == PROMPTS[:1]
    assert len(rest.splitlines()) < 99_999


def test_the_prompt_answers_and_continues(model, updates, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    asked = ft.GenerateSettings(max_new_tokens=6)
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text(f"{PROMPTS[0]}\r{'a' * 200}\r.what\r.help\rnever asked\x03{PROMPTS[1]}\r\x04")
        Chat(model, with_delta(model, updates), asked, False).run()
    done = capfd.readouterr()
    plain = model.generate(PROMPTS, settings=asked)
    edited = ft.generate(model, PROMPTS, settings=asked, delta=updates)
    shown = [f"before: {a.strip()}\nafter:  {b.strip()}\n" for a, b in zip(plain, edited, strict=True)]
    assert done.out.startswith(shown[0])
    assert done.out.endswith(shown[1])
    assert "Ctrl-D" in done.out
    said = [line for line in done.err.splitlines() if line.startswith("fasttrace: ")]
    assert [line.partition(", got ")[2] for line in said] == ["200", ".what"]
    history = (tmp_path / "state" / "fasttrace" / "chat_history").read_text()
    assert f"+{PROMPTS[0]}\n" in history
    assert "never asked" not in history


def test_the_prompt_on_a_real_terminal(workplace, model, tmp_path):
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(workplace)
        state = {"XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
        words = ["--max-new-tokens", "4", "--json"]
        os.execve(ARGV[0], [*ARGV, *words], {**os.environ, **state})
    screen = b""

    def wait_for(text):
        nonlocal screen
        deadline = time.monotonic() + 90
        while text not in screen:
            assert time.monotonic() < deadline, screen
            if select.select([terminal], [], [], 0.1)[0]:
                new = os.read(terminal, 65536)
                if b"\x1b[6n" in new:  # it asks where the cursor is
                    os.write(terminal, b"\x1b[1;1R")
                screen += new
        screen = screen.partition(text)[2]

    try:
        wait_for(b"fasttrace>")
        os.write(terminal, PROMPTS[0].encode() + b"\r")
        [text] = model.generate(PROMPTS[:1], max_new_tokens=4)
        wait_for(json.dumps({"prompt": PROMPTS[0], "text": text}).encode())
        wait_for(b"fasttrace>")
        os.write(terminal, b"\x04")
        deadline = time.monotonic() + 30
        while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError):  # its end of the terminal is closed
                select.select([terminal], [], [], 0.05)[0] and os.read(terminal, 65536)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
    except BaseException:
        os.kill(process, 9)
        raise
    finally:
        os.close(terminal)
