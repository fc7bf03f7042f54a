"""Damaged and hostile inputs for every reader: each must read them or refuse them in one line.

    python -m tests.torture.fuzz --inputs 100000              # every reader, by mutation
    python -m tests.torture.fuzz --reader sparse --inputs 100000 --seed 7
    python -m tests.torture.fuzz --reader sparse --inputs 100000 --engine atheris

Inputs are valid files with bits flipped, bytes put in or taken out, pieces repeated, swapped or cut
off, numbers made large, and structures nested; the same for the same seed. What a reader raises
besides `UserError` is a crash, and the input is kept in the folder `crashes`. `atheris` is
Google's coverage-guided fuzzer for Python (`pip install atheris`).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rectified.errors import UserError
from tests.torture.material import lacking
from tests.torture.reader import Reader
from tests.torture.readers import READERS

NASTY = [
    b"\x00", b"\xff" * 8, b"[" * 3000, b"{\"a\":" * 3000, b"9" * 5000, b"-1", b"1e999", b"NaN",
    b"null", b"\\ud800", "\u202e".encode(), b"\x1b[2J", b"&a [*a,*a]", 
    b"!!python/object/new:os.system",
    b"<script>alert(1)</script>", b"=cmd()", b"../../etc/passwd", b"$\\frac{", b"2001-99-99",
    b"1:2:3",
]  # fmt: skip


def mutated(valid: list[bytes], chance: random.Random, *, text: bool) -> bytes:
    """A valid input after one to four accidents."""
    found = bytearray(chance.choice(valid))
    for _ in range(chance.randint(1, 4)):
        size = len(found)
        place = chance.randrange(size + 1)
        kind = chance.randrange(9)
        if kind == 0 and size:
            found[place % size] ^= 1 << chance.randrange(8)
        elif kind == 1:
            found[place:place] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
        elif kind == 2:
            del found[place : place + chance.randint(1, 16)]
        elif kind == 3:
            del found[place:]
        elif kind == 4:
            piece = found[place : place + chance.randint(1, 64)]
            found[place:place] = piece * chance.randint(1, 4)
        elif kind == 5:
            found[place:place] = chance.choice(NASTY)
        elif kind == 6 and text:
            swapped(found, chance)
        elif kind == 7 and size > 8:
            other = chance.choice(valid)
            found[place:] = other[min(place, len(other)) :]
        elif size >= 8:
            number = chance.choice([0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])
            at = chance.randrange(min(size - 7, 64))
            found[at : at + 8] = number.to_bytes(8, "little")
    return bytes(found)


def swapped(found: bytearray, chance: random.Random) -> None:
    """Put something nasty where a word of the text was."""
    words = [word for word in found.replace(b'"', b" ").split() if word.isalnum()]
    if words:
        word = chance.choice(words)
        place = found.find(word)
        found[place : place + len(word)] = chance.choice(NASTY)


def attempt(reader: Reader, content: bytes, folder: Path) -> str:
    """`read`, `refused`, or the name of what was raised."""
    path = folder / reader.name
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(path)
    except UserError:
        return "refused"
    except Exception as error:
        return type(error).__name__
    return "read"


def fuzz(name: str, inputs: int, seed: int, *, keep: Path | None = None) -> dict[str, Any]:
    """Try so many inputs on a reader; counts of what came of them."""
    reader, chance = READERS[name], random.Random(f"{name} {seed}")
    inputs = -(-inputs // reader.every)
    counts: Counter[str] = Counter()
    slowest, started = 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        valid = reader.valid(Path(place))
        for one in valid:
            assert attempt(reader, one, Path(place)) in ("read", "refused")
        for number in range(inputs):
            content = mutated(valid, chance, text=reader.text)
            begun = time.perf_counter()
            outcome = attempt(reader, content, Path(place))
            slowest = max(slowest, time.perf_counter() - begun)
            counts[outcome] += 1
            if outcome not in ("read", "refused") and keep is not None and counts[outcome] <= 3:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name}-{seed}-{number}").write_bytes(content)
                print(f"{name} {number}: {outcome}\n{why(reader, content, Path(place))}")
    crashes = sum(n for outcome, n in counts.items() if outcome not in ("read", "refused"))
    taken = time.perf_counter() - started
    return {"reader": name, "inputs": inputs, "seed": seed, **counts, "crashes": crashes,
            "slowest_seconds": slowest, "seconds": taken}  # fmt: skip


def why(reader: Reader, content: bytes, folder: Path) -> str:
    """The traceback of a crash."""
    path = folder / reader.name
    path.write_bytes(content)
    try:
        reader.read(path)
    except Exception:
        return traceback.format_exc().encode("ascii", "backslashreplace").decode()
    return "not again"


def with_atheris(name: str, inputs: int, seed: int) -> None:
    """Let atheris look for inputs; it ends the process."""
    import atheris

    reader = READERS[name]
    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(reader.valid(folder)):
        (corpus / str(number)).write_bytes(content)

    def one(content: bytes) -> None:
        outcome = attempt(reader, content, folder)
        if outcome not in ("read", "refused"):
            raise RuntimeError(outcome)

    for function in functions_of("rectified", "yaml", "json"):  # all of torch takes minutes
        atheris.instrument_func(function)
    words = [sys.argv[0], f"-runs={inputs}", f"-seed={seed}", "-rss_limit_mb=0", str(corpus)]
    atheris.Setup(words, one)
    atheris.Fuzz()


def functions_of(*packages: str) -> Iterator[types.FunctionType]:
    """Every function and method that is defined in these packages, as far as they are loaded."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in packages:
            continue
        classes = [one for one in vars(module).values() if isinstance(one, type)]
        for owner in (module, *classes):
            for found in vars(owner).values():
                if isinstance(found, types.FunctionType) and found.__module__ == name:
                    yield found


def main() -> int:
    """Returns the number of readers that crashed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reader", choices=list(READERS), action="append")
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["mutation", "atheris"], default="mutation")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = options.reader or list(READERS)
    if options.engine == "atheris":
        with_atheris(names[0], options.inputs, options.seed)
    found = []
    for name in names:
        if missing := lacking(*READERS[name].needs):
            print(f"{name}: skipped, it needs {', '.join(missing)}")
            continue
        one = fuzz(name, options.inputs, options.seed, keep=Path("crashes"))
        found.append(one)
        print(json.dumps(one), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return sum(one["crashes"] > 0 for one in found)


if __name__ == "__main__":
    sys.exit(main())
