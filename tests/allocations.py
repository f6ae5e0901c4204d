"""Measure the tensors that a piece of code creates."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Record, within a ``with`` block, the operators that run and the elements of their largest output."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.operators: set[str] = set()

    def called(self, name: str) -> bool:
        """Return whether an operator ran whose name contains ``name``."""
        return any(name in operator for operator in self.operators)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operators.add(str(func))
        for leaf in tree_leaves(out):
            # the size of the storage: an expanded tensor takes no memory
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out
