"""Prompts as labels: texts by number, and what the text encoders make of them.

A text-conditional network is, to the rest of the package, one with classes: label i is prompt i,
and -1 is no prompt. So pairs, dropped labels and guidance are those of `rectified.flow`. What the
encoders say is kept for the prompts that were asked for last; encoders are frozen, no part of the
network, and neither trained nor saved with a student's weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from rectified.errors import UserError
from rectified.flow.fields import NO_CLASS

Embedding = dict[str, Tensor]  # name of an input of the network -> one row
_KEPT = 1024  # embeddings in memory: 240 MB for Stable Diffusion


class Prompts:
    """Texts, and the inputs that the network gets for them.

    Args:
        texts: the prompts, at least one.
        encode: texts to named rows; `None` for a text means no prompt.

    Raises:
        UserError: if there is no text.
    """

    def __init__(
        self, texts: Sequence[str], encode: Callable[[list[str | None]], Embedding]
    ) -> None:
        if not texts:
            raise UserError("prompts must hold at least one text, got none")
        self.texts = tuple(texts)
        self._encode = encode
        self._kept: OrderedDict[int, Embedding] = OrderedDict()

    def __len__(self) -> int:
        return len(self.texts)

    def __call__(self, labels: Int64[Tensor, " batch"]) -> Embedding:
        """The network's inputs for these prompts, one row each."""
        wanted = [int(label) for label in labels]
        rows = self._rows(list(dict.fromkeys(wanted)))
        return {
            name: torch.stack([rows[label][name] for label in wanted]) for name in rows[wanted[0]]
        }

    def _rows(self, labels: list[int]) -> dict[int, Embedding]:
        new = [label for label in labels if label not in self._kept]
        rows = {label: self._kept[label] for label in labels if label in self._kept}
        if new:
            texts = [None if label == NO_CLASS else self.texts[label] for label in new]
            # in training the loop may compute in half precision: what is kept must not depend on it
            with torch.no_grad(), _without_autocast():
                encoded = self._encode(texts)
            for i, label in enumerate(new):
                rows[label] = {name: value[i] for name, value in encoded.items()}
        for label in labels:
            self._kept[label] = rows[label]
            self._kept.move_to_end(label)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return rows


@contextmanager
def _without_autocast() -> Iterator[None]:
    """No autocast of any device: a pipeline may lie on a CPU although there is a GPU."""
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def encoder(pipeline: Any) -> Callable[[list[str | None]], Embedding]:
    """The text encoder of a Stable Diffusion or Stable Diffusion XL pipeline."""
    is_xl = hasattr(pipeline, "text_encoder_2")
    zeros = is_xl and pipeline.config.get("force_zeros_for_empty_prompt", False)

    def encode(texts: list[str | None]) -> Embedding:
        words = [text or "" for text in texts]
        encoded = pipeline.encode_prompt(
            prompt=words,
            device=pipeline.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        rows = {"encoder_hidden_states": encoded[0]}
        if is_xl:
            rows["text_embeds"] = encoded[2]
        if zeros:  # what the pipeline's own guidance takes for no prompt
            empty = torch.tensor([text is None for text in texts], device=encoded[0].device)
            rows = {
                name: value.masked_fill(empty.reshape(-1, *(1,) * (value.ndim - 1)), 0.0)
                for name, value in rows.items()
            }
        if is_xl:
            rows["time_ids"] = _sizes(pipeline, encoded[2]).expand(len(texts), -1)
        return rows

    return encode


def _sizes(pipeline: Any, pooled: Tensor) -> Tensor:
    """Stable Diffusion XL is also told sizes: the picture's own, and that nothing was cut off."""
    sample = pipeline.unet.config.sample_size
    height, width = (sample, sample) if isinstance(sample, int) else sample
    size = (height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor)
    ids = [*size, 0, 0, *size]
    return torch.tensor([ids], dtype=pooled.dtype, device=pooled.device)


def read_prompts(source: Path) -> tuple[str, ...]:
    """Prompts from a text file, one per line; empty lines are passed over.

    Raises:
        UserError: if there is no such file, or nothing in it.
    """
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"prompts cannot be read from {source} ({reason}): give a text file, a prompt per line"
        ) from error
    texts = tuple(line.strip() for line in lines if line.strip())
    if not texts:
        raise UserError(f"{source} holds no prompts: write one per line")
    return texts
