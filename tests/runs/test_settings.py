import pytest

from rectified.errors import UserError
from rectified.runs import read_config, write_config


def test_settings_come_back_from_yaml(tmp_path):
    settings = {"ap": ("off", "lite"), "rate": 1e-5, "target": None, "norm": "auto", "no": "off"}
    write_config(tmp_path / "c.yaml", "prune", settings)
    verb, found = read_config(tmp_path / "c.yaml")
    assert verb == "prune"
    assert found == {**settings, "ap": ["off", "lite"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no settings at .*No such file"),
        ("a: [", "is not a YAML file of settings"),
        ("- 1", "does not say which verb"),
        ("data: digits", "does not say which verb"),
        ("verb: prune\n?", "a setting's name is no text"),
        (b"\xff\xfe\x00", "is not a YAML file of settings"),
        ("!!python/object/apply:os.system ['true']", "is not a YAML file of settings"),
    ],
)
def test_settings_that_are_none_are_named(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_config(path)
