"""Flows: learn an ODE between two sets of samples, straighten it, follow it in one step.

    model = VelocityMLP(2)                                          # any network (x, t) -> velocity
    fit(model, FlowMatching(), Draws((points,), size=256, updates=5000), FitConfig(...))
    field = Field(model)
    pairs = make_pairs(field, PairStore(folder, count=50_000), shape=(2,))
    straighter = reflow(field, pairs, FitConfig(...))
    samples, evaluations = generate(straighter, noise, steps=1)

Everything is one core: a path x a prediction x a coupling x a time law x terms x a solver, each a
value that is passed in. Lower-case names are ready ones (`straight`, `u_shaped`, `heun`); the
capital ones make others (`UShaped(a=2)`).

Conventions: t = 0 is the source x0 (noise), t = 1 the target x1 (data), x_t = a(t) x1 + b(t) x0;
the first axis is the batch; times are one number or one a point.
"""

from rectified.flow import predictions
from rectified.flow.couplings import (
    FromSet,
    Given,
    Independent,
    MinibatchOT,
    Mixture,
    WithinClass,
    gaussian,
    independent,
    minibatch_ot,
)
from rectified.flow.fields import Field, OnPath
from rectified.flow.grids import canonical_grid, edm_grid, log_snr_grid, uniform_grid
from rectified.flow.likelihood import Hutchinson, exact_divergence, log_prob
from rectified.flow.losses import (
    Perceptual,
    PseudoHuber,
    Term,
    element_huber,
    lpips,
    norm,
    rfpp_terms,
    squared,
)
from rectified.flow.matching import FlowMatching
from rectified.flow.metrics import (
    Straightness,
    feature_distance,
    first_order_gap,
    optimal_cost,
    sliced_wasserstein,
    straightness,
    transport_cost,
    wasserstein2,
)
from rectified.flow.pairs import PairStore, fill, fingerprint, noise_like
from rectified.flow.paths import (
    DDPM,
    EDM,
    SubVP,
    VPCosine,
    VPLinear,
    edm,
    linear_betas,
    scaled_linear_betas,
    stable_diffusion,
    straight,
    sub_vp,
    vp_cosine,
    vp_linear,
)
from rectified.flow.phased import Phased
from rectified.flow.predictions import PREDICTIONS, Endpoints, Prediction, convert
from rectified.flow.reflow import (
    Draws,
    check_pairs,
    distil,
    generate,
    invert,
    make_pairs,
    reflow,
)
from rectified.flow.sinkhorn import Sinkhorn
from rectified.flow.solvers import (
    DDIM,
    Heun,
    Trajectory,
    adaptive,
    euler,
    exponential2,
    heun,
    integrate,
    midpoint,
    natural_euler,
    renoise,
    rk4,
)
from rectified.flow.terminal_gain import gain_warning, terminal_gain
from rectified.flow.times import (
    Discrete,
    EDMLogNormal,
    EndpointMass,
    Exponential,
    LogitNormal,
    Uniform,
    UShaped,
    edm_lognormal,
    exponential,
    logit_normal,
    u_shaped,
    uniform,
)

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "PREDICTIONS",
    "Discrete",
    "Draws",
    "EDMLogNormal",
    "EndpointMass",
    "Endpoints",
    "Exponential",
    "Field",
    "FlowMatching",
    "FromSet",
    "Given",
    "Heun",
    "Hutchinson",
    "Independent",
    "LogitNormal",
    "MinibatchOT",
    "Mixture",
    "OnPath",
    "PairStore",
    "Perceptual",
    "Phased",
    "Prediction",
    "PseudoHuber",
    "Sinkhorn",
    "Straightness",
    "SubVP",
    "Term",
    "Trajectory",
    "UShaped",
    "Uniform",
    "VPCosine",
    "VPLinear",
    "WithinClass",
    "adaptive",
    "canonical_grid",
    "check_pairs",
    "convert",
    "distil",
    "edm",
    "edm_grid",
    "edm_lognormal",
    "element_huber",
    "euler",
    "exact_divergence",
    "exponential",
    "exponential2",
    "feature_distance",
    "fill",
    "fingerprint",
    "first_order_gap",
    "gain_warning",
    "gaussian",
    "generate",
    "heun",
    "independent",
    "integrate",
    "invert",
    "linear_betas",
    "log_prob",
    "log_snr_grid",
    "logit_normal",
    "lpips",
    "make_pairs",
    "midpoint",
    "minibatch_ot",
    "natural_euler",
    "noise_like",
    "norm",
    "optimal_cost",
    "predictions",
    "reflow",
    "renoise",
    "rfpp_terms",
    "rk4",
    "scaled_linear_betas",
    "sliced_wasserstein",
    "squared",
    "stable_diffusion",
    "straight",
    "straightness",
    "sub_vp",
    "terminal_gain",
    "transport_cost",
    "u_shaped",
    "uniform",
    "uniform_grid",
    "vp_cosine",
    "vp_linear",
    "wasserstein2",
]
