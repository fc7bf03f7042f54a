"""A run's settings, as YAML without tags or aliases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rectified.errors import UserError, first_line
from rectified.files import plain, write_text

CONFIG = "config.yaml"


def write_config(path: Path, verb: str, config: Mapping[str, Any]) -> None:
    """Write settings as YAML, the verb first."""
    import yaml

    write_text(path, yaml.safe_dump({"verb": verb, **plain(config)}, sort_keys=False))


def read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """The verb and the settings in a config.yaml.

    Raises:
        UserError: if there is no such file, or it is not one of ours.
    """
    try:
        settings = _load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"no settings at {path} ({error.strerror}): give the {CONFIG} of an earlier run"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a YAML file of settings ({first_line(error)})") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("verb"), str):
        raise UserError(f"{path} is not a run's {CONFIG}: it does not say which verb it is for")
    if not all(isinstance(name, str) for name in settings):
        raise UserError(f"{path} is not a run's {CONFIG}: a setting's name is no text")
    verb = settings.pop("verb")
    return verb, settings


def _load_yaml(text: str) -> Any:
    """Plain values: no tags that make objects, and no aliases, which can stand for terabytes."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise ValueError("it has an alias (*), which settings have no use for")
            return super().compose_node(parent, index)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (TypeError, AttributeError, LookupError, OverflowError) as error:  # odd scalars
        raise ValueError(f"{type(error).__name__}: {error}") from error
