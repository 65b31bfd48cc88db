"""Runs fasttrace commands as processes that start at once: a server imports everything and forks for each of them.

A process takes seconds to import torch. The server has one thread when it forks, so that the child is a sound process.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "TOKENIZERS_PARALLELISM": "false",
}


class ForkServer:
    """Starts commands. Use it in a `with` block."""

    def __enter__(self) -> "ForkServer":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, __file__], env={**os.environ, **ONE_THREAD}, **pipes)
        self._ask({"ready": True})
        return self

    def __exit__(self, *_: object) -> None:
        """End the server, and with it the commands that a failed test has left running."""
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def start(self, *words: str, cwd: Path, ignored: tuple[int, ...] = (), prepare: str = "") -> int:
        """Start `fasttrace WORDS` and return its process id. Output: files stdout and stderr in cwd.

        ignored: signals that it ignores from the start, as under nohup. prepare: Python code that it runs first.
        """
        return self._ask({"words": words, "cwd": str(cwd), "ignored": ignored, "prepare": prepare})

    def wait(self, pid: int) -> int:
        """The exit code, negative if a signal ended the process."""
        return self._ask({"wait": pid})

    def _ask(self, request: dict) -> int:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server has ended"
        return json.loads(answer)


def _serve() -> None:
    import_all()
    threads = os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else [""]
    assert len(threads) == 1, "a process with several threads must not fork"
    running = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "ready" in request:
            answer = 0
        elif "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
            running.discard(request["wait"])
        elif answer := os.fork():
            running.add(answer)
        else:
            _child(request)
        print(json.dumps(answer), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def import_all() -> None:
    """Import what the verbs import late."""
    sys.modules["polars"] = None  # statsmodels imports it where it is installed, and it starts threads
    import duckdb  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import statsmodels.api  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import fasttrace.analysis.figures
    import fasttrace.analysis.paper
    import fasttrace.analysis.report
    import fasttrace.analysis.tables
    import fasttrace.study
    import fasttrace.workflow  # noqa: F401
    from fasttrace.cli import cli

    for verb in cli.list_commands(None):
        cli.get_command(None, verb)


def _child(request: dict) -> None:
    code = 1
    try:
        os.chdir(request["cwd"])
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ["XDG_CACHE_HOME"] = str(Path(request["cwd"]) / "cache")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number in request["ignored"] else signal.SIG_DFL)
        sys.argv = ["fasttrace", *request["words"]]
        exec(request["prepare"], {})
        from fasttrace.cli import main

        main()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
