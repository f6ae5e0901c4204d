"""Read configs, ours and mmseg's, and make them small enough for a test."""

import copy
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import mmengine.config.utils
import mmseg
from mmengine.config import Config, ConfigDict

CONFIGS = Path(mmseg.__file__).parent / '.mim' / 'configs'
WIDTH = 32

# For each 'mmseg::' in a config, mmengine parses the metafiles of all of mmseg, which takes most of a second.
_load = functools.cache(mmengine.config.utils.load)


@functools.cache
def _read(path: Path) -> Config:
    with mock.patch.object(mmengine.config.utils, 'load', _load):
        return Config.fromfile(path)


def read_config(path: Path) -> Config:
    """Return a config of its own for each call; each file is read once."""
    return copy.deepcopy(_read(path))


def without_scopes(node: Any) -> Any:
    """Remove, in place, the ``_scope_`` that mmengine adds to what comes from ``mmseg::``."""
    if isinstance(node, Config | dict):
        node.pop('_scope_', None)
    for value in node.values() if isinstance(node, Config | dict) else node:
        if isinstance(value, dict | list | tuple):
            without_scopes(value)
    return node


def heads(model: ConfigDict) -> list[ConfigDict]:
    """Return the decode head and the auxiliary heads."""
    auxiliary = model.get('auxiliary_head') or []
    return [model.decode_head, *(auxiliary if isinstance(auxiliary, list) else [auxiliary])]


def shrink(cfg: Config) -> Config:
    """Cut width and depth of the model, in place. As many blocks stay as have outputs or queries, otherwise 2."""
    model = cfg.model
    model.pretrained = None
    outs = model.backbone.get('out_indices', -1)
    depth = model.decode_head.get('num_blocks', 2) if isinstance(outs, int) else len(outs)
    model.backbone.update(embed_dims=WIDTH, num_heads=2, num_layers=depth, pretrained=None, init_cfg=None)
    if not isinstance(outs, int):
        model.backbone.out_indices = tuple(range(depth))
    if 'feedforward_channels' in model.backbone:
        model.backbone.feedforward_channels = 2 * WIDTH
    for head in heads(model):
        channels = head.in_channels
        head.in_channels = WIDTH if isinstance(channels, int) else [WIDTH] * len(channels)
        if 'embed_dims' in head:
            head.embed_dims = WIDTH
        if head.type == 'SegmenterMaskTransformerHead':
            head.num_heads = 2
        if 'channels' in head:
            head.channels = WIDTH
        if head.type == 'DPTHead':
            head.post_process_channels = [WIDTH] * 4
        if head.type == 'SETRMLAHead':
            head.mla_channels = WIDTH // 4
    if model.get('neck') is not None:
        model.neck.update(in_channels=[WIDTH] * 4, out_channels=WIDTH)
    return cfg


def shrink_images(cfg: Config, side: int = 64) -> Config:
    """Scale everything that is measured in pixels, in place, so that the network's input has ``side`` pixels."""
    size = cfg.model.backbone.get('img_size', 224)
    size = size if isinstance(size, int) else size[0]

    def scaled(pixels: Iterable[int]) -> tuple[int, ...]:
        return tuple(max(1, p * side // size) for p in pixels)

    def walk(node: Any) -> None:
        for key, value in node.items() if isinstance(node, ConfigDict) else enumerate(node):
            if key in ('scale', 'crop_size', 'stride', 'size') and isinstance(value, tuple | list):
                node[key] = scaled(value)
            elif isinstance(value, ConfigDict | list | tuple):
                walk(value)

    cfg.model.backbone.img_size = (side, side)
    for node in (cfg.model.get('data_preprocessor'), cfg.model.get('test_cfg')):
        walk(node or {})
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        walk(cfg[loader].dataset)
    return cfg
