"""Many networks of one architecture, trained as one module.

Small networks leave a processor idle: most of a step goes into calling kernels. An `Ensemble`
stacks the weights of its networks along a new first axis and runs them all with one batched kernel
an operation (`torch.vmap`), about as fast as batched products written by hand.

    x: (networks, batch, ...)  ->  logits: (networks, batch, classes)

Each network gets its own batch. The networks do not interact: an optimiser that works element by
element (SGD, Adam, with momentum and weight decay) takes exactly the steps that it would take for
each network alone, if the loss is the *sum* over networks of their mean losses. What mixes
elements, such as clipping by the norm of the whole gradient, does not.

References:
    "Model ensembling", PyTorch tutorials (`torch.func.stack_module_state`).
"""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from rectified.errors import UserError


class Ensemble(nn.Module):
    """Networks of one architecture as one module.

    Its parameters and buffers are those of one network, with the prefix `base.` and a first axis
    for the networks. The given models are left alone until `unstack_`.

    Args:
        models: at least one; same architecture, shapes, device and mode.

    Raises:
        UserError: if there is no model, or the models differ in parameters or buffers.

    Example:
        >>> ensemble = Ensemble([nn.Linear(4, 2) for _ in range(3)])
        >>> ensemble(torch.zeros(3, 5, 4)).shape
        torch.Size([3, 5, 2])
        >>> {name: tuple(p.shape) for name, p in ensemble.named_parameters()}
        {'base.weight': (3, 2, 4), 'base.bias': (3, 2)}
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        _check(models)
        self.models = tuple(models)  # a tuple, so that they are no sub-modules
        self.base = copy.deepcopy(models[0])
        parameters, buffers = stack_module_state(list(models))
        # Through `data`, so that a parameter that two layers share stays shared.
        for name, values in parameters.items():
            self.base.get_parameter(name).data = values.detach()
        for name, values in buffers.items():
            self.base.get_buffer(name).data = values
        self.train(models[0].training)

    def forward(
        self, x: Shaped[Tensor, "networks batch ..."]
    ) -> Shaped[Tensor, "networks batch ..."]:
        """Return each network's outputs for its own batch."""
        return vmap(self._one, randomness="different")(_state(self.base), x)

    def _one(self, state: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.base, state, (x,))

    @torch.no_grad()
    def unstack_(self) -> None:
        """Copy the parameters and buffers back into the models that were given."""
        stacked = _state(self.base)
        for number, model in enumerate(self.models):
            for name, value in _state(model).items():
                value.copy_(stacked[name][number])

    def stacked(self, per_model: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack one dict per model, such as masks, under the ensemble's names of parameters.

        Args:
            per_model: a dict per model: its own parameter name -> tensor; all with the same names.

        Returns:
            Ensemble's parameter name -> tensors, stacked along the first axis.

        Raises:
            UserError: if there is not one dict per model, or their names differ.

        Example:
            >>> ensemble = Ensemble([nn.Linear(4, 2) for _ in range(3)])
            >>> masks = [{"weight": torch.ones(2, 4, dtype=torch.bool)} for _ in range(3)]
            >>> {name: tuple(mask.shape) for name, mask in ensemble.stacked(masks).items()}
            {'base.weight': (3, 2, 4)}
        """
        if len(per_model) != len(self.models):
            raise UserError(
                f"per_model must hold one dict a model ({len(self.models)}), got {len(per_model)}"
            )
        names = list(per_model[0])
        for number, values in enumerate(per_model):
            if set(values) != set(names):
                raise UserError(
                    f"per_model must have the same names for all models, "
                    f"got {sorted(set(values) ^ set(names))} in some only (model {number})"
                )
        return {f"base.{name}": torch.stack([d[name] for d in per_model]) for name in names}


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _check(models: Sequence[nn.Module]) -> None:
    if not models:
        raise UserError("models must hold at least one network, got none")
    shapes = [{name: value.shape for name, value in _state(model).items()} for model in models]
    for number, other in enumerate(shapes):
        if other != shapes[0]:
            raise UserError(
                f"models must have the same parameters and buffers; model {number} differs from 0"
            )
