"""Record what layers of a network are given or return while it runs."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _AllRecordedError(Exception):
    """Ends a forward pass of which no more is needed."""


class Record(NamedTuple):
    """One call of a module; without output if only inputs are recorded."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor | None = None


def record(run: Callable[[], Any], modules: Sequence[nn.Module], outputs: bool = False) -> list[Record]:
    """Run a network, without gradients, until all of some modules were called once.

    Forward hooks do it. They are removed afterwards, also after an error, and
    ignore other threads that use the network at the same time.

    Args:
        run: runs the network.
        modules: parts of the network.
        outputs: record outputs too; else the network stops in front of the
            last module.
    """
    thread, calls = threading.get_ident(), dict[nn.Module, Record]()

    def hook(module: nn.Module, *call: Any) -> None:
        if threading.get_ident() == thread:
            calls[module] = Record(*call)
            if len(calls) == len(modules):
                raise _AllRecordedError

    handles = []
    try:
        for module in modules:
            register = module.register_forward_hook if outputs else module.register_forward_pre_hook
            handles.append(register(hook, with_kwargs=True))
        with torch.no_grad():
            run()
    except _AllRecordedError:
        return [calls[module] for module in modules]
    finally:
        for handle in handles:
            handle.remove()
    raise AssertionError(f'{len(modules) - len(calls)} of {len(modules)} modules did not run')
