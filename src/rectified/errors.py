"""The one exception for a caller's mistake.

A `UserError` says which value cannot be used, which rule it broke, and what to write instead. The
command line prints it as one line and exits with 2; every other exception is a fault of ours.
`moved` does the same for whoever imports a name from where it is no more.
"""

from collections.abc import Callable
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
    """What a library's message says in one line, of 200 letters at most; else the error's name.

    Example:
        >>> first_line(ValueError("too long\\nat column 3"))
        'too long'
        >>> first_line(KeyError())
        'KeyError'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def moved(room: str, **names: str) -> Callable[[str], NoReturn]:
    """Make the `__getattr__` of a module from which names have moved.

    Args:
        room: the module.
        names: what has moved, and the full name under which it stands now.

    Example:
        >>> moved("rectified.pruning", compact="rectified.inference.compact")("compact")
        Traceback (most recent call last):
        ...
        ImportError: rectified.pruning.compact has moved to rectified.inference.compact
    """

    def missing(name: str) -> NoReturn:
        if name in names:  # an AttributeError would lose its words in `from room import name`
            raise ImportError(f"{room}.{name} has moved to {names[name]}")
        raise AttributeError(f"module {room!r} has no attribute {name!r}")

    return missing
