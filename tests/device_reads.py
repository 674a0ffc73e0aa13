"""Counts where the host reads a tensor: on a GPU each of these waits until all that was queued is computed."""

import traceback
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


# Operations whose result, or its size, is a number that the host must know
READING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim"}
METHODS = ("cpu", "tolist", "numpy")  # which do nothing that could be counted where a tensor is on the CPU already


class DeviceReads(TorchDispatchMode):
    """
    Counts the reads of tensors in the `with` block, in the thread that enters it. What was copied by `Tensor.cpu`, and
    what is made of such copies alone, is on the host: to read it again is free.

    Attributes:
        places (`Counter`): file and operation of the reads to how many.
    """

    def __init__(self):
        super().__init__()
        self.places: Counter[str] = Counter()
        self.on_host: dict[int, torch.Tensor] = {}  # kept, so that no other tensor gets their `id`
        self.methods = {name: vars(torch._C.TensorBase)[name] for name in METHODS}

    def __enter__(self):
        for name, method in self.methods.items():
            setattr(torch.Tensor, name, self._counted(name, method))
        return super().__enter__()

    def __exit__(self, *error):
        for name in self.methods:
            delattr(torch.Tensor, name)
        return super().__exit__(*error)

    def _counted(self, name, method):
        def counted(tensor, *arguments, **keywords):
            if id(tensor) in self.on_host:
                return method(tensor, *arguments, **keywords)
            self._record(name)
            result = method(tensor, *arguments, **keywords)
            if name == "cpu":
                result = result.clone()
                self.on_host[id(result)] = result
            return result

        return counted

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        keywords = keywords or {}
        result = operation(*arguments, **keywords)
        given = [one for one in tree_leaves((arguments, keywords)) if isinstance(one, torch.Tensor)]
        if given and all(id(one) in self.on_host for one in given):
            self.on_host |= {id(one): one for one in tree_leaves(result) if isinstance(one, torch.Tensor)}
            return result
        name = operation._schema.name
        if name in READING or (name == "aten::index" and any_mask(arguments[1])):
            self._record(name.removeprefix("aten::"))
        return result

    def _record(self, name: str) -> None:
        frames = [one for one in traceback.extract_stack() if "/torch/" not in one.filename]
        place = next(one for one in reversed(frames) if Path(one.filename) != Path(__file__))
        self.places[f"{Path(place.filename).name} {name}"] += 1


def any_mask(indices) -> bool:
    """Whether a mask is among the indices of a tensor: the number of its positions is read."""
    return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in indices)
