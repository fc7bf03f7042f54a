"""The one exception for a caller's mistake.

A `UserError` says which value cannot be used, which rule it broke, and what to write instead. The
command line prints it as one line and exits with 2; every other exception is a fault of ours.
`moved` does the same for whoever imports a name from where it is no more.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
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


def first_line(error: BaseException) -> str:
    """A library's message in one line, of 200 letters at most; else the error's name.

    Example:
        >>> first_line(ValueError("too long\\nat column 3"))
        'too long'
        >>> first_line(KeyError())
        'KeyError'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def moved(
    package: str, inside: Mapping[str, str] = MappingProxyType({}), **elsewhere: str
) -> Callable[[str], NoReturn]:
    """Make the `__getattr__` of a package from which names have moved.

    Args:
        package: that had the names.
        inside: module of the package -> the names that are now in it alone, separated by spaces.
        elsewhere: name -> the full name under which it stands now.

    Returns:
        A function of a missing name, which raises an ImportError that says where it is (of an
        AttributeError, `from package import name` would not print the words), or the usual
        AttributeError for a name that never was.

    Example:
        >>> moved("rectified.pruning", compact="rectified.inference.compact")("compact")
        Traceback (most recent call last):
        ...
        ImportError: rectified.pruning.compact has moved to rectified.inference.compact
    """
    places = {
        name: f"{package}.{module}.{name}"
        for module, names in inside.items()
        for name in names.split()
    } | elsewhere

    def missing(name: str) -> NoReturn:
        if name in places:
            raise ImportError(f"{package}.{name} has moved to {places[name]}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return missing
