"""Scores: how much a network would miss each of its weights.

A score looks at a `Snapshot` (a network at the end of one training) and returns one tensor for
each masked weight, of the weight's shape. Higher is kept longer, +inf is never dropped, and values
of weights that are already pruned are ignored. Any such function is a score. One that needs more
than one look is a `Score`, whose attributes say what more it needs; `as_score` makes one of a
function, so that whoever drives a pruning finds the same attributes on both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from rectified.pruning.scores.snapshot import Snapshot

Scores = dict[str, Tensor]
ScoreFunction = Callable[[Snapshot], Scores]


class Score(ABC):
    """A score, and what more than a snapshot it needs: by default nothing.

    Attributes:
        rounds: steps in which a stage drops its share, asking for new scores before each.
        layerwise: whether it ranks the weights of each layer apart, whatever a stage's scope.

    Example:
        >>> class Smallest(Score):
        ...     def __call__(self, snapshot):
        ...         return {name: -snapshot.trained[name].abs() for name in snapshot.masks}
        >>> Smallest().rounds, Smallest().watches, Smallest().state
        (1, False, {})
    """

    rounds: int = 1
    layerwise: bool = False

    @abstractmethod
    def __call__(self, snapshot: Snapshot, /) -> Scores:
        """One tensor for each masked weight, of its shape; higher is kept longer."""

    def watch(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which `model` is trained, for a score that looks at its updates.

        Args:
            model: the network in training, wrapped or not.
        """
        return nullcontext()

    @property
    def watches(self) -> bool:
        """Whether `watch` looks: then each network is trained alone, in the open."""
        return type(self).watch is not Score.watch

    @property
    def state(self) -> Scores:
        """The memory from one call to the next, to be kept in a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - most remember nothing
        """Remember an earlier `state` again.

        Args:
            state: as `state` was; one of another score may be ignored.
        """


@dataclass(frozen=True)
class _Plain(Score):
    """A function as a `Score`."""

    function: ScoreFunction

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        return self.function(snapshot)


def as_score(score: ScoreFunction) -> Score:
    """The score itself, or a plain function as one.

    Example:
        >>> as_score(lambda snapshot: snapshot.trained).rounds
        1
    """
    return score if isinstance(score, Score) else _Plain(score)
