"""The script that measures a source tree, on a tree so small that every figure is known."""

import subprocess
import sys
from pathlib import Path

import pytest
from tools.house import HEADS, circles, complexity, measure, percentile, read_tree

FIRST = '''"""A module.

Of three lines."""

from typing import TYPE_CHECKING, Any

from . import other

if TYPE_CHECKING:
    from small.inner import deep


def f(x: Any) -> Any:
    """One line."""
    assert x is not None  # a comment

    return [y for y in x if y and y > 1]


class C:
    def g(self, x):
        def h():
            if x:
                return 1
        return h if x else None
'''


@pytest.fixture
def tree(tmp_path):
    """A package of four files in `src`, and its tests."""
    files = {
        "src/small/__init__.py": "",
        "src/small/first.py": FIRST,
        "src/small/other.py": "from small.inner import deep\n",
        "src/small/inner/__init__.py": "",
        "src/small/inner/deep.py": "import small.first\n\n\ndef f():\n    import small.nothing\n",
        "tests/test_first.py": "\n" * 16,
        "tests/inner/test_deep.py": "\n" * 10,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "src" / "small"


def test_every_figure_of_a_small_tree(tree):
    found = dict(zip(HEADS, measure(tree), strict=True))
    assert found == {
        "tree": str(tree),
        "lines": "31",
        "file p50/max": "1/25",
        "function p50/p90/max": "3/5/5",  # 2, 3, 3, 5
        "max complexity": "5",  # f: 1, assert, for, if, and
        "docstrings/100 code": "24",  # 4 of 17
        "`Any`/100 code": "11.76",
        "tests/src": "0.84",
        "`is not None`": "1",
        "circles": "1",
    }


def test_a_part_of_a_package_has_the_tests_that_mirror_it(tree):
    assert dict(zip(HEADS, measure(tree / "inner"), strict=True))["tests/src"] == "2.00"
    (tree / "tested").mkdir()
    (tree / "tested" / "not.py").write_text("def f():\n    return 1\n")
    assert dict(zip(HEADS, measure(tree / "tested"), strict=True))["tests/src"] == "-"


def test_a_circle_is_named_by_its_modules_and_types_alone_make_none(tree):
    assert circles(read_tree(tree)) == [{"small.first", "small.other", "small.inner.deep"}]
    (tree / "other.py").write_text("def f():\n    from small.inner import deep\n")
    assert circles(read_tree(tree)) == []


def test_inner_functions_count_on_their_own(tree):
    functions = {one.name: one for source in read_tree(tree) for one in source.functions}
    assert (complexity(functions["g"]), complexity(functions["h"])) == (2, 2)


def test_a_percentile_is_an_entry():
    assert [percentile([3, 1, 2, 4], share) for share in (0.0, 0.5, 0.9, 1.0)] == [1, 3, 4, 4]


def test_the_script_prints_a_table(tree):
    script = Path(__file__).parents[1] / "tools" / "house.py"
    command = [sys.executable, str(script), str(tree)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    head, rule, line = said.splitlines()
    assert head.startswith("| tree | lines |")
    assert set(rule) == {"|", "-", " "}
    assert line.startswith(f"| {tree} | 31 |")
