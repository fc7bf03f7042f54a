"""The words of `rectified flow`, and what each means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rectified import flow
from rectified.flow import Term
from rectified.flow.couplings import Coupling, Source
from rectified.flow.paths import AffinePath
from rectified.flow.times import TimeDistribution

PATHS: dict[str, AffinePath] = {
    "straight": flow.straight,
    "vp_cosine": flow.vp_cosine,
    "vp_linear": flow.vp_linear,
    "sub_vp": flow.sub_vp,
    "edm": flow.edm,
    "ddpm": flow.DDPM(flow.linear_betas()),
    "scaled_linear": flow.stable_diffusion(),
}
TIMES: dict[str, TimeDistribution] = {
    "uniform": flow.uniform,
    "u_shaped": flow.u_shaped,
    "logit_normal": flow.logit_normal,
    "exponential": flow.exponential,
    "edm_lognormal": flow.edm_lognormal,
    "source_mass": flow.EndpointMass(flow.u_shaped, 0.3),
}
SOLVERS: dict[str, Any] = {
    "euler": flow.euler,
    "midpoint": flow.midpoint,
    "heun": flow.heun,
    "rk4": flow.rk4,
    "natural_euler": flow.natural_euler,
    "exponential2": flow.exponential2,
    "renoise": flow.renoise,
}
LOSSES: dict[str, tuple[Term, ...]] = {
    "squared": (Term(flow.squared),),
    "norm": (Term(flow.norm),),
    "huber": (Term(flow.PseudoHuber()),),
    "target_huber": (Term(flow.element_huber, "target"),),  # rectified diffusion's code
    "target_squared": (Term(flow.squared, "target"),),
}
COUPLINGS: dict[str, Callable[[Source], Coupling]] = {
    "independent": flow.Independent,
    "ot": flow.MinibatchOT,
    "sinkhorn": flow.Sinkhorn,
    "class_ot": lambda source: flow.WithinClass(flow.MinibatchOT(source)),
}
