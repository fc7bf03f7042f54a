"""Bounds of a scattering network as numbers, each beside what measures it.

| statement | bound | measured by |
| --- | --- | --- |
| no layer expands | `admissibility` | a pure tone where most passes |
| the network does not expand | `network_constant` | `adversarial_ratio` |
| deeper features move less | `translation_bound`, `decay_bound` | `distance` |
| deformations move features little | `network_constant` times `..._bound` | `distance` |
| energy is conserved and put out | `propagation_bound`, `layers_needed` | `energies` |

Norms are sums over the grid, without a factor for its spacing, unless said otherwise.
"""

from rectified.scattering.bounds.adversary import adversarial_ratio, distance, sum_of_squares
from rectified.scattering.bounds.constants import (
    admissibility,
    depth_constants,
    gain,
    is_admissible,
    is_exact,
    network_constant,
    product_constant,
)
from rectified.scattering.bounds.deformation import (
    band_limited_bound,
    cartoon_bound,
    gradient_bound,
    jacobian_factor,
    lipschitz_bound,
)
from rectified.scattering.bounds.energy import (
    Energies,
    energies,
    layers_needed,
    propagation_bound,
    wavelet_base,
    weyl_heisenberg_base,
)
from rectified.scattering.bounds.translation import decay_bound, reduction, translation_bound

__all__ = [
    "Energies",
    "admissibility",
    "adversarial_ratio",
    "band_limited_bound",
    "cartoon_bound",
    "decay_bound",
    "depth_constants",
    "distance",
    "energies",
    "gain",
    "gradient_bound",
    "is_admissible",
    "is_exact",
    "jacobian_factor",
    "layers_needed",
    "lipschitz_bound",
    "network_constant",
    "product_constant",
    "propagation_bound",
    "reduction",
    "sum_of_squares",
    "translation_bound",
    "wavelet_base",
    "weyl_heisenberg_base",
]
