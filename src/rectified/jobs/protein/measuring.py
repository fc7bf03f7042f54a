"""Measures of backbones, generated and real."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.protein.chains import Chain
from rectified.protein.folds import diversity, helix_and_strand, tm_scores
from rectified.protein.geometry import Geometry, histogram_distance, measure, ramachandran, torsions
from rectified.protein.structure_files import ChainSet
from rectified.seeds import generator
from rectified.statistics import interval

ROW = ("ca_bond_valid", "clashes_per_100", "helix", "strand", "radius_of_gyration")
_COMPARED = 16  # samples whose folds are compared with one another
_REAL = 256  # windows of real chains that samples are compared with

Row = dict[str, Any]


def measures(atoms: Float[Tensor, "chains residues atoms 3"]) -> dict[str, list[float]]:
    """Every measure of every chain."""
    geometry = measure(atoms)
    values = {one.name: getattr(geometry, one.name).tolist() for one in fields(Geometry)}
    folds = [helix_and_strand(one[:, 1]) for one in atoms]
    values["helix"], values["strand"] = ([fold[k] for fold in folds] for k in (0, 1))
    return values


def shape(atoms: Float[Tensor, "chains residues atoms 3"]) -> dict[str, Any]:
    """Torsions of all chains together, and how different some of them are."""
    phi, psi, _ = torsions(atoms)
    scores = tm_scores([one[:, 1] for one in atoms[:_COMPARED]])
    mean, clusters = diversity(scores)
    return {
        "ramachandran": ramachandran(phi, psi).tolist(),
        "tm_score": mean,
        "clusters": clusters,
    }


def windows(chains: list[Chain], length: int) -> Iterator[Float[Tensor, "length 4 3"]]:
    """Windows of real chains, in turns, each chain's at another place."""
    places = generator(0, length, "windows")
    for n in range(max(len(chains), _REAL)):
        chain = chains[n % len(chains)]
        start = int(torch.randint(len(chain) - length + 1, (1,), generator=places))
        yield chain.atoms[start : start + length]


def real(chains: ChainSet, lengths: Sequence[int]) -> dict[str, Any]:
    """The same measures of windows of real chains, held out ones where there are some."""
    measured: dict[str, Any] = {}
    for length in lengths:
        whole = [c for c in chains.held_out if len(c) >= length]
        whole = whole or [c for c in chains.train if len(c) >= length]
        if whole:
            atoms = torch.stack(list(windows(whole, length)))
            values = {"values": measures(atoms), **shape(atoms)}
            measured[str(length)] = {**values, "chains": len(whole)}
    return measured


def compare_torsions_(points: Sequence[Row], reference: Row) -> None:
    """Give each point its distance from the real Ramachandran plot of its length."""
    for point in points:
        if str(point["length"]) in reference:
            theirs = torch.tensor(reference[str(point["length"])]["ramachandran"])
            ours = torch.tensor(point["ramachandran"])
            point["ramachandran_distance"] = histogram_distance(ours, theirs)


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means over seeds of every round, length and number of steps.

    Example:
        >>> row = {"seed": 0, "round": 1, "steps": 10, "length": 48, "seconds_per_sample": 0.1}
        >>> summarise([{**row, **dict.fromkeys(ROW, 0.5)}])[0]["ca_bond_valid_mean"]
        0.5
    """
    groups: dict[tuple[int, int, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["round"], row["steps"], row["length"]), []).append(row)
    return [
        {
            "round": number,
            "steps": steps,
            "length": length,
            **{
                f"{name}_mean": interval(row[name] for row in group).mean
                for name in (*ROW, "seconds_per_sample")
            },
            "n": len(group),
        }
        for (number, steps, length), group in groups.items()
    ]
