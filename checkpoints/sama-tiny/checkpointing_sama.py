"""What training keeps for the backward pass: gradient checkpointing only where a gradient flows, and frozen image
encoders without a graph, a few frames at a time.

Transformers enables checkpointing by making the outputs of every embedding require a gradient, those of image encoders
too. A frozen encoder then keeps the inputs of its layers, runs twice and is passed through in the backward pass, for
nothing. Here the outputs of an embedding require a gradient only if something behind it is trained, which is looked up
in each step: parameters may be frozen, and adapters added, after checkpointing was enabled.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


FRAMES_AT_ONCE = 8  # of a frozen encoder in training; more need more memory and are hardly faster


class SelectiveCheckpointing:
    """Mixin for a `PreTrainedModel`: `gradient_checkpointing_enable` and `enable_input_require_grads` of the library,
    but without what is frozen. Works with `use_reentrant` of either value."""

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **kwargs
    ) -> None:
        function = partial(checkpointed, gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, function, **kwargs)

    def enable_input_require_grads(self) -> None:
        """Makes the outputs of embeddings require a gradient, of text as of images, while something behind them is
        trained. Called again, it replaces its hooks."""
        self.disable_input_require_grads()
        owners = {}
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                try:
                    embeddings = module.get_input_embeddings()
                except NotImplementedError:
                    continue
                if isinstance(embeddings, nn.Module):  # timm's encoders have none
                    owners[embeddings] = module  # in the end the innermost model
        self._require_grads_hooks = [
            embeddings.register_forward_hook(gradient_hook(self.base_model, owner))
            for embeddings, owner in owners.items()
        ]

    def disable_input_require_grads(self) -> None:
        """Removes the hooks of [`enable_input_require_grads`]."""
        for hook in vars(self).get("_require_grads_hooks", ()):
            hook.remove()
        self._require_grads_hooks = []


def gradient_hook(model: Any, owner: nn.Module) -> Callable:
    """A forward hook of the embeddings of `owner`, a part of `model` ([`SamaModel`]): their output requires a gradient
    while one must flow through `owner`. A function, which PEFT's copies of modules share: a copied object would copy
    the model."""

    def require_gradient(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if torch.is_grad_enabled() and model.passes_gradient(owner):
            output.requires_grad_(True)

    return require_gradient


def checkpointed(checkpoint_function: Callable, layer: partial, *inputs: Any) -> Any:
    """
    A layer with checkpointing if one of its inputs requires a gradient, and without it otherwise: then a frozen layer
    keeps nothing anyhow.

    Args:
        checkpoint_function (`Callable`): PyTorch's `checkpoint`, with its settings.
        layer (`functools.partial`): The layer with the arguments that it was given by name. Tensors among them are
            handed on by position, since reentrant checkpointing loses the gradients of all others.
        inputs: What the layer was given by position.
    """
    named = {name: value for name, value in layer.keywords.items() if torch.is_tensor(value)}
    given = (*inputs, *named.values())
    if not any(torch.is_tensor(value) and value.requires_grad for value in given):
        return layer(*inputs)

    def run(*given: Any) -> Any:
        return layer(*given[: len(inputs)], **dict(zip(named, given[len(inputs) :], strict=True)))

    return checkpoint_function(run, *given)


def is_trained(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether one of them is trained."""
    return any(parameter.requires_grad for parameter in parameters)


def is_sharded(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether a process holds one of them in pieces (ZeRO-3, FSDP2). Their module must then run equally often in all
    processes."""
    if not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor  # takes long to import

    return any(isinstance(parameter, DTensor) or not parameter.numel() for parameter in parameters)
