"""What all results have in common: a line that says what they are, data frames, and how a notebook shows them."""

from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from fasttrace.errors import UserError, shown
from fasttrace.optional import require

from .html import fragment

if TYPE_CHECKING:
    import pandas
    import polars
    from matplotlib.axes import Axes


class Shown:
    """A result that is made of Arrow tables.

    TABLES: the names of the attributes that are tables, the one to look at first at the beginning.
    """

    TABLES: ClassVar[tuple[str, ...]]

    def to_pandas(self, table: str | None = None) -> "pandas.DataFrame":
        """One of the tables as a pandas data frame. table: its name, by default the first of TABLES.

        Raises UserError for any other name, and PackageError where pandas is not installed.
        """
        frame = self._table("to_pandas", table)
        require("pandas")
        return frame.to_pandas()

    def to_polars(self, table: str | None = None) -> "polars.DataFrame":
        """As `to_pandas`, as a polars data frame."""
        frame = self._table("to_polars", table)
        return require("polars").from_arrow(frame)

    def _table(self, what: str, name: str | None) -> pa.Table:
        if name is None:
            name = self.TABLES[0]
        if name not in self.TABLES:
            raise UserError(f"{what}: table: expected one of {', '.join(self.TABLES)}, got {shown(name)}")
        table: pa.Table = getattr(self, name)
        return table

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self._line()}"

    def _line(self) -> str:
        """What the result is, in one line."""
        raise NotImplementedError

    def _summary(self) -> pa.Table:
        """The rows that a notebook shows."""
        return self._table("summary", None)

    def _picture(self) -> "Axes | None":
        """The axes of a small picture of the result in a figure of its own, if it has one."""
        return None

    def _repr_html_(self) -> str:
        return fragment(repr(self), self._summary(), self._picture())
