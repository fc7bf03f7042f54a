"""Two pages for the tests: one as a job would make it, one whose every name is hostile."""

from functools import cache

from rectified.report import (
    Code,
    Column,
    Figure,
    KeyValues,
    Page,
    Section,
    Series,
    Table,
    Text,
    Verdict,
    bars,
    lines,
)

HOSTILE = (
    """<script>alert(1)</script>"'</style><img src=http://evil.example/x> =cmd|'/C calc'!A0 $x_"""
)


def accuracy(title: str = "Accuracy", label: str = "magnitude") -> Figure:
    density = [0.8**cycle for cycle in range(12)]
    mean = [0.97 - 0.1 * (1 - share) ** 6 for share in density]
    low, high = [value - 0.01 for value in mean], [value + 0.01 for value in mean]
    arms = [
        Series(label, density, mean, low, high),
        Series("_pro", density, [*mean[:-1], None]),
    ]
    return lines(
        arms,
        title=title,
        x_label="density",
        y_label="accuracy",
        alt=f"{title} falls",
        x_scale="log",
        x_percent=True,
        y_percent=True,
        invert_x=True,
    )


@cache
def typical() -> Page:
    layers = ["conv1", "layer1.0.conv1", "linear"]
    table = Table(
        "By layer",
        ("layer", Column("density", "%", digits=1), "dead_neurons", "remark"),
        [
            ("conv1", 0.5, 10, "first"),
            ("layer1.0.conv1", 0.125, 9, None),
            ("linear", 1.0, None, "last"),
        ],
        "Sort by a head.",
    )
    dead = bars(layers, {"off": [0.2, 0.4, 0.1]}, title="Dead", x_label="dead", alt="Few")
    verdicts = (Verdict("+4 points", "At 11%.", "gain"), Verdict("Slower", "Twice.", "warning"))
    settings = {"rate": 0.2, "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}, "limit": None}
    return Page(
        "Pruning",
        "digits",
        (
            Section("Summary", (*verdicts, Text(("One.", "Two.")))),
            Section("Figures", (accuracy(), accuracy(), dead)),
            Section("Layers", (table,)),
            Section(
                "Again",
                (Code("rectified prune \\\n  --data digits"), KeyValues("Settings", settings)),
            ),
        ),
    )


@cache
def hostile() -> Page:
    parts = (
        Text((HOSTILE,)),
        Verdict(HOSTILE, HOSTILE, "loss"),
        Table(HOSTILE, (HOSTILE, "n"), [(HOSTILE, 1)], HOSTILE),
        accuracy(HOSTILE, HOSTILE),
        bars(
            [HOSTILE], {HOSTILE: [1.0]}, title=HOSTILE, x_label=HOSTILE, alt=HOSTILE, note=HOSTILE
        ),
        KeyValues(HOSTILE, {HOSTILE: {HOSTILE: HOSTILE}}),
        Code(HOSTILE),
    )
    return Page(HOSTILE, HOSTILE, tuple(Section(HOSTILE, parts) for _ in range(4)))
