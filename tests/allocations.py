"""How large the tensors are that a piece of code makes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Within the block, notes the operators that run and the most elements that one put out."""

    def __init__(self):
        super().__init__()
        self.numel = 0
        self.operators = set()

    def called(self, name):
        """Was an operator of that name run?"""
        return any(name in operator for operator in self.operators)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operators.add(str(func))
        for leaf in tree_leaves(out):
            # the storage, as an expanded tensor takes no memory
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out
