"""A display of rich in the output of a notebook's cell, without ipywidgets."""

import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 100  # characters
PRE = '<pre style="white-space:pre;line-height:normal;margin:0">{code}</pre>'


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class Page:
    """One output that is replaced at every refresh, with the methods of rich's Live. Its last state stays."""

    transient = False

    def __init__(self, drawn: "Callable[[], RenderableType]") -> None:
        self.drawn = drawn
        self.handle: Any = None

    def start(self) -> None:
        from IPython.display import display

        self.handle = display(self._bundle(), raw=True, display_id=True)

    def refresh(self) -> None:
        self.handle.update(self._bundle(), raw=True)

    def stop(self) -> None:
        self.refresh()

    def _bundle(self) -> dict[str, str]:
        """The display as text and as HTML."""
        from rich.console import Console

        file = io.StringIO()
        console = Console(file=file, width=WIDTH, record=True, force_jupyter=False, color_system="truecolor")
        console.print(self.drawn())
        html = console.export_html(inline_styles=True, code_format=PRE, clear=False)
        lines = console.export_text().splitlines()
        return {"text/plain": "\n".join(line.rstrip() for line in lines), "text/html": html}
