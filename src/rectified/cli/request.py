"""Requests of the command line: where a run goes, and the file that its settings begin with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rectified.cli.arguments import take
from rectified.errors import UserError
from rectified.foreign import check_consent, factories, folders


@dataclass(frozen=True)
class RunOptions:
    """Options of a run: where it goes, and who hears of it.

    Attributes:
        out: folder for the results; runs/VERB-DATA-TIME by default.
        config: settings to begin with: the config.yaml of an earlier run; flags override it.
        resume: go on with the unfinished run in this folder; needs no other flag.
        quiet: print nothing but the results.
        push_to_hub: upload the finished run to OWNER/NAME of the Hugging Face Hub.
        tracker: also tell what is logged to TensorBoard (in the run's folder), MLflow or W&B.
    """

    out: Path | None = None
    config: Path | None = None
    resume: Path | None = None
    quiet: bool = False
    push_to_hub: str | None = None
    tracker: Literal["tensorboard", "mlflow", "wandb"] | None = None


_NOT_WITH_RESUME = ("out", "config")


@dataclass(frozen=True)
class Request:
    """A run that is asked for.

    Attributes:
        verb: the first word.
        options: where the run goes.
        words: the others, but for those options: they are the verb's.
        typed: all of the others.
    """

    verb: str
    options: RunOptions
    words: Sequence[str]
    typed: Sequence[str]

    @classmethod
    def read(cls, verb: str, typed: Sequence[str]) -> Request:
        """Read the options that every run has.

        Raises:
            UserError: for options that are no use, or do not go together.
        """
        given, words = take(typed, RunOptions(), verb)
        if "resume" in given:
            _refuse_beside_resume(name for name in given if name in _NOT_WITH_RESUME)
        return cls(verb, RunOptions(**given), words, typed)

    @property
    def file(self) -> Path | None:
        """The file that its settings begin with."""
        from rectified.runs import CONFIG

        resume = self.options.resume
        return self.options.config if resume is None else resume / CONFIG

    def file_settings(self) -> tuple[str, dict[str, Any]] | None:
        """The verb and the settings that its file has; None if there is none.

        Raises:
            UserError: if the file of `--config` is not there, or one is damaged.
        """
        from rectified.runs import read_config

        if self.file is None or (self.options.resume is not None and not self.file.is_file()):
            return None  # `check_resume` tells of the latter, once flags are known to be right
        return read_config(self.file)

    def check_resume(self, given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """See that a resumed run goes on with its own settings.

        Code that they name may be typed again, which is how one agrees to it.

        Args:
            given: what flags say.
            settings: what the file says.

        Raises:
            UserError: if a flag says something else, or there is nothing to resume.
        """
        if self.options.resume is None or self.file is None:
            return
        code = {*factories(settings), *folders(settings)}
        _refuse_beside_resume(name for name, value in given.items() if value not in code)
        if not self.file.is_file():
            raise UserError(
                f"nothing to resume in {self.options.resume}: it has no {self.file.name}"
            )

    def check_consent(self, settings: Mapping[str, Any]) -> None:
        """See that somebody typed all code that `settings` name, or agrees to it.

        Raises:
            UserError: if code would run that nobody asked for.
        """
        check_consent(settings, self.typed, None if self.file is None else str(self.file))


def _refuse_beside_resume(names: Iterable[str]) -> None:
    flags = sorted(f"--{name.replace('_', '-')}" for name in names)
    if flags:
        raise UserError(f"--resume goes on with the run's own settings: leave out {flags[0]}")
