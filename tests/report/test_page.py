import pytest

from rectified.errors import UserError
from rectified.report import Column, Table, Verdict


def test_a_row_of_another_length_than_the_columns_is_refused():
    with pytest.raises(UserError, match="each row of 'Arms' must have 2 values, got 1"):
        Table("Arms", ("arm", "accuracy"), [("dense", 0.9), ("pruned",)])


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        (Column("accuracy", "%", "higher", 1), 0.1234, "12.3%"),
        (Column("effect", "points"), 0.0123, "+1.23"),
        (Column("weights", digits=0), 1234567, "1,234,567"),
        (Column("time", "ms", digits=3), 0.12345, "0.123"),
        (Column("any"), 1 / 3, "0.3333"),
        (Column("seed"), 12345, "12345"),
        (Column("holds"), True, "True"),
        (Column("accuracy", "%"), "n/a", "n/a"),
        (Column("accuracy", "%"), None, "\N{EN DASH}"),
        (Column("accuracy", "%"), float("nan"), "\N{EN DASH}"),
    ],
)
def test_a_column_writes_its_values_by_unit_and_digits(column, value, text):
    assert column.written(value) == text


def test_a_unit_stands_in_the_head_unless_each_cell_has_it():
    heads = [Column("a", "ms").head, Column("b", "%").head, Column("c", "points").head]
    assert heads == ["a, ms", "b", "c, points"]


def test_an_unknown_tone_is_refused():
    with pytest.raises(UserError, match="unknown tone 'joy'; choose from gain, loss, neutral"):
        Verdict("Title", "Text", "joy")
