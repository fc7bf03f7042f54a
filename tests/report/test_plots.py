import re
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import pytest

from rectified.errors import UserError
from rectified.report import Figure, Series, bars, lines

from .sample_pages import HOSTILE, accuracy

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(f"{SVG}text"))


def words(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in texts(svg)]


def steps(x: list[float], **options) -> Figure:
    one = Series("flow", x, [1.0 / value if value else 1.0 for value in x])
    return lines([one], title="", x_label="steps", y_label="distance", alt="", **options)


def drawings(figure: Figure) -> tuple[str, str]:
    return figure.svg, figure.narrow_svg


def test_the_same_numbers_give_the_same_drawing():
    assert accuracy() == accuracy()


@pytest.mark.parametrize("drawing", drawings(accuracy()), ids=["wide", "narrow"])
def test_a_drawing_brings_no_size_no_style_sheet_and_no_date(drawing):
    root = ElementTree.fromstring(drawing)
    assert root.get("viewBox")
    assert root.get("width") is root.get("height") is None
    assert not list(root.iter(f"{SVG}style"))
    assert "metadata" not in drawing


@pytest.mark.parametrize("drawing", drawings(accuracy()), ids=["wide", "narrow"])
def test_every_colour_follows_the_page(drawing):
    root = ElementTree.fromstring(drawing)
    styles = [element.get("style", "") for element in root.iter()]
    painted = [style for style in styles if "#" in style.replace("url(#", "")]
    assert painted
    assert all("var(--" in style for style in painted)
    assert "currentColor" in drawing


def test_series_differ_in_marker_as_well_as_colour():
    series = [Series(f"arm {i}", [1.0, 2.0], [i, i]) for i in range(6)]
    svg = lines(series, title="", x_label="", y_label="", alt="").svg
    root = ElementTree.fromstring(svg)
    markers = {
        path.get("d") for defs in root.iter(f"{SVG}defs") for path in defs.iter(f"{SVG}path")
    }
    assert len(markers) >= 6
    assert all(f"var(--series-{i}," in svg for i in range(1, 7))


def test_a_log_axis_is_labelled_at_the_points_of_the_series():
    assert [word for word in words(accuracy().svg) if word.endswith("%")][:4] == [
        "100%",
        "80%",
        "64%",
        "51%",
    ]
    svg = steps([1, 2, 4, 100], x_scale="log").svg
    assert words(svg)[:4] == ["100", "4", "2", "1"]


def test_a_phone_gets_fewer_labels():
    wide, narrow = map(words, drawings(accuracy()))
    assert len(narrow) < len(wide)


def test_percents_keep_two_digits_where_they_are_small():
    svg = steps([1.0, 0.0859, 0.0086, 0.00012], x_scale="log", x_percent=True).svg
    assert words(svg)[:4] == ["100%", "8.6%", "0.86%", "0.012%"]


@pytest.mark.parametrize(("inverted", "order"), [(True, 1), (False, -1)])
def test_an_inverted_axis_has_the_sparse_end_on_the_right(inverted, order):
    svg = steps([1.0, 0.5, 0.25], x_scale="log", x_percent=True, invert_x=inverted).svg
    place = {"".join(text.itertext()): float(text.get("x")) for text in texts(svg)}
    assert order * place["100%"] < order * place["50%"] < order * place["25%"]


def test_a_linear_axis_of_whole_numbers_has_whole_labels():
    assert {"0", "1", "2", "3"} <= set(words(steps([0, 1, 2, 3]).svg))
    assert not any("." in word for word in words(steps([0, 1, 2, 3]).svg)[:4])


def test_a_linear_axis_can_be_written_in_percent():
    assert "20%" in words(steps([0.0, 0.2, 0.4], x_percent=True).svg)


def test_a_gap_breaks_the_line():
    def moves(y: list[float | None]) -> int:
        svg = lines([Series("a", [1, 2, 3], y)], title="", x_label="", y_label="", alt="").svg
        root = ElementTree.fromstring(svg)
        paths = [
            path.get("d")
            for path in root.iter(f"{SVG}path")
            if "var(--series-1" in path.get("style", "")
        ]
        return sum(path.count("L") for path in paths)

    assert moves([1.0, 2.0, 3.0]) > moves([1.0, None, 3.0])


def test_an_interval_is_drawn_as_a_band():
    assert "fill-opacity: 0.16" in accuracy().svg


def test_names_are_shown_as_they_are_and_never_as_mathematics():
    shown = " ".join(words(accuracy(label=HOSTILE).svg))
    assert "<script>alert(1)</script>" in shown
    assert "$x_" in shown
    assert "_pro" in shown


def test_a_sign_that_xml_cannot_hold_is_replaced():
    figure = bars(["a\x00b"], {"\x1b[0m": [1.0]}, title="", x_label="\x07", alt="")
    assert "a\N{REPLACEMENT CHARACTER}b" in words(figure.svg)


def test_a_long_label_keeps_its_end():
    figure = bars([f"{'block.' * 20}weight"], {"dead": [1.0]}, title="", x_label="", alt="")
    (cut,) = [word for word in words(figure.narrow_svg) if word.endswith("weight")]
    assert len(cut) == 16
    assert cut.startswith("…")


def test_bars_have_one_bar_a_value_and_none_for_a_gap():
    def count(values):
        svg = bars(["a", "b"], {"x": values, "y": [1.0, 2.0]}, title="", x_label="", alt="").svg
        return len(re.findall(r'd="[^"]*L[^"]*"[^>]*var\(--series-1,', svg))

    assert count([1.0, 2.0]) == 3  # two bars and the key of the legend
    assert count([1.0, None]) == 2


def test_bars_can_be_written_in_percent():
    figure = bars(["a"], {"x": [0.4]}, title="", x_label="", alt="", x_percent=True)
    assert "40%" in words(figure.svg)


def test_the_caller_s_matplotlib_is_left_as_it_was():
    before = dict(matplotlib.rcParams)
    accuracy()
    assert dict(matplotlib.rcParams) == before


def test_the_package_is_imported_without_matplotlib_and_drawn_without_pyplot():
    script = (
        "import sys; from rectified.report import Series, lines;"
        "assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules;"
        "lines([Series('a', [1.0], [1.0])], title='', x_label='', y_label='', alt='');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_series_with_lengths_that_differ_is_refused():
    with pytest.raises(UserError, match="y of 'a' must have 2 values as x has, got 1"):
        Series("a", [1.0, 2.0], [1.0])


def test_half_an_interval_is_refused():
    with pytest.raises(UserError, match="low and high of 'a' must be given together"):
        Series("a", [1.0], [1.0], low=[0.5])


def test_lines_of_nothing_are_refused():
    with pytest.raises(UserError, match="series must hold at least one, got none"):
        lines([], title="", x_label="", y_label="", alt="")


def test_an_unknown_scale_is_refused():
    with pytest.raises(UserError, match="unknown scale 'cubic'; choose from linear, log"):
        steps([1.0], x_scale="cubic")


def test_zero_is_refused_on_a_log_axis():
    with pytest.raises(UserError, match="x must be positive on a log scale, got 0"):
        steps([0.0, 1.0], x_scale="log")


@pytest.mark.parametrize(("labels", "groups"), [([], {"x": []}), (["a"], {})])
def test_bars_of_nothing_are_refused(labels, groups):
    with pytest.raises(UserError, match="bars need a label and a group, got"):
        bars(labels, groups, title="", x_label="", alt="")


def test_a_group_of_another_length_than_the_labels_is_refused():
    with pytest.raises(UserError, match="group 'x' must have 2 values, got 1"):
        bars(["a", "b"], {"x": [1.0]}, title="", x_label="", alt="")
