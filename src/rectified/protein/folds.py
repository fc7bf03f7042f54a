"""Folds: secondary structure, likeness of chains, diversity. The methods are biotite's.

Secondary structure is that of P-SEA, which reads C-alphas alone: it needs no hydrogen bonds, and so
judges imperfect backbones too. Two chains of one length are compared by their TM-score with
residues in order; above 0.5 they share a fold.

References: Labesse et al., "P-SEA", 1997; Zhang and Skolnick, "Scoring function for automated
assessment of protein structure template quality", 2004 (TM-score).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError
from rectified.protein.geometry import superpose

SAME_FOLD = 0.5  # TM-score
_SEEDS = (1.0, 0.5, 0.25)  # shares of the chain that a superposition begins with
_ROUNDS = 8
_NEAR = 4.5  # Angstrom; residues nearer than this take part in the next superposition


def library(name: str) -> Any:
    """A module of an optional library.

    Raises:
        UserError: if it is not installed; the line says how to install it.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UserError(
            f'{package} is needed for proteins: pip install "rectified[protein]"'
        ) from None


def secondary_structure(ca: Float[Tensor, "residues 3"]) -> str:
    """One letter per residue: a helix, b strand, c coil.

    Args:
        ca: C-alphas of one unbroken chain, Angstrom.
    """
    return "".join(library("biotite.structure").annotate_sse(_alanines(ca)))


def _alanines(ca: Float[Tensor, "residues 3"]) -> Any:
    """The chain as biotite wants it; the kind of its residues does not matter here."""
    structure = library("biotite.structure")
    array = structure.AtomArray(len(ca))
    array.coord = ca.detach().cpu().float().numpy()
    array.atom_name[:], array.res_name[:], array.chain_id[:] = "CA", "ALA", "A"
    array.res_id[:] = np.arange(1, len(ca) + 1)
    return array


def helix_and_strand(ca: Float[Tensor, "residues 3"]) -> tuple[float, float]:
    """Shares of the residues in helices and in strands."""
    letters = secondary_structure(ca)
    return letters.count("a") / len(letters), letters.count("b") / len(letters)


def tm_score(a: Float[Tensor, "residues 3"], b: Float[Tensor, "residues 3"]) -> float:
    """TM-score of two chains of one length, residues in order: 1 for equal ones.

    The best of a few superpositions: each begins with some residues, and goes on with those that
    it has brought near. The score of the best one is biotite's.

    Args:
        a: C-alphas, Angstrom.
        b: those of the other chain.

    Raises:
        UserError: if the lengths differ.
    """
    if len(a) != len(b):
        raise UserError(f"chains must have one length, got {len(a)} and {len(b)} residues")
    structure = library("biotite.structure")
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    scale = _scale(len(a))
    best, found = -1.0, b
    for chosen in _starts(len(a)):
        for _ in range(_ROUNDS):
            moved = _moved(b, a, chosen)
            apart = (moved - a).norm(dim=-1)
            score = float((1 / (1 + (apart / scale).square())).mean())
            if score > best:
                best, found = score, moved
            following = apart < max(scale, _NEAR)
            if int(following.sum()) < 3 or bool((following == chosen).all()):
                break
            chosen = following
    everyone = np.arange(len(a))
    return float(structure.tm_score(_alanines(a), _alanines(found), everyone, everyone))


def _scale(count: int) -> float:
    """d0 of the TM-score, Angstrom; 0.5 for the shortest chains."""
    return max(0.5, 1.24 * (count - 15) ** (1 / 3) - 1.8) if count > 15 else 0.5


def _starts(count: int) -> list[Tensor]:
    starts = []
    for share in _SEEDS:
        size = max(4, int(share * count))
        for begin in range(0, count - size + 1, max(1, size // 2)):
            chosen = torch.zeros(count, dtype=torch.bool)
            chosen[begin : begin + size] = True
            starts.append(chosen)
    return starts


def _moved(moving: Tensor, fixed: Tensor, chosen: Tensor) -> Tensor:
    centre, target = moving[chosen].mean(0), fixed[chosen].mean(0)
    turn = superpose(moving[chosen] - centre, fixed[chosen] - target)
    return (moving - centre) @ turn.T + target


def tm_scores(chains: Sequence[Float[Tensor, "residues 3"]]) -> Float[Tensor, "n n"]:
    """TM-scores of all pairs of chains of one length."""
    found = torch.eye(len(chains))
    for i in range(len(chains)):
        for j in range(i):
            found[i, j] = found[j, i] = tm_score(chains[i], chains[j])
    return found


def diversity(scores: Float[Tensor, "n n"]) -> tuple[float, float]:
    """The diversity of chains, from their TM-scores.

    Returns:
        The mean TM-score of pairs (lower is more diverse), and the number of clusters over that of
        chains: average linkage, cut where the mean TM-score falls below 0.5.

    Raises:
        UserError: for fewer than two chains.

    Example:
        >>> diversity(torch.tensor([[1.0, 0.9, 0.2], [0.9, 1.0, 0.2], [0.2, 0.2, 1.0]]))[1]
        0.666...
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    count = len(scores)
    if count < 2:
        raise UserError(f"diversity needs at least 2 chains, got {count}")
    apart = squareform((1 - scores.double()).fill_diagonal_(0).numpy(), checks=False)
    clusters = fcluster(linkage(apart, "average"), 1 - SAME_FOLD, "distance")
    mean = float(scores[~torch.eye(count, dtype=torch.bool)].mean())
    return mean, len(set(clusters.tolist())) / count
