"""Recipes: how the flows of a study are trained, and in which order.

The first flow learns from data. Every other one starts at the weights of another, its `start`, and
learns from what that one makes of its source: as pairs, or phase by phase. All recipes of round 2
start at the first flow, and so on the same pairs: only the recipe differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rectified import flow
from rectified.flow import Discrete, Term
from rectified.flow.losses import LOSSES
from rectified.flow.times import TIMES, TimeDistribution


@dataclass(frozen=True)
class Recipe:
    """The training of a flow.

    Attributes:
        name: in rows.
        times: law of t.
        terms: of the loss.
        is_perceptual: whether the terms are rf++'s, of which one is perceptual on images.
        is_distilled: whether it learns t = 0 alone: a map in one step, and no flow.
        phases: where more than 1, it is to be first-order in each of so many phases, and learns
            from the flow that it starts at without pairs.
    """

    name: str
    times: TimeDistribution = TIMES["uniform"]
    terms: tuple[Term, ...] = LOSSES["squared"]()
    is_perceptual: bool = False
    is_distilled: bool = False
    phases: int = 1

    def distilled(self) -> Recipe:
        """The same for a map in one step."""
        return replace(self, name=f"{self.name}+distil", times=Discrete(1), is_distilled=True)


RECIPES = {
    "2rf": Recipe("2rf"),
    "2rf++": Recipe("2rf++", TIMES["u_shaped"], flow.rfpp_terms(None), is_perceptual=True),
    "rd": Recipe("rd"),  # plain, as `rectified diffusion` calls it
}
PLAIN, FIRST, PHASED = "2rf", "1rf", "phased"


def reflow_recipes(
    names: Sequence[str], *, has_control: bool, times: str | None, loss: str
) -> tuple[Recipe, ...]:
    """The ways in which later rounds are trained, plain first where it is the control.

    Args:
        names: of `RECIPES`.
        has_control: whether the plain recipe stands beside rf++'s.
        times: law for all of them; each its own by default.
        loss: of the plain ones.
    """
    chosen = list(dict.fromkeys(names))
    if has_control and PLAIN not in chosen and any(RECIPES[name].is_perceptual for name in chosen):
        chosen.insert(0, PLAIN)
    return tuple(_adapted(RECIPES[name], times, loss) for name in chosen)


def _adapted(recipe: Recipe, times: str | None, loss: str) -> Recipe:
    law = recipe.times if times is None else TIMES[times]
    return replace(
        recipe, times=law, terms=recipe.terms if recipe.is_perceptual else LOSSES[loss]()
    )


@dataclass(frozen=True)
class Stage:
    """One network of a study: trained once for every seed.

    Attributes:
        recipe: how.
        round: 1 for the first flow.
        start: whose weights it starts at, and whose samples it learns from; the first has none.
    """

    recipe: Recipe
    round: int = 1
    start: Stage | None = None

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.recipe.name.replace('+', 'p')}-{self.round}"


def stages(
    first: Recipe, recipes: Sequence[Recipe], *, rounds: int, phases: int, has_distilled: bool
) -> tuple[Stage, ...]:
    """All networks of a study, each behind the one that it starts at.

    Args:
        first: of round 1.
        recipes: of later rounds.
        rounds: flows of each recipe in all.
        phases: of a phased flow beside them; 1 for none.
        has_distilled: whether the last flow of each recipe is distilled.

    Example:
        >>> made = stages(Recipe("1rf"), [RECIPES["2rf"]], rounds=3, phases=1, has_distilled=True)
        >>> [stage.name for stage in made]
        ['1rf-1', '2rf-2', '2rf-3', '2rfpdistil-3']
    """
    begin = Stage(first)
    order, last = [begin], [begin for _ in recipes]
    for number in range(2, rounds + 1):
        last = [Stage(one, number, start) for one, start in zip(recipes, last, strict=True)]
        order += last
    if phases > 1:
        order.append(Stage(Recipe(PHASED, phases=phases), 2, begin))
    if has_distilled and rounds > 1:
        order += [Stage(stage.recipe.distilled(), rounds, stage) for stage in last]
    return tuple(order)
