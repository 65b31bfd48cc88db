"""The checks of a record's fields, for every format: what is wrong with a field, in a sentence that names it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from fasttrace.errors import shown
from fasttrace.settings.kinds import MOST_CHARACTERS, Kind, items_of

PLACE = "{}"  # where the subject stands in a template


class Bad(Exception):
    """Why a record cannot be used. field: the field at fault, None for the record as a whole. what: the reason."""

    def __init__(self, field: str | None, what: str) -> None:
        super().__init__(what)
        self.field, self.what = field, what


class LeftOut(NamedTuple):
    """A record that is no fact, or a part of one that no fact has.

    record: its place in the source, in words. field: the field at fault, or None. what: the reason. part: whether it is
    a part of a record that is used.
    """

    record: str
    field: str | None
    what: str
    part: bool = False

    @property
    def reason(self) -> str:
        """The reason with its field."""
        return self.what if self.field is None else f"field '{self.field}': {self.what}"

    def sentence(self, source: str) -> str:
        """The whole of it, as an error says it."""
        return f"{source}, {self.record}{', ' if self.field else ': '}{self.reason}"


def _left_out(value: Any) -> list[LeftOut]:
    items = items_of([value] if isinstance(value, str | bytes | Mapping) else value)
    if not all(isinstance(one, LeftOut) for one in items):
        raise ValueError
    return items


LeftOuts = Annotated[Sequence[LeftOut], Kind("what read_facts left out", _left_out)]
"""What was left out, as the argument of a public function."""


def kind(value: object) -> str:
    """The type of a JSON value, in words."""
    names = {
        dict: "a JSON object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        type(None): "null",
    }
    return names.get(type(value)) or ("a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


class Fields:
    """The fields of one JSON object. Each getter checks what it returns, and raises Bad, which names the field.

    prefix: the path to this object within its record, such as "requested_rewrite.".
    left_out: reasons why parts of the record are not used; a parser adds to them by `leave_out`. file: the name of its
    file without the ending, "" where it is not in a file. path: the same within its folder, "" where it is not one of
    several files of a folder; ids by place need it.
    """

    __slots__ = ("_read", "file", "left_out", "path", "prefix", "value")

    def __init__(
        self,
        value: Mapping[str, Any],
        prefix: str = "",
        left_out: list[Bad] | None = None,
        file: str = "",
        path: str = "",
    ) -> None:
        self.value, self.prefix, self.file, self.path = value, prefix, file, path
        self.left_out: list[Bad] = [] if left_out is None else left_out
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) is not None

    def name(self, key: str) -> str:
        """The field as a message names it."""
        return self.prefix + key

    def bad(self, key: str, what: str) -> Bad:
        return Bad(self.name(key), what)

    def leave_out(self, reason: Bad) -> None:
        """A part of the record is not used. It is said and stored, and the record is used without it."""
        self.left_out.append(reason)

    def rest(self) -> dict[str, Any]:
        """The fields that no getter has read: what a fact keeps as its `meta`."""
        return {key: value for key, value in self.value.items() if key not in self._read}

    # ---- values -------------------------------------------------------------------------------------------

    def get(self, key: str) -> Any:
        """The value, or None where it is missing or null."""
        self._read.add(key)
        return self.value.get(key)

    def need(self, key: str) -> Any:
        self._read.add(key)
        if key not in self.value:
            raise self.bad(key, "it is missing")
        return self.value[key]

    def string(self, key: str) -> str:
        """A text that is not empty."""
        return _string(self.need(key), self.name(key))

    def optional(self, key: str) -> str | None:
        """A text that is not empty, or None where it is missing or null."""
        value = self.get(key)
        return None if value is None else _string(value, self.name(key))

    def text(self, key: str) -> str | None:
        """A text, which may be empty, or None where it is missing or null."""
        value = self.get(key)
        return None if value is None else _text(value, self.name(key))

    def template(self, key: str) -> str:
        """A text with one place for the subject."""
        return one_place(self.string(key), self.name(key))

    def wholes(self, key: str) -> tuple[str, ...]:
        """The whole prompts of a list. A missing key means that there are none."""
        return tuple(_whole(item, field) for field, item in self._items(key, "a list of strings"))

    def strings(self, key: str) -> tuple[str, ...]:
        """The texts of a list. A missing key means that there are none."""
        return tuple(_string(item, field) for field, item in self._items(key, "a list of strings"))

    def one_or_more(self, key: str, *, whole: bool = False) -> tuple[str, ...]:
        """A text, a list of texts, or none where it is null or missing. whole: whether they are whole prompts."""
        value, check = self.get(key), _whole if whole else _string
        if isinstance(value, list):
            return tuple(check(item, f"{self.name(key)}[{i}]") for i, item in enumerate(value))
        if value is not None and not isinstance(value, str):
            raise self.bad(key, f"expected a string or a list of strings, got {kind(value)}")
        return () if value is None else (check(value, self.name(key)),)

    def answers(self, key: str) -> tuple[str, ...]:
        """Every text in a text, a list or a list of lists: answers with their aliases. A whole number is a text, too.
        Empty texts are none."""
        found: list[str] = []
        for field, item in _flat(self.get(key), self.name(key)):
            whole = isinstance(item, int) and not isinstance(item, bool)
            if text := _text(str(item) if whole else item, field).strip():
                found.append(text)
        return tuple(dict.fromkeys(found))

    def inside(self, key: str) -> "Fields":
        """The JSON object under a key."""
        return self._fields(self.need(key), key)

    def optional_inside(self, key: str) -> "Fields | None":
        """The object, or None where it is missing or null."""
        value = self.get(key)
        return None if value is None else self._fields(value, key)

    def each(self, key: str) -> Iterator["Fields"]:
        """The objects of a list. A missing or null key means that there are none."""
        for field, item in self._items(key, "a list of JSON objects"):
            yield self._fields(item, field.removeprefix(self.prefix))

    def identity(self, key: str) -> str:
        """A whole number or a text, as text."""
        value = self.need(key)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self.bad(key, f"expected a whole number or a string, got {kind(value)}")
        return str(value) if isinstance(value, int) else _string(value, self.name(key))

    def _items(self, key: str, expected: str) -> Iterator[tuple[str, Any]]:
        value = self.get(key)
        if value is None and (key not in self.value or expected != "a list of strings"):
            return
        if not isinstance(value, list):
            raise self.bad(key, f"expected {expected}, got {kind(value)}")
        yield from ((f"{self.name(key)}[{i}]", item) for i, item in enumerate(value))

    def _fields(self, value: object, key: str) -> "Fields":
        if not isinstance(value, dict):
            raise self.bad(key, f"expected a JSON object, got {kind(value)}")
        return Fields(value, f"{self.name(key)}.", self.left_out, self.file, self.path)


Parse = Callable[[Fields, int], Iterator[Any]]
"""A record and its number → its facts."""


def _flat(value: Any, field: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _flat(item, f"{field}[{i}]")
    elif value is not None:
        yield field, value


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise Bad(field, f"expected a string, got {kind(value)}")
    if len(value) > MOST_CHARACTERS:
        raise Bad(field, f"expected at most {MOST_CHARACTERS} characters, got {len(value)}")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise Bad(field, f"{shown(value)} contains bytes that are not UTF-8")
    return value


def _string(value: object, field: str) -> str:
    value = _text(value, field)
    if not value.strip():
        raise Bad(field, f"expected a string that is not empty, got {shown(value)}")
    return value


def _whole(value: object, field: str) -> str:
    text = _string(value, field)
    if PLACE in text:
        raise Bad(field, f"expected a whole prompt with its subject, got {shown(text)} with a placeholder")
    return text


def one_place(template: str, field: str, place: str = PLACE) -> str:
    """The template with "{}" in its one place for the subject, which the data set writes as `place`."""
    places = template.count(place)
    if places == 0:
        what = f"the subject is absent: expected one placeholder '{place}' for it, got none"
        raise Bad(field, f"{what} in {shown(template)}")
    if places > 1:
        raise Bad(field, f"expected one placeholder '{place}' for the subject, got {places} in {shown(template)}")
    if place != PLACE and PLACE in template:
        raise Bad(field, f"expected the placeholder '{place}' alone, got '{PLACE}' too in {shown(template)}")
    return template.replace(place, PLACE)


def two_targets(true: str, false: str | None, field: str) -> tuple[str, str | None]:
    """Both targets without spaces at their ends. Raises Bad where they are equal, since an edit needs two."""
    true, false = true.strip(), None if false is None else false.strip()
    if true == false:
        raise Bad(field, f"expected a false target that differs from the true one, got {shown(false)} for both")
    return true, false


def check_encoding(record: Mapping[str, Any]) -> None:
    """Refuse bytes that are not UTF-8 in the fields that no parser reads."""
    for key, value in record.items():
        try:
            json.dumps({key: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Bad(ascii(key)[1:-1], "it contains bytes that are not UTF-8") from None
        except RecursionError:
            raise Bad(ascii(key)[1:-1], "expected JSON of a few levels, got one that is nested too deeply") from None
