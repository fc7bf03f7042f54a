"""What somebody could send us: refused in one line, or harmless. The table is in docs/security.md.

The long form of the fuzzing is `python -m tests.torture.fuzz --inputs 100000`.
"""

import contextlib
import json
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rectified.cli import main
from rectified.errors import UserError
from rectified.inference.sparse import files as sparse_files
from rectified.inference.sparse import load_sparse
from rectified.jobs import JOBS, TOOLS, job_of
from rectified.jobs.classifiers import load_weights
from rectified.jobs.deploy import lean
from rectified.jobs.report import combined
from rectified.jobs.sweep.grid import points
from rectified.jobs.values import from_settings
from rectified.report import Page, Section, Table, Text, render
from rectified.runs import Run, load_tree, read_config, read_results, save_tree, write_text
from tests.torture.fuzz import fuzz
from tests.torture.readers import READERS

PruneConfig = type(job_of("prune").default)
few = settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCRIPT = "<script>alert(1)</script>"
NAMES = [SCRIPT, '"><img src=x onerror=alert(1)>', "=cmd|' /C calc'!A0", "javascript:alert(1)",
         "{{7*7}}", "$\\frac{a", "\x1b[2Jx", "\u202egnp.exe", "../../etc/passwd"]  # fmt: skip


@pytest.mark.parametrize("name", [name for name, one in READERS.items() if one.every < 50])
def test_no_damaged_input_crashes_a_reader(name):
    for package in READERS[name].needs:
        pytest.importorskip(package)
    found = fuzz(name, 25, seed=1)
    assert found["crashes"] == 0, found


texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@few
@given(text=texts)
def test_any_text_is_settings_or_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text("verb: prune\n" + text, encoding="utf-8")
    try:
        _, found = read_config(tmp_path / "c.yaml")
        from_settings(PruneConfig, found, source="c.yaml")
    except UserError:
        pass


@few
@given(text=texts)
def test_any_text_is_a_grid_or_refused(text):
    with contextlib.suppress(UserError):
        points(text, PruneConfig)


@few
@given(rows=plain, summary=plain, config=plain, verb=st.sampled_from([*JOBS, *TOOLS, "x"]))
def test_any_results_are_shown_or_refused(tmp_path, rows, summary, config, verb):
    found = {"verb": verb, "config": config, "environment": {}, "rows": rows, "summary": summary}
    (tmp_path / "results.json").write_text(json.dumps(found), encoding="utf-8")
    (tmp_path / "details.json").write_text("{}")
    with contextlib.suppress(UserError):
        combined([tmp_path])


# ---- settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]", r"has an alias \(\*\)"),
        ("score: " + "[" * 5000, "is not a YAML file"),
        ("seed: " + "9" * 5000, "is not a YAML file"),
        ("seed: 2001-99-99", "is not a YAML file"),
        ("rate: " + "9" * 400, "rate in c.yaml must be a number, got 9999"),
        ("x: !!python/object/apply:os.system ['touch ran']", "is not a YAML file"),
        ("? [1]\n: 2", "is not a YAML file|unknown setting"),
    ],
)
def test_settings_that_would_fill_the_memory_or_run_code_are_refused(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_text(f"verb: prune\n{text}\n")
    with pytest.raises(UserError, match=words) as caught:
        from_settings(PruneConfig, read_config(path)[1], source="c.yaml")
    assert len(str(caught.value)) < 1000
    assert not Path("ran").exists()


def test_a_long_value_is_not_repeated_at_length():
    with pytest.raises(UserError, match=r"seed in c\.yaml must be") as caught:
        from_settings(PruneConfig, {"seed": "x" * 10**6}, source="c.yaml")
    assert len(str(caught.value)) < 300


# ---- results and reports


def hostile_run(path):
    path.mkdir()
    rows = [{"seed": 0, name: name, "x": 1.0} for name in NAMES]
    found = {"verb": SCRIPT, "config": dict.fromkeys(NAMES, SCRIPT), "rows": rows, "summary": rows}
    found["environment"] = {SCRIPT: SCRIPT, "command": SCRIPT}
    (path / "results.json").write_text(json.dumps(found))
    return path


def test_names_in_results_stay_text_in_a_report(tmp_path):
    page = combined([hostile_run(tmp_path / "run")])
    assert SCRIPT not in page
    assert "<img" not in page
    assert page.count("<script") == 1  # ours, which the policy knows by its hash
    assert "default-src 'none'" in page


def test_a_sweep_over_hostile_names_is_shown_too(tmp_path):
    rows = [
        {"run": "a", "data": name, "seed": seed, "step": step, "x": 0.5 + seed}
        for name in NAMES
        for seed in (0, 1)
        for step in (0, 1)
    ]
    runs = [{"run": "a", "data": name} for name in NAMES]
    found = {"verb": "sweep", "config": {"of": "x", "data": SCRIPT, "grid": SCRIPT}, "rows": rows}
    found |= {"environment": {}, "summary": [], "runs": runs, "failed": []}
    (tmp_path / "results.json").write_text(json.dumps(found))
    page = combined([tmp_path])
    assert SCRIPT not in page
    assert "<img src=x" not in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 3}, "rows is no list"),
        ({"rows": [3]}, "an entry of rows is no dict"),
        ({"config": []}, "config is no dict"),
        ({"verb": "prune", "rows": [{"seed": 0}]}, "cannot be shown|has no details"),
        ({"verb": "sweep"}, "cannot be shown .*KeyError"),
    ],
)
def test_results_of_another_form_are_refused(tmp_path, change, words):
    found = {"verb": "x", "config": {}, "environment": {}, "rows": [], "summary": []}
    (tmp_path / "results.json").write_text(json.dumps({**found, **change}))
    with pytest.raises(UserError, match=words):
        combined([tmp_path])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000])
def test_json_that_nests_without_end_is_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"is damaged|lacks"):
        read_results(tmp_path)


def test_a_terminal_does_not_obey_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prune", "--data", "\x1b[2J\x1b]0;x\x07"]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"\x1b" in said


def test_names_that_are_no_text_are_written_all_the_same(tmp_path):
    write_text(tmp_path / "a", "x\udcffy")
    assert (tmp_path / "a").read_text() == r"x\udcffy"


def test_a_template_in_a_name_is_not_evaluated():
    page = render(Page("{{7*7}}", "{{7*7}}", (Section("{{7*7}}", (Text(("{{7*7}}",)),)),)))
    assert "49" not in page.split("</style>")[1].split("<script")[0]
    table = Table("t", ("a",), [("=HYPERLINK(1)",)])
    assert "=HYPERLINK(1)" in render(Page("t", "", (Section("s", (table,)),)))


# ---- folders


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint", "report.html", ".lock"])
def test_a_folder_with_links_is_not_worked_in(tmp_path, name):
    path, victim = tmp_path / "run", tmp_path / "victim"
    victim.mkdir() if name == "checkpoint" else victim.write_text("mine")
    path.mkdir()
    (path / "config.yaml").write_text("verb: prune\n")
    (path / name).symlink_to(victim)
    for how in ({"resume": True}, {"replace": True}):
        with pytest.raises(UserError, match=rf"holds a link \({name}\)"):
            Run(path, **how)
    assert victim.is_dir() or victim.read_text() == "mine"


def test_names_of_data_lead_no_path_out_of_runs():
    from rectified.runs import default_path

    assert default_path("prune", "../../etc/x/..").parent == Path("runs")


# ---- tensors


def test_a_checkpoint_whose_bits_flipped_is_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tree(path, {"w": torch.ones(1000)})
    whole = bytearray(path.read_bytes())
    whole[-100] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match="its hash is another"):
        load_tree(path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def deflated(path, content):
    """A file of torch.save, compressed by somebody else."""
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def test_a_bomb_of_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(1, 1)
    deflated(tmp_path / "zip.pt", {"w": torch.zeros(10**6)})
    assert (tmp_path / "zip.pt").stat().st_size < 10_000
    Path("pickle.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save({3: torch.zeros(1)}, "names.pt")
    for name, words in {
        "zip.pt": "compressed",
        "pickle.pt": "cannot be read safely",
        "names.pt": "not a state_dict",
    }.items():
        with pytest.raises(UserError, match=words):
            load_weights(model, Path(name))
    assert not Path("exploded").exists()


def test_an_archive_whose_entries_overlap_is_refused(tmp_path, monkeypatch):
    torch.save({"w": torch.zeros(10)}, tmp_path / "a.pt")
    monkeypatch.setattr(zipfile.ZipFile, "infolist", lambda _: [zipfile.ZipInfo("x"), _grown("y")])
    with pytest.raises(UserError, match="entries are larger than the file"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "a.pt")


def _grown(name):
    entry = zipfile.ZipInfo(name)
    entry.file_size = 10**9
    return entry


def sparse_file(path, entry):
    from safetensors.torch import save_file

    about = dict(sparse_files.HEADER)
    about["tensors"] = json.dumps({"w": {"dtype": "float32", "form": "gaps", **entry}})
    empty = {"w:gaps": torch.zeros(0, dtype=torch.uint8), "w:values": torch.zeros(0)}
    save_file(empty, path, about)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"shape": [10**6, 10**6]}, "too many for its size"),
        ({"shape": [-1]}, "damaged"),
        ({"shape": ["x"]}, "damaged"),
        ({"shape": [2], "dtype": "load"}, "no dtype"),
        ({"shape": [2], "form": "nn"}, "damaged"),
    ],
)
def test_sparse_files_that_would_fill_the_memory_are_refused(tmp_path, entry, words):
    sparse_file(tmp_path / "s.safetensors", entry)
    with pytest.raises(UserError, match=words):
        load_sparse(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 10**12},
        {"image_size": None},
        {"image_size": [1, 2, 3]},
        {"model": ["mlp"]},
        {"in_channels": "3"},
    ],
)
def test_an_architecture_that_would_fill_the_memory_is_refused(tmp_path, change):
    about = {"model": "mlp", "num_classes": 2, "in_channels": 1, "image_size": [2, 2]}
    (tmp_path / "lean.json").write_text(json.dumps({**about, "norm": False, **change}))
    with pytest.raises(UserError, match="cannot be read"):
        lean._at_full_size(tmp_path)


# ---- pictures and tables


def png_bomb(side):
    """A picture of side x side white pixels in a few kilobytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_a_picture_that_grows_to_gigabytes_is_refused(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(png_bomb(60_000))
    with pytest.raises(UserError, match="pixels; make it smaller or remove it"):
        READERS["picture"].read(path)


def test_a_table_that_grows_to_gigabytes_is_refused(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rectified.data import load_images, parquet

    label = pa.array([0, 1] * 100_000)
    zeros = pa.array([bytes(1000)] * 200_000, pa.binary())
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"img": zeros, "label": label}), path, compression="gzip",
                   use_dictionary=False)  # fmt: skip
    monkeypatch.setattr(parquet, "MOST_BYTES", 2**20)
    with pytest.raises(UserError, match="too large, or a trap"):
        load_images(str(path))


def test_words_of_others_in_a_tables_header_are_no_class_names():
    for words in (b"{", b"[]", b'{"info": 3}', b'{"info": {"features": {"l": {"names": 3}}}}',
                  b"[" * 100_000):  # fmt: skip
        from rectified.data.parquet import _class_names

        assert _class_names({b"huggingface": words}, "l") == ()
