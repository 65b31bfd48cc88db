"""EMMET: ΔW = R (Kᵀ B⁻¹ K)⁻¹ Kᵀ B⁻¹ with B = λC + K_p K_pᵀ + μI (Gupta et al. 2024, arXiv 2403.14236, equation 13).

Of all changes that give the new keys exactly their values, it is the one that changes old knowledge least. For one key
it is ROME's. The authors' code adds slack · I to Kᵀ B⁻¹ K where several facts are solved together, since keys of
similar subjects are nearly dependent.
"""

from fasttrace.editing.methods.memit import Memit
from fasttrace.settings.methods import EmmetSettings


class Emmet(Memit):
    """MEMIT in which a new key's value is met exactly, but for `slack`."""

    name = "emmet"
    freedom = "slack"
    settings: EmmetSettings

    def slack(self, n: int) -> float:
        """λ · slack for several facts, and 0 for one."""
        return self.settings.slack * self.settings.covariance_weight if n > 1 else 0.0
