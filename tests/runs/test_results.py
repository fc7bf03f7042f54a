import pytest

from rectified.errors import UserError
from rectified.runs import read_json, read_results


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no results\.json: it is not a finished run"),
        ("{", "is damaged"),
        ("3", "lacks config, environment, rows, summary, verb"),
        ('{"verb": "prune", "config": {}, "rows": [], "summary": []}', "lacks environment"),
    ],
)
def test_results_that_are_none_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_results(tmp_path)


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no details\.json"):
        read_json(tmp_path / "details.json")
