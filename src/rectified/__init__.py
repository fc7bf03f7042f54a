"""rectified: make neural networks lean, and see what that cost.

    results = rectified.run("flow", data="moons", source="gaussians8", rounds=2)    # any verb
    results = rectified.open_run("runs/moons")
    results.summary, results.network(), results.page

What stands here is loaded when it is first used: `import rectified` alone loads nothing heavy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rectified.jobs.job import Results, open_run
    from rectified.jobs.run import run

__version__ = "0.2.0"
__all__ = ["Results", "__version__", "open_run", "run"]

_PLACES = {
    "Results": "rectified.jobs.job:Results",
    "open_run": "rectified.jobs.job:open_run",
    "run": "rectified.jobs.run:run",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'rectified' has no attribute {name!r}")
    from rectified.jobs import load

    return load(_PLACES[name])


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
