"""Log which tensors of a checkpoint a model used, however the checkpoint was loaded.

mmengine reports only keys that do not fit, and prints them in ``load_from`` and ``init_model`` instead of logging them.
The report is made in load hooks of the module, which torch and mmengine both call.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from torch import nn

from ..errors import UserError

# A loader may note the name of the file under this key, in the state_dict's metadata of the whole model.
FILE_KEY = 'checkpoint_file'


def report_loading(model: nn.Module) -> None:
    """Make a model log which tensors of each state_dict it uses.

    Logs one line at INFO if all tensors were used and none was missing. Otherwise logs WARNINGs that name each key that
    only the checkpoint has, that only the model has, or whose shape differs (with both shapes).
    A second call for the same model does nothing.
    """
    if '_not_loaded' in model.__dict__:
        return
    model.__dict__['_not_loaded'] = '', []
    model.register_load_state_dict_pre_hook(_begin)
    model.register_load_state_dict_post_hook(_end)


def log_loading(
    name: str, total: int, missing: Sequence[str], unexpected: Sequence[str], wrong_shape: Sequence[str] = ()
) -> None:
    """Log what a model took of a checkpoint.

    Args:
        name: path or URL of the checkpoint.
        total: number of tensors in the checkpoint.
        missing: keys that only the model has.
        unexpected: keys that only the checkpoint has.
        wrong_shape: one message for each tensor whose shape differs.
    """
    used = total - len(unexpected) - len(wrong_shape)
    if used == total and not missing:
        print_log(f'loaded {name}: all {total} tensors of the checkpoint used', 'current')
        return
    print_log(f'loaded {name}: {used} of {total} tensors of the checkpoint used', 'current', logging.WARNING)
    for what, keys in (
        ('not used because the model has none of that name', unexpected),
        ('not in the checkpoint, left as initialised', missing),
        ('of another shape, left as initialised', wrong_shape),
    ):
        if keys:
            tensors = 'tensor' if len(keys) == 1 else 'tensors'
            print_log(f'{name}: {len(keys)} {tensors} {what}: {", ".join(keys)}', 'current', logging.WARNING)


def check_all_loaded(model: nn.Module) -> None:
    """Raise if a model is still partly as it was initialised.

    Args:
        model: a model of :func:`report_loading`, after loading.

    Raises:
        UserError: the last checkpoint lacked tensors, or had some of another shape. The message counts them and names
            the first.
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
    log_loading(name, total, missing, unexpected, wrong_shape)
