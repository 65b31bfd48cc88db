"""PMET: MEMIT's solve for the output of the MLP alone (Li et al. 2023, arXiv 2308.08742).

Two δ are optimised together, at the outputs of attention and of the MLP. So the MLP's need not stand for what attention
would change. Only the MLP's is written into the weights.
"""

import math

from fasttrace.editing.methods.memit import Memit


class Pmet(Memit):
    """z is the MLP's output at the window's last layer. A layer takes 1/√n of what is missing, n the layers left."""

    name = "pmet"
    at = "modules"

    def share(self, left: int) -> float:
        """√n, as in the authors' code (xpq-tech/PMET, edit/pmet/pmet_main.py)."""
        return math.sqrt(left)
