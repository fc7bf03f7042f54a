"""A store of pairs on disk: what a flow made of given noise, in shards.

    store = PairStore(folder, count=50_000, shard=8192, identity={"model": fingerprint(network)})
    fill(store, make)                    # make(seed, count) -> tensors of one shard
    pairs = store.load()

A shard is one safetensors file, written whole or not at all; filling goes on where it stopped, so a
kill costs at most the shard in work. `store.json` says what made the pairs, and another model or
another order of time is refused. Where the source is noise from a seeded generator, only the seed
is kept: `noise_like` draws it anew, the same on every machine, since it comes from a CPU generator.

Conventions: row i of every tensor belongs to pair i; x0 source, x1 target.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectified import seeds
from rectified.errors import UserError, first_line
from rectified.files import read_json, read_tensors, write_tensors, write_text

Shard = dict[str, Tensor]
_FORMAT = 2  # format 1 drew its noise in another way
_ORDER = "t = 0 source, t = 1 target"


class PairStore:
    """A folder of shards.

    Args:
        folder: made if it is not there.
        count: pairs in all, at least 1.
        shard: pairs per file.
        seed: of the first shard; shard i has seed + i.
        identity: what made the pairs; a store made by something else is refused.

    Raises:
        UserError: if the folder holds a store of something else, or a count is impossible.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        count: int,
        shard: int = 8192,
        seed: int = 0,
        identity: Mapping[str, str | int | float] | None = None,
    ) -> None:
        for name, value, smallest in (("count", count, 1), ("shard", shard, 1), ("seed", seed, 0)):
            if value < smallest:
                raise UserError(f"{name} must be at least {smallest}, got {value}")
        self.folder, self.count, self.shard, self.seed = Path(folder), count, shard, seed
        self.facts = {
            "format": _FORMAT,
            "order": _ORDER,
            "count": count,
            "shard": shard,
            "seed": seed,
            **(identity or {}),
        }
        self._open()

    def _open(self) -> None:
        file = self.folder / "store.json"
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(self.facts, indent=1))
            return
        stored = _read_facts(file)
        for name, value in self.facts.items():
            if stored.get(name) != value:
                raise UserError(
                    f"{self.folder} holds pairs of another {name} ({stored.get(name)!r}, wanted "
                    f"{value!r}): give another folder, or remove it to make them anew"
                )

    @property
    def shards(self) -> int:
        """The number of files that make the whole."""
        return -(-self.count // self.shard)

    def size(self, index: int) -> int:
        """Pairs in one shard; the last may be shorter."""
        return min(self.shard, self.count - index * self.shard)

    def path(self, index: int) -> Path:
        """The file of one shard."""
        return self.folder / f"pairs-{index:05d}.safetensors"

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there yet."""
        return [index for index in range(self.shards) if not self.path(index).is_file()]

    def write(self, index: int, tensors: Shard) -> None:
        """Store one shard, whole or not at all.

        Raises:
            UserError: if a tensor has not one row per pair, or holds a NaN or infinity.
        """
        rows = self.size(index)
        for name, value in tensors.items():
            if len(value) != rows:
                raise UserError(f"{name} must have {rows} rows in shard {index}, got {len(value)}")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise UserError(
                    f"{name} of shard {index} is not finite: what makes the pairs diverges"
                )
        write_tensors(
            self.path(index), {n: v.detach().cpu().contiguous() for n, v in tensors.items()}
        )

    def read(self, index: int) -> Shard:
        """One shard.

        Raises:
            UserError: if it is damaged; the message names it and how to make it anew.
        """
        path = self.path(index)
        try:
            tensors, _ = read_tensors(path)
        except ValueError as error:
            raise UserError(
                f"{path} is damaged or missing ({first_line(error)}): remove that file and run "
                "again, and it alone is made anew"
            ) from error
        rows = {len(value) for value in tensors.values()}
        if rows != {self.size(index)}:
            raise UserError(
                f"{path} must hold {self.size(index)} pairs, got {sorted(rows)}: remove that file "
                "and run again"
            )
        return tensors

    def load(self) -> Shard:
        """All pairs, in order.

        Raises:
            UserError: if shards are missing or damaged.
        """
        missing = self.missing()
        if missing:
            raise UserError(
                f"{self.folder} lacks {len(missing)} of {self.shards} shards: fill it first"
            )
        parts = [self.read(index) for index in range(self.shards)]
        for index, part in enumerate(parts):
            if part.keys() != parts[0].keys():
                raise UserError(
                    f"{self.path(index)} holds {', '.join(sorted(part))}, the first shard "
                    f"{', '.join(sorted(parts[0]))}: remove that file and run again"
                )
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def fill(store: PairStore, make: Callable[[int, int], Shard], *, progress: str = "") -> None:
    """Make every shard that is missing.

    Args:
        store: to fill.
        make: (seed, count) to the tensors of one shard; the same for the same seed.
        progress: words before the progress bar; none is shown without.
    """
    from tqdm import tqdm

    missing = store.missing()
    hidden = None if progress else True
    for index in tqdm(missing, desc=progress, disable=hidden, leave=False, unit="shard"):
        store.write(index, make(store.seed + index, store.size(index)))


def noise_like(
    shape: tuple[int, ...], seed: int, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "..."]:
    """The standard normal noise of a shard: the same for the same seed, on any machine.

    Example:
        >>> torch.equal(noise_like((2, 3), 7), noise_like((2, 3), 7))
        True
    """
    return torch.randn(shape, generator=seeds.generator(seed, "noise"), dtype=dtype)


def fingerprint(network: nn.Module) -> str:
    """A short hash of a network's weights: the same for the same weights.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> fingerprint(layer) == fingerprint(layer)
        True
    """
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        plain = value.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _read_facts(file: Path) -> dict[str, object]:
    facts = read_json(file, remedy="remove the folder")
    if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
        raise UserError(f"{file} is not a store of pairs that this version reads: remove it")
    return facts
