"""Say what of a checkpoint a model took, whichever way it was loaded.

mmengine tells only of keys that do not fit, and in ``load_from`` and
``init_model`` it prints them instead of logging them. Both it and torch call a
module's load hooks, so these see every loader.
"""

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import nn

from ..errors import UserError

# Key under which a loader may note the name of the file in the state_dict's metadata of the whole model.
FILE_KEY = 'checkpoint_file'


def report_loading(model: nn.Module) -> None:
    """Make a model log what it takes of each state_dict.

    One line at INFO if all of it was used and nothing was missing; else
    WARNINGs with the name of each key that the model does not have, that the
    checkpoint does not have, or whose shape differs (with both shapes).
    """
    model.register_load_state_dict_pre_hook(_begin)
    model.register_load_state_dict_post_hook(_end)


def check_all_loaded(model: nn.Module) -> None:
    """Refuse to judge a model that is in part as it was initialised.

    Args:
        model: of :func:`report_loading`, after loading.

    Raises:
        ValueError: the last checkpoint had too few tensors, or of other
            shapes; says how many, and names the first.
    """
    name, left = model.__dict__.get('_not_loaded', ('', []))
    if left:
        raise UserError(
            f'{name} is not a checkpoint of this model: {len(left)} tensors are missing or of another shape, the '
            f'first {left[0]}'
        )


def _begin(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    # error_msgs is where the loader collects wrong shapes; the second hook is not given it.
    name = local_metadata.get(FILE_KEY, 'a state_dict')
    total = sum(key.startswith(prefix) for key in state_dict)
    module._loading = (name, total, prefix, error_msgs)  # type: ignore[assignment]


def _end(module: nn.Module, incompatible_keys: Any) -> None:
    name, total, prefix, wrong_shape = module.__dict__.pop('_loading')
    missing = [key for key in incompatible_keys.missing_keys if key.startswith(prefix)]
    # as mmengine: old checkpoints lack this counter, which has no effect
    missing = [key for key in missing if not key.endswith('num_batches_tracked')]
    unexpected = [key for key in incompatible_keys.unexpected_keys if key.startswith(prefix)]
    wrong_shape = [' '.join(message.split()) for message in wrong_shape]
    module.__dict__['_not_loaded'] = name, missing + wrong_shape
    used = total - len(unexpected) - len(wrong_shape)
    if used == total and not missing:
        print_log(f'loaded {name}: all {total} tensors of the checkpoint used', 'current')
        return
    warnings = [f'loaded {name}: {used} of {total} tensors of the checkpoint used']
    for what, keys in (
        ('not used, the model has none of that name', unexpected),
        ('not in the checkpoint, left as they were', missing),
        ('of another shape, left as they were', wrong_shape),
    ):
        if keys:
            warnings.append(f'{name}: {len(keys)} tensors {what}: {", ".join(keys)}')
    for warning in warnings:
        print_log(warning, 'current', logging.WARNING)
