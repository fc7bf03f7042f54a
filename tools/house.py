"""How a source tree is built, in figures: sizes, branches, documentation, types, circles.

    python tools/house.py src/rectified src/rectified/jobs OTHER_TREE...

Prints a line of a table for each tree of Python files:

    lines          of all files, blank ones and comments included
    file           lines per file: half of the files have fewer, and the longest
    function       code lines per function (methods and inner functions, too), without docstring,
                   blank lines and comments: median, 90th percentile, longest
    complexity     of the function with most paths: 1, and 1 for every `if`, loop, `except`, `case`,
                   `assert`, conditional expression, part of a comprehension, further operand of
                   `and` and `or`; an inner function counts on its own
    docstrings     lines of docstrings per 100 lines of code
    `Any`          per 100 lines of code
    tests/src      lines of tests per line of source: `tests` stands beside the package or above
                   it, and mirrors its folders
    `is not None`  assertions that something is not None
    circles        groups of modules that import each other when they are imported

A percentile is the entry at that share of the sorted list.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
HEADS = (
    "tree",
    "lines",
    "file p50/max",
    "function p50/p90/max",
    "max complexity",
    "docstrings/100 code",
    "`Any`/100 code",
    "tests/src",
    "`is not None`",
    "circles",
)


@dataclass(frozen=True)
class Source:
    """A file.

    Attributes:
        module: its dotted name.
        is_package: whether it is an `__init__.py`.
        text: of it.
        tree: of its syntax.
    """

    module: str
    is_package: bool
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        """All of them."""
        return len(self.text.splitlines())

    @property
    def docstrings(self) -> set[int]:
        """Numbers of the lines of docstrings."""
        found = [node for node in ast.walk(self.tree) if isinstance(node, DOCUMENTED)]
        return {line for node in found if has_docstring(node) for line in span(node.body[0])}

    @property
    def code(self) -> set[int]:
        """Numbers of the lines with code on them."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        written = [token for token in tokens if token.type not in NO_CODE]
        lines = {n for token in written for n in range(token.start[0], token.end[0] + 1)}
        return lines - self.docstrings

    @property
    def functions(self) -> list[Function]:
        """All of them, those in classes and in others included."""
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]


def has_docstring(node: ast.Module | ast.ClassDef | Function) -> bool:
    """Whether a docstring is its first statement."""
    return bool(node.body) and ast.get_docstring(node, clean=False) is not None


def span(node: ast.stmt) -> range:
    """The lines of a statement."""
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def read_tree(folder: Path) -> list[Source]:
    """The Python files of a folder."""
    above = len(package_of(folder).parts) - 1
    sources = []
    for path in sorted(folder.resolve().rglob("*.py")):
        names = path.with_suffix("").parts[above:]
        is_package = names[-1] == "__init__"
        text = path.read_text(encoding="utf-8")
        module = ".".join(names[:-1] if is_package else names)
        sources.append(Source(module, is_package, text, ast.parse(text)))
    return sources


def package_of(folder: Path) -> Path:
    """The package that a folder is, or is in."""
    here = folder.resolve()
    while (here.parent / "__init__.py").is_file():
        here = here.parent
    return here


def complexity(function: Function) -> int:
    """Paths through a function, inner ones left out."""
    return 1 + sum(_branches(node) for node in _own_nodes(function))


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.Lambda):
            yield child
            yield from _own_nodes(child)


def _branches(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return int(isinstance(node, (*BRANCHES, ast.Assert)))


def is_not_none(node: ast.AST) -> bool:
    """Whether it asserts that something is there."""
    if not isinstance(node, ast.Assert) or not isinstance(node.test, ast.Compare):
        return False
    values = [value.value for value in node.test.comparators if isinstance(value, ast.Constant)]
    return isinstance(node.test.ops[0], ast.IsNot) and None in values


def circles(sources: Sequence[Source]) -> list[set[str]]:
    """Groups of modules each of which leads to all others by its imports."""
    modules = {source.module for source in sources}
    leads = {source.module: set(_imports(source, modules)) for source in sources}
    reached = {module: _reached(module, leads) for module in modules}
    groups = [{other for other in reached[one] if one in reached[other]} for one in sorted(modules)]
    return [group for n, group in enumerate(groups) if len(group) > 1 and group not in groups[:n]]


def _reached(module: str, leads: dict[str, set[str]]) -> set[str]:
    """What is imported with a module, at any remove."""
    found: set[str] = set()
    left = [module]
    while left:
        new = leads[left.pop()] - found
        found |= new
        left += new
    return found


def _imports(source: Source, modules: Iterable[str]) -> Iterator[str]:
    """The modules that are imported with a module, itself left out."""
    for node in _statements(source.tree.body):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, source)
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules else base for name in names]
        yield from (name for name in names if name in modules and name != source.module)


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """What runs when a module is imported; what is for a type checker alone does not."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _statements(node.orelse)
        elif not isinstance(node, Function):
            yield from _statements(n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt))


def _base(node: ast.ImportFrom, source: Source) -> str:
    """What a `from` names, in full."""
    if not node.level:
        return node.module or ""
    parts = source.module.split(".")
    kept = parts[: len(parts) - node.level + source.is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def tests_of(folder: Path) -> Path | None:
    """The folder of its tests, if it has one of its own."""
    package = package_of(folder)
    for above in package.parents:
        if (above / "tests").is_dir():
            mirrored = above / "tests" / folder.resolve().relative_to(package)
            return mirrored if mirrored.is_dir() else None
    return None


def percentile(values: Iterable[int], share: float) -> int:
    """The entry at a share of the sorted values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(folder: Path) -> tuple[str, ...]:
    """A line of the table, as `HEADS` says."""
    sources = read_tree(folder)
    lines = [source.lines for source in sources]
    code = {source.module: source.code for source in sources}
    count = sum(map(len, code.values()))
    functions = [(source, one) for source in sources for one in source.functions]
    lengths = [len(code[source.module].intersection(span(one))) for source, one in functions]
    nodes = [node for source in sources for node in ast.walk(source.tree)]
    any_count = sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
    tests = tests_of(folder)
    tested = sum(source.lines for source in read_tree(tests)) if tests else None
    return (
        str(folder),
        f"{sum(lines):,}",
        f"{percentile(lines, 0.5)}/{max(lines)}",
        f"{percentile(lengths, 0.5)}/{percentile(lengths, 0.9)}/{max(lengths)}",
        str(max(complexity(one) for _, one in functions)),
        f"{100 * sum(len(source.docstrings) for source in sources) / count:.0f}",
        f"{100 * any_count / count:.2f}",
        "-" if tested is None else f"{tested / sum(lines):.2f}",
        str(sum(map(is_not_none, nodes))),
        str(len(circles(sources))),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trees", nargs="+", type=Path, metavar="TREE")
    for line in (HEADS, ["---"] * len(HEADS), *map(measure, parser.parse_args().trees)):
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
