"""Flows: learn an ODE between two sets of samples, straighten it, follow it in one step.

    model = VelocityMLP(2)                                          # any network (x, t) -> velocity
    fit(model, FlowMatching(), Draws((points,), size=256, updates=5000), FitConfig(...))
    field = Field(model)
    pairs = make_pairs(field, PairStore(folder, count=50_000), shape=(2,))
    straighter = reflow(field, pairs, FitConfig(...))
    samples, evaluations = generate(straighter, noise, steps=1)

Everything is one core: a path x a prediction x a coupling x a time law x terms x a solver, each a
value that is passed in, from the module of its kind (`paths.vp_cosine`, `times.u_shaped`).
Lower-case names are ready values; the capital ones make others (`times.UShaped(a=2)`).

Conventions: t = 0 is the source x0 (noise), t = 1 the target x1 (data), x_t = a(t) x1 + b(t) x0;
the first axis is the batch; times are one number or one per point.
"""

from typing import TYPE_CHECKING

from rectified.errors import moved
from rectified.flow import (
    couplings,
    fields,
    grids,
    likelihood,
    losses,
    matching,
    metrics,
    pairs,
    paths,
    phased,
    predictions,
    sinkhorn,
    solvers,
    times,
)
from rectified.flow.couplings import FromSet, Independent, MinibatchOT, WithinClass
from rectified.flow.fields import Field
from rectified.flow.grids import uniform_grid
from rectified.flow.likelihood import log_prob
from rectified.flow.losses import Perceptual, Term, rfpp_terms
from rectified.flow.matching import FlowMatching
from rectified.flow.metrics import (
    Straightness,
    feature_distance,
    first_order_gap,
    optimal_cost,
    straightness,
    transport_cost,
    wasserstein2,
)
from rectified.flow.pairs import PairStore, fingerprint, noise_like
from rectified.flow.paths import straight
from rectified.flow.phased import Phased
from rectified.flow.predictions import PREDICTIONS
from rectified.flow.reflow import Draws, check_pairs, distil, generate, invert, make_pairs, reflow
from rectified.flow.sinkhorn import Sinkhorn
from rectified.flow.solvers import euler, heun, integrate, natural_euler
from rectified.flow.terminal_gain import gain_warning, terminal_gain
from rectified.flow.times import Discrete

__all__ = [
    "PREDICTIONS",
    "Discrete",
    "Draws",
    "Field",
    "FlowMatching",
    "FromSet",
    "Independent",
    "MinibatchOT",
    "PairStore",
    "Perceptual",
    "Phased",
    "Sinkhorn",
    "Straightness",
    "Term",
    "WithinClass",
    "check_pairs",
    "couplings",
    "distil",
    "euler",
    "feature_distance",
    "fields",
    "fingerprint",
    "first_order_gap",
    "gain_warning",
    "generate",
    "grids",
    "heun",
    "integrate",
    "invert",
    "likelihood",
    "log_prob",
    "losses",
    "make_pairs",
    "matching",
    "metrics",
    "natural_euler",
    "noise_like",
    "optimal_cost",
    "pairs",
    "paths",
    "phased",
    "predictions",
    "reflow",
    "rfpp_terms",
    "sinkhorn",
    "solvers",
    "straight",
    "straightness",
    "terminal_gain",
    "times",
    "transport_cost",
    "uniform_grid",
    "wasserstein2",
]

if not TYPE_CHECKING:  # to which every name would seem to be there
    __getattr__ = moved(
        __name__,
        {
            "couplings": "Given Mixture gaussian independent minibatch_ot",
            "fields": "OnPath",
            "grids": "canonical_grid edm_grid log_snr_grid",
            "likelihood": "Hutchinson exact_divergence",
            "losses": "PseudoHuber element_huber lpips norm squared",
            "metrics": "sliced_wasserstein",
            "pairs": "fill",
            "paths": "DDPM EDM SubVP VPCosine VPLinear edm linear_betas scaled_linear_betas "
            "stable_diffusion sub_vp vp_cosine vp_linear",
            "predictions": "Endpoints Prediction convert",
            "solvers": "DDIM Heun Trajectory adaptive exponential2 midpoint renoise rk4",
            "times": "EDMLogNormal EndpointMass Exponential LogitNormal UShaped Uniform "
            "edm_lognormal exponential logit_normal u_shaped uniform",
        },
    )
