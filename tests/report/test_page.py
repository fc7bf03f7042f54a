import pytest

from rectified.errors import UserError
from rectified.report import Table, Verdict


def test_a_row_of_another_length_than_the_columns_is_refused():
    with pytest.raises(UserError, match="each row of 'Arms' must have 2 values, got 1"):
        Table("Arms", ("arm", "accuracy"), [("dense", 0.9), ("pruned",)])


def test_a_format_of_an_unknown_column_is_refused():
    with pytest.raises(UserError, match="unknown column 'acuracy'; choose from arm, accuracy"):
        Table("Arms", ("arm", "accuracy"), [], formats={"acuracy": ".1%"})


def test_an_unknown_tone_is_refused():
    with pytest.raises(UserError, match="unknown tone 'joy'; choose from gain, loss, neutral"):
        Verdict("Title", "Text", "joy")
