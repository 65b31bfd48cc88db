"""The prompt of `fasttrace sql` without a query. The store is open only while a query runs, so a sweep can go on."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.sql import SqlLexer

from fasttrace.errors import UserError, did_you_mean
from fasttrace.store.connect import connection

from . import signals
from .catalogue import listed, relations_of, rendered
from .session import converse, history

HELP = """\
Type SQL, over several lines if you like. A semicolon or an empty line ends it.
Tab completes. Arrow up shows the history. Ctrl-C clears the line, or stops a query.
NAME [NAME=VALUE …]   run a saved query, or show all rows of a relation
.tables               list relations and views, with their numbers of rows and columns
.schema NAME          describe a relation and its columns
.queries              list the saved queries
.help                 show this help
.quit                 leave, as Ctrl-D does
"""
PARAM = re.compile(r'(\w+)=(\[[^\]]*\]|"[^"]*"|[^\s;]+)')
CALL = re.compile(rf"([\w-]+)((?:\s+{PARAM.pattern})*)\s*;?")
COMMANDS = (".tables", ".schema", ".queries", ".help", ".quit")


class Prompt:
    """Reads queries and prints their results, until the user leaves.

    store: the store or stores to query. saved: {name: saved query}. write: whether queries may change the store.
    show: converts a table to text. folders: whose files the queries may read, and with `write` also write.
    """

    def __init__(
        self,
        store: Any,
        saved: Mapping[str, Any],
        write: bool,
        show: Callable[[pa.Table], str],
        folders: Iterable[Path] = (),
    ) -> None:
        from fasttrace.analysis.saved import columns_of

        self.store, self.saved, self.show = store, saved, show
        self.write, self.folders = write, tuple(folders)
        self.columns = columns_of(store)  # raises before the first prompt if the store cannot be read
        self.session: PromptSession[str] = PromptSession(
            history=history("sql"),
            completer=Words(self),
            lexer=PygmentsLexer(SqlLexer),
            multiline=True,
            key_bindings=self._keys(),
            prompt_continuation=lambda width, line, wrapped: "... ".rjust(width),
        )

    def run(self) -> None:
        """Answer queries until Ctrl-D or .quit."""
        converse(self.session, self.answer)

    def answer(self, line: str) -> str:
        """The text to print for a line. Raises UserError, one sentence, where the line cannot be answered."""
        from fasttrace.analysis.saved import columns_of, run_query, value_of

        if line.startswith("."):
            return self._command(line)
        call = self._call(line)
        try:
            query, words = (line, []) if call is None else (self.saved[call[0]], call[1:])
            params = dict(value_of(word) for word in words)
            table = run_query(self.store, query, params, write=self.write, folders=self.folders)
        except KeyboardInterrupt as stop:
            signals.go_on(stop)
            raise UserError("the query was stopped") from None
        if self.write:
            self.columns = columns_of(self.store)
        return self.show(table)

    def _command(self, line: str) -> str:
        name, _, argument = line.rstrip("; ").partition(" ")
        if name == ".help":
            return HELP
        if name == ".tables":
            return self.show(relations_of(self.store, self.saved))
        if name == ".queries":
            return rendered(listed(self.saved))
        if name == ".schema":
            return self._schema(argument.strip())
        raise UserError(f"expected one of {', '.join(COMMANDS)}, got {name}{did_you_mean(name, COMMANDS)}")

    def _schema(self, name: str) -> str:
        if name not in self.columns:
            raise UserError(f"there is no relation '{name}'{did_you_mean(name, self.columns, 3)}")
        plain = name.rpartition(".")[2]
        header = f"{self.saved[plain].header.text}\n" if plain in self.saved else ""
        rows = [{"column": column, "type": kind} for column, kind in self.columns[name]]
        return header + self.show(pa.Table.from_pylist(rows))

    def _call(self, line: str) -> list[str] | None:
        """[name, NAME=VALUE, …] of a line that calls a saved query, or None for any other line."""
        called = CALL.fullmatch(line.strip())
        if called is None or called[1] not in self.saved:
            return None
        return [called[1], *(name + "=" + value.strip('"') for name, value in PARAM.findall(called[2]))]

    def _complete(self, text: str) -> bool:
        """Whether Enter runs the text instead of starting a new line."""
        text = text.strip()
        return not text or text.startswith(".") or text.endswith(";") or self._call(text) is not None

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            on_empty_line = not buffer.document.current_line.strip() and buffer.document.is_cursor_at_the_end
            if on_empty_line or self._complete(buffer.text):
                buffer.validate_and_handle()
            else:
                buffer.newline()

        return keys


class Words(Completer):
    """Completes relations after FROM and JOIN, columns after `NAME.`, and elsewhere columns, keywords and relations."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        con = connection()
        try:
            words = con.execute("SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved'")
            self.keywords = sorted({word.upper() for (word,) in words.fetchall()} | {"OVER", "PARTITION BY", "FILTER"})
        finally:
            con.close()

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        before = document.text_before_cursor
        command = re.fullmatch(r"\s*(\.\w*)", before)
        typed = command[1] if command else re.split(r"\W", before)[-1]
        for text, what in self._words(before[: len(before) - len(typed)], typed, document.text):
            if text.lower().startswith(typed.lower()) and text.lower() != typed.lower():
                yield Completion(text, -len(typed), display_meta=what)

    def _words(self, left: str, typed: str, text: str) -> Iterable[tuple[str, str]]:
        """(word, what it is), the likeliest first. left: the text before the typed word. text: the whole text."""
        columns = self.prompt.columns
        if typed.startswith("."):
            return [(command, "") for command in COMMANDS]
        relations = [(name, "relation") for name in columns]
        if owner := re.search(r'(\w+|"[^"]+")\.$', left):
            inside = f"{owner[1]}."
            tables = [(name.removeprefix(inside), "relation") for name in columns if name.startswith(inside)]
            return tables + _columns(columns.get(_named(owner[1], left, columns), []))
        if re.search(r"\b(from|join|\.schema)\s+$|\bfrom\s[^;()]*,\s*$", left, re.IGNORECASE):
            return relations
        if not left.strip():
            queries = [(name, one.kind) for name, one in self.prompt.saved.items()]
            return [*queries, *((word, "") for word in self.keywords), *((word, "") for word in COMMANDS)]
        read = [name for name in columns if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
        near = _columns([column for name in read or columns for column in columns[name]])
        return [*near, *((word, "") for word in self.keywords), *relations]


def _columns(columns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, kind.lower()) for name, kind in dict(columns).items()]


def _named(owner: str, text: str, columns: Mapping[str, Any]) -> str:
    """The relation that `owner` names, directly or as an alias."""
    if owner in columns:
        return owner
    alias = re.search(rf'([\w."]+)\s+(?:AS\s+)?{re.escape(owner)}\b', text, re.IGNORECASE)
    return alias[1] if alias else owner
