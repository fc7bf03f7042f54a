"""The one exception for a caller's mistake.

A `UserError` says which value cannot be used, which rule it broke, and what to write instead. The
command line prints it as one line and exits with 2; every other exception is a fault of ours.
`moved` does the same for whoever imports a name from where it is no more.
"""

from collections.abc import Callable, Mapping
from typing import NoReturn


class UserError(ValueError):
    """A value that the caller gave cannot be used.

    Example:
        >>> raise UserError("fraction must be in [0, 1), got 1.5")
        Traceback (most recent call last):
        ...
        rectified.errors.UserError: fraction must be in [0, 1), got 1.5
    """


def choose(kind: str, name: str, options: dict[str, object] | list[str] | tuple[str, ...]) -> str:
    """Return `name` if it is one of `options`.

    Args:
        kind: what is being chosen, for the message: `"score"`.
        name: the caller's word.
        options: the known words.

    Raises:
        UserError: if `name` is not known; the message lists what is.

    Example:
        >>> choose("solver", "rk5", ["euler", "heun"])
        Traceback (most recent call last):
        ...
        rectified.errors.UserError: unknown solver 'rk5'; choose from euler, heun
    """
    if name not in options:
        raise UserError(f"unknown {kind} {name!r}; choose from {', '.join(options)}")
    return name


def moved(package: str, names: Mapping[str, str]) -> Callable[[str], NoReturn]:
    """The `__getattr__` of a package some of whose names are now in its modules alone.

    Args:
        package: the package that had the names.
        names: module of the package -> the names that are now there, with spaces between them.

    Returns:
        A function of a missing name, which raises an ImportError that says where it is (of an
        AttributeError, `from package import name` would not print the words), or the usual
        AttributeError for a name that never was.

    Example:
        >>> moved("rectified.flow", {"grids": "edm_grid uniform_grid"})("edm_grid")
        Traceback (most recent call last):
        ...
        ImportError: rectified.flow.edm_grid is now rectified.flow.grids.edm_grid
    """
    places = {name: module for module, inside in names.items() for name in inside.split()}

    def missing(name: str) -> NoReturn:
        if name in places:
            raise ImportError(f"{package}.{name} is now {package}.{places[name]}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return missing
