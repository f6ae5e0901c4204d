"""What features depend on: backbone, weights, data preprocessor and dataset. It is kept beside them and compared."""

import hashlib
import json
import os
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from ...errors import MissingFileError, UserError

INDEX = 'features.json'
_NOTHING = object()  # in place of an entry that only the other config has
# Arguments of the backbone that do not change its features once it has weights and is frozen.
_NOT_IN_FEATURES = ('init_cfg', 'pretrained', 'with_cp', 'frozen_exclude', 'drop_rate', 'attn_drop_rate',
                    'drop_path_rate')  # fmt: skip


def config_key(cfg: Config) -> dict[str, Any]:
    """Return the entries of a config that features depend on, as they are in a JSON file.

    Folders are left out, so that data can move.

    Args:
        cfg: whole config, for training.
    """
    backbone = {name: value for name, value in cfg.model.backbone.items() if name not in _NOT_IN_FEATURES}
    preprocessor = {name: value for name, value in cfg.model.data_preprocessor.items() if name != 'type'}
    dataset = _without(cfg.train_dataloader.dataset, 'data_root')
    entries = {
        'model.backbone': backbone,
        'model.data_preprocessor': preprocessor,
        'train_dataloader.dataset': dataset,
    }
    return dict(
        json.loads(json.dumps({name: _without(entry, '_scope_') for name, entry in entries.items()}, default=str))
    )


def _without(node: Any, key: str) -> Any:
    if isinstance(node, dict):
        return {name: _without(value, key) for name, value in node.items() if name != key}
    if isinstance(node, list | tuple):
        return [_without(value, key) for value in node]
    return node


def weights_key(backbone: nn.Module) -> str:
    """Return a checksum of the parameters and buffers of a backbone, with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_index(root: str) -> dict[str, Any]:
    """Return what a folder of features says about them.

    Raises:
        MissingFileError: it has no features.
        UserError: the file that describes them is damaged.
    """
    path = os.path.join(root, INDEX)
    if not os.path.isfile(path):
        raise MissingFileError(f'{path} not found; tools/cache_features.py CONFIG {root} makes features')
    try:
        with open(path, encoding='utf-8') as file:
            index = json.load(file)
        if {'config', 'weights', 'samples', 'variants', 'seed', 'half', 'metainfo'} <= index.keys():
            return dict(index)
    except (ValueError, AttributeError):
        pass
    raise UserError(f'{path} is not a description of features; remove {root} and run tools/cache_features.py again')


def check_config(root: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare the config that features were computed with and another one.

    Args:
        root: folder of the features, for the message.
        found: ``config`` of the index.
        expected: :func:`config_key`.

    Raises:
        UserError: names the first entry that differs, and both values.
    """
    difference = _difference(found, expected, '')
    if difference:
        place, was, now = difference
        raise UserError(
            f'the features in {root} were computed with {place}={was}, and the config has {now}; compute them in '
            'another folder with tools/cache_features.py, or undo the change'
        )


def _difference(was: Any, now: Any, place: str) -> tuple[str, str, str] | None:
    """Return the place of the first difference between two trees, and what is there in each."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(key for key in now if key not in was)]:
            found = _difference(was.get(key, _NOTHING), now.get(key, _NOTHING), f'{place}.{key}' if place else key)
            if found:
                return found
        return None
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        pairs = enumerate(zip(was, now, strict=True))
        return next((d for i, (a, b) in pairs if (d := _difference(a, b, f'{place}[{i}]'))), None)
    shown = ['nothing' if value is _NOTHING else repr(value) for value in (was, now)]
    return None if was == now else (place, shown[0], shown[1])
