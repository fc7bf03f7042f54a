from rectified.report import (
    Code,
    Column,
    Figure,
    KeyValues,
    Section,
    Table,
    Text,
    Verdict,
    terminal,
)


def shown(*parts) -> list[str]:
    return terminal([Section("Heading", parts)]).splitlines()


def test_numbers_stand_to_the_right_under_their_heads():
    columns = ("arm", Column("accuracy", "%", digits=1), Column("time", "ms", digits=2))
    table = Table("Arms", columns, [("off", 0.5, 10.0), ("lite", None, 1.0)], "A note.")
    assert shown(table) == [
        "Arms",
        "arm   accuracy  time, ms",
        "off      50.0%     10.00",
        "lite         \N{EN DASH}      1.00",
        "A note.",
    ]


def test_a_table_without_rows_shows_its_heads():
    assert shown(Table("Arms", ("arm", "n"), [])) == ["Arms", "arm  n"]


def test_words_come_as_they_are_and_drawings_are_left_out():
    parts = (
        Text(("One.", "Two.")),
        Verdict("A gain", "Of two points.", "gain"),
        Figure("Curve", "<svg/>", "a curve"),
        Code("rectified demo"),
        KeyValues("Settings", {"seed": 0}),
    )
    assert shown(*parts) == [
        *("One.", "Two.", ""),
        *("A gain", "  Of two points.", ""),
        *("rectified demo", ""),
        *("Settings", "  seed: 0"),
    ]
