"""What ViT backbones have in common, however their blocks are made."""

from collections.abc import Iterable, Sequence

from torch import nn

from ...errors import UserError


def layer_indices(out_indices: int | Sequence[int], num_layers: int) -> list[int]:
    """Return which blocks' outputs are wanted, from 0.

    Args:
        out_indices: one or several; negative numbers count from the end.
        num_layers: number of blocks.

    Raises:
        UserError: there is no such block.
    """
    indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
    wrong = [i for i in indices if not -num_layers <= i < num_layers]
    if wrong:
        raise UserError(f'out_indices={out_indices} with num_layers={num_layers}: no layer {wrong[0]}')
    return [i % num_layers for i in indices]


def freeze_except(module: nn.Module, names: Sequence[str]) -> None:
    """Leave only those parameters trainable whose name contains one of ``names``; with ``'all'``, all of them.

    Raises:
        TypeError: ``names`` is a string.
    """
    if isinstance(names, str):
        raise TypeError(f'frozen_exclude={names!r}; expected a list of names')
    if 'all' not in names:
        for name, param in module.named_parameters():
            param.requires_grad_(any(kept in name for kept in names))


def is_frozen(module: nn.Module) -> bool:
    """Return whether no parameter of a module is trained."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def eval_frozen(parts: Iterable[nn.Module]) -> None:
    """Set modules without trainable parameters to eval mode: without dropout and stochastic depth."""
    for part in parts:
        if is_frozen(part):
            part.eval()
