"""Parts of a figure that tests read."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def panels_of(figure: Figure) -> list[Axes]:
    """The visible axes of a figure, without colour bars."""
    found = figure.findobj(lambda artist: isinstance(artist, Axes) and artist.get_label() != "<colorbar>")
    return [axes for axes in found if axes.get_visible()]
