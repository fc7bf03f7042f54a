import re
from base64 import b64encode
from collections import Counter
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path

import pytest

import rectified.report
from rectified.errors import UserError
from rectified.report import (
    Code,
    Column,
    Figure,
    KeyValues,
    Page,
    Section,
    Table,
    Text,
    Verdict,
    render,
)

from .sample_pages import HOSTILE, accuracy, hostile, typical

EN_DASH = "\N{EN DASH}"
VOID = {"meta", "link", "wbr", "br", "img", "hr", "input"}
LINKS = {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}


class Reader(HTMLParser):
    """Reads a page strictly: every element that opens must close, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [text for inside, text in self.text if inside == tag and text.strip()]


def page_of(*parts) -> Page:
    return Page("Title", "", (Section("Section", parts),))


def body(*parts) -> str:
    return render(page_of(*parts)).split("<main>")[1].split("</main>")[0]


@pytest.fixture(scope="module", params=[typical, hostile], ids=["typical", "hostile"])
def html(request):
    return render(request.param())


@pytest.fixture(scope="module")
def reader(html):
    return Reader(html)


def test_every_element_closes(reader):
    assert {"html", "head", "body", "main", "svg", "table"} <= {tag for tag, _ in reader.elements}


def test_nothing_is_asked_of_the_network(html, reader):
    links = [
        value
        for _, attributes in reader.elements
        for name, value in attributes.items()
        if name in LINKS
    ]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}


def test_the_policy_forbids_every_request_and_knows_our_script(html, reader):
    (policy,) = [meta["content"] for meta in reader.all("meta") if "http-equiv" in meta]
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_id_is_its_own_and_every_reference_has_a_target(html, reader):
    ids = Counter(attributes["id"] for _, attributes in reader.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    references = set(re.findall(r"(?:href=\"#|url\(#|aria-labelledby=\")([^\")]+)", html))
    assert references <= set(ids)


def test_no_text_becomes_markup():
    reader = Reader(render(hostile()))
    assert len(reader.all("script")) == len(reader.all("style")) == 1
    assert reader.all("img") == []
    assert not any(name.startswith("on") for _, values in reader.elements for name in values)


@pytest.mark.parametrize(
    "tag", ["title", "h1", "h2", "h3", "p", "span", "figcaption", "summary", "dd", "code", "a"]
)
def test_hostile_text_is_shown_as_it_is(tag):
    assert HOSTILE in Reader(render(hostile())).texts(tag)


def test_the_same_page_gives_the_same_html():
    assert render(typical()) == render(typical())


def test_headings_go_down_one_level_at_a_time(reader):
    levels = [int(tag[1]) for tag, _ in reader.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_drawing_has_its_words(reader):
    drawings = [values for tag, values in reader.elements if values.get("role") == "img"]
    assert len(drawings) == len(reader.all("svg"))
    assert all(values["aria-label"] for values in drawings)


def test_a_contents_list_comes_with_the_fourth_section():
    sections = tuple(Section(f"Part {i}", ()) for i in range(4))
    assert "<nav" not in render(Page("Title", "", sections[:3]))
    reader = Reader(render(Page("Title", "", sections)))
    assert reader.texts("a") == ["Part 0", "Part 1", "Part 2", "Part 3"]


def test_neighbouring_verdicts_share_a_row_and_say_their_tone_in_words():
    first, second = Verdict("A", "a", "gain"), Verdict("B", "b", "loss")
    assert body(first, second).count('class="verdicts"') == 1
    assert body(first, Text(("between",)), second).count('class="verdicts"') == 2
    assert '<p class="tone">loss</p>' in body(second)


def test_a_table_has_a_caption_heads_with_buttons_and_named_rows():
    reader = Reader(render(page_of(Table("Arms", ("arm", "n"), [("dense", 5), ("lean", 4)]))))
    heads = [values for values in reader.all("th") if values["scope"] == "col"]
    assert reader.texts("span") == ["Arms"]
    assert reader.texts("button") == ["arm", "n"]
    assert [head["aria-sort"] for head in heads] == ["none", "none"]
    assert [values["scope"] for values in reader.all("th")].count("row") == 2
    (box,) = [values for _, values in reader.elements if values.get("class") == "scroll"]
    assert box["tabindex"] == "0"
    assert box["role"] == "region"


def cells(values, *column) -> list[str]:
    columns = ("name", Column("value", *column))
    table = Table("T", columns, [("row", value) for value in values])
    return re.findall(r"<td[^>]*>(.*?)</td>", body(table))


def test_a_missing_value_is_an_en_dash_whatever_the_unit():
    assert cells([None, 0.5, float("nan")], "%", None, 0) == [EN_DASH, "50%", EN_DASH]


def test_a_head_says_which_way_is_better():
    assert 'title="higher is better"' in body(Table("T", (Column("a", "", "higher"),), []))
    assert "is better" not in body(Table("T", ("a",), []))


def test_a_cell_carries_the_number_that_it_is_sorted_by():
    table = Table("T", ("name", "value"), [("a", 0.5), ("b", float("nan")), ("c", float("inf"))])
    keys = re.findall(r"<td[^>]*?( data-[^>]*)>", body(table))
    assert keys == [' data-value="0.5"', " data-gap", ' data-value="Infinity"']


def test_a_column_of_numbers_and_gaps_is_set_to_the_right():
    rows = [("a", 1, "x"), ("b", None, 2)]
    heads = re.findall(r"<th scope=\"col\"([^>]*)>", body(Table("T", ("i", "n", "m"), rows)))
    assert ["number" in head for head in heads] == [False, True, False]


def test_a_long_name_can_break_after_its_underscores():
    assert "dead_<wbr>rate" in body(Table("T", ("dead_rate",), []))
    assert "&lt;_<wbr>b" in body(Table("T", ("<_b",), []))


def test_long_text_wraps_and_many_columns_or_rows_are_marked():
    assert 'class="long"' in body(Table("T", ("a", "b"), [("x", "word " * 10)]))
    assert 'class="dense"' in body(Table("T", tuple(map(str, range(11))), []))
    assert 'class="scroll tall"' in body(Table("T", ("a",), [(i,) for i in range(31)]))


def test_nested_settings_are_flattened():
    settings = {
        "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)},
        "limit": None,
        "hooks": {},
        "ap": [],
    }
    shown = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", body(KeyValues("Settings", settings)))
    assert shown == [
        ("optimizer.lr", "0.1"),
        ("optimizer.betas", "0.9, 0.99"),
        ("limit", EN_DASH),
        ("hooks", EN_DASH),
        ("ap", EN_DASH),
    ]


def test_a_command_keeps_its_lines():
    assert "<code>a \\\n  b</code>" in body(Code("a \\\n  b"))


def test_the_same_figure_twice_shares_no_id():
    Reader(render(page_of(accuracy(), accuracy())))
    html = body(accuracy(), Text(("between",)), accuracy())
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) > 10


def test_ids_are_renamed_in_tags_only():
    svg = '<svg><path id="a"/><use href="#a"/><text fill="url(#a)">id="a"</text></svg>'
    html = body(Figure("F", svg, "alt"))
    assert '<path id="part-1-1-1-a"/>' in html
    assert 'href="#part-1-1-1-a"' in html
    assert 'url(#part-1-1-1-a)">id="a"<' in html


@pytest.mark.parametrize("svg", ["<svg><g></svg>", "<p></p>", "no drawing", "<!-- --><svg/>"])
def test_a_figure_that_is_no_svg_is_refused(svg):
    with pytest.raises(UserError, match="must be one well-formed <svg> element, got"):
        render(page_of(Figure("F", svg, "alt")))


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


STYLE = (Path(rectified.report.__file__).parent / "page.css").read_text(encoding="utf-8")
SCHEMES = [
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for block in re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)
]
TEXTS = ("ink", "quiet", "accent", "gain", "loss", "warning")
MARKS = tuple(f"series-{i}" for i in range(1, 7))


@pytest.mark.parametrize("scheme", SCHEMES, ids=["light", "dark"])
def test_contrasts_meet_wcag_aa(scheme):
    grounds = (scheme["paper"], scheme["raised"])
    for ground, name in product(grounds, TEXTS):
        assert contrast(scheme[name], ground) >= 4.5, name
    for ground, name in product(grounds, MARKS):
        assert contrast(scheme[name], ground) >= 3, name


def test_the_drawings_know_the_page_s_colours():
    svg = accuracy().svg + render(typical())
    for name, colour in set(re.findall(r"var\(--([\w-]+), (#[0-9a-f]{6})\)", svg)):
        assert SCHEMES[0][name] == colour
