"""A grid in words -> the points of it: which settings every run of a sweep has.

    score=magnitude,lamp seed=0..9 ap=off,lite

A grid is settings with a space between them; a setting's values have commas between them. Every
combination is one point, and one run. `0..9` stands for 0, 1, ..., 9 and `0..9..3` for 0, 3, 6, 9.
Where a setting is itself a list (`--score`, `--steps`), one run gets several entries with a plus:
`ap=off+lite,pro` makes two runs, the first of them with two arms. Quotes hold a value with spaces
together, and `none` is the absence of a value.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from itertools import product
from typing import Any

from rectified.errors import UserError, choose
from rectified.jobs.values import hints_of, read

MOST_RUNS = 100_000
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(\d+))?")
_LONGEST = 18  # digits, which any machine word holds
_EXAMPLE = 'such as "score=magnitude,lamp seed=0..9"'


def points(grid: str, config: type) -> list[dict[str, Any]]:
    """Every combination, the last setting running fastest; equal ones once.

    Args:
        grid: as the module's docstring says.
        config: the verb's settings, a dataclass, whose annotations decide what a value may be.

    Raises:
        UserError: if the grid cannot be read, names an unknown setting or one twice, has a value
            that the setting cannot have, or more than 100,000 points.

    Example:
        >>> from rectified.jobs.prune.settings import PruneConfig
        >>> points("rate=0.1,0.2 seed=0..1", PruneConfig)[1]
        {'rate': 0.1, 'seed': 1}
    """
    axes = _axes(grid)
    hints = hints_of(config)
    for name in axes:
        choose("setting in the grid", name, list(hints))
    count = math.prod(_length(values) for values in axes.values())
    if count > MOST_RUNS:
        raise UserError(f"the grid has {count:,} runs, at most {MOST_RUNS:,} are possible")
    values = [
        [_value(name, text, hints[name]) for text in _texts(texts)] for name, texts in axes.items()
    ]
    combinations = dict.fromkeys(product(*values))  # a set that keeps its order
    return [dict(zip(axes, combination, strict=True)) for combination in combinations]


def _axes(grid: str) -> dict[str, str]:
    """Setting -> its values, as text."""
    try:
        words = shlex.split(grid)
    except ValueError as error:
        raise UserError(
            f"the grid {grid!r} cannot be read ({error}): write it {_EXAMPLE}"
        ) from None
    axes: dict[str, str] = {}
    for word in words:
        name, equals, values = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals or not name or not all(values.split(",")):
            raise UserError(f"the grid must be name=value,... words, got {word!r}: {_EXAMPLE}")
        if name in axes:
            raise UserError(f"the grid names {name} twice: put all its values behind one equals")
        axes[name] = values
    if not axes:
        raise UserError(f"the grid must name at least one setting, got none: {_EXAMPLE}")
    return axes


def _length(values: str) -> int:
    """The number of values, without writing a range out."""
    return sum(len(_range(text) or (text,)) for text in values.split(","))


def _texts(values: str) -> Iterator[str]:
    for text in values.split(","):
        numbers = _range(text)
        yield from (text,) if numbers is None else map(str, numbers)


def _range(text: str) -> range | None:
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    if max(map(len, match.groups(""))) > _LONGEST:
        raise UserError(f"a range must have numbers of at most {_LONGEST} digits, got longer ones")
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
    if last < first or step < 1 or last - first > 10**9:  # `len` has an end, too
        raise UserError(f"a range must go up, such as 0..9 or 0..9..3, got {text!r}")
    return range(first, last + 1, step)


def _value(name: str, text: str, hint: Any) -> Any:
    try:
        return read(text, hint, between="+")
    except ValueError as error:
        raise UserError(f"{name} in the grid {error}") from None
