"""Write the config with which converted official weights give the official results."""

from pathlib import Path
from pprint import pformat
from typing import Any, NamedTuple

from mmengine.config import Config

from .. import __version__
from ..errors import UserError
from .architecture import Architecture
from .formats import official_segmenter
from .official_variant import NORMALIZATION, DatasetMeta, Variant

# In a wheel a folder of this package, in a checkout a link.
_CONFIGS = Path(__file__).parents[1] / '.mim' / 'configs'
# Variables that are only there to be inherited. The written config has their values in their places.
_INHERITED_ONLY = {
    'checkpoint', 'classes', 'crop_size', 'data_preprocessor', 'data_root', 'dataset', 'dataset_type', 'img_ratios',
    'img_scale', 'img_suffix', 'max_iters', 'model', 'model_settings', 'optimizer', 'reduce_zero_label',
    'seg_map_suffix', 'vis_backends',
}  # fmt: skip


# By name of the dataset in the official code.
_RECIPES = {name: f'_base_/recipes/segmenter_{name}.py' for name in ('ade20k', 'cityscapes', 'pascal_context')}
_OWN_DATASET = 'segmenter/segmenter_vit-s_mask_own.py'


class Decoder(NamedTuple):
    """What the weights tell of a decoder.

    Attributes:
        num_classes: number of classes.
        num_layers: blocks of the mask decoder; 0 for the linear decoder.
        embed_dims: width of the mask decoder; 0 for the linear decoder.
    """

    num_classes: int
    num_layers: int
    embed_dims: int


def config_text(variant: Variant, architecture: Architecture, decoder: Decoder, source: str) -> str:
    """Return the text of a config with which the converted weights give the official results.

    The model has LayerNorm eps 1e-5, a bilinearly resized position embedding and the normalisation of its backbone.
    It is evaluated with windows of the crop size, 32 pixels less than that apart (``segm/eval/miou.py``).

    Images are resized to the ``image_size`` of ``variant.yml``, the size that the run was trained and validated at and
    that the published number belongs to. ``segm.eval.miou`` resizes to the size in ``segm/config.yml`` instead unless
    it is given ``--im-size``: for the ADE20K models of 640 pixels to 512, after which the official sliding window
    enlarges the images to 640. To evaluate like that, set 512 in the ``Resize`` of the test pipeline.

    The text has no bases: all values of our own bases are written out, so that the config can be moved anywhere.

    Args:
        variant: configuration of the official run.
        architecture: of the encoder.
        decoder: of the decoder.
        source: path of the official weights, for a comment.

    Raises:
        UserError: the dataset is unknown, and ``variant`` has no names of classes.
    """
    if variant.meta is None and variant.dataset not in _RECIPES:
        raise UserError(
            f'{variant.path}: dataset_kwargs.dataset={variant.dataset!r}, expected one of {", ".join(_RECIPES)}; for '
            'another dataset give the names of its classes with --classes'
        )
    base = _RECIPES[variant.dataset] if variant.meta is None else _OWN_DATASET
    cfg = Config.fromfile(str(_CONFIGS / base)).to_dict()
    short_side = min(next(step['scale'] for step in cfg['test_pipeline'] if step['type'] == 'Resize'))
    image_size = variant.image_size or short_side
    for key, value in cfg.items():
        _set_sizes(value, image_size, short_side, variant.crop_size)
        if key.endswith('_dataloader') and variant.meta is not None:
            value['dataset'].update(_dataset_options(variant.meta))
    cfg = {key: value for key, value in cfg.items() if key not in _INHERITED_ONLY}
    cfg['model'] = _model(variant, architecture, decoder)
    lines = [f'# Converted from the official weights {source!r} by mmseg_segmenter {__version__}.']
    if image_size != short_side:
        lines += [
            f'# The short side of images is {image_size} pixels, at which the run was trained and validated.',
            f'# segm.eval.miou --im-size {image_size} does the same; without the option, it resizes to {short_side}.',
        ]
    lines += [f'{key} = {pformat(value, sort_dicts=False, width=118)}' for key, value in cfg.items()]
    return _escape_templates('\n'.join(lines) + '\n')


def _escape_templates(text: str) -> str:
    r"""Write ``{{`` differently: mmengine replaces ``{{ fileDirname }}`` and the like even in strings and comments.

    The literals of the text are dicts, lists, tuples, numbers and strings as ``repr`` writes them. Of these, only
    strings contain ``{{``, so that an escape sequence is right.
    """
    return text.replace('{{', '{\\x7b')


def _set_sizes(node: Any, image_size: int, short_side: int, crop_size: int) -> None:
    """Set the sizes in all pipelines of a config, in place, and remove ``_scope_``, which is the default scope.

    Args:
        node: part of a config.
        image_size: new short side of resized images at ratio 1.
        short_side: the short side that the config has.
        crop_size: side of training crops.
    """
    if isinstance(node, list | tuple):
        for value in node:
            _set_sizes(value, image_size, short_side, crop_size)
    elif isinstance(node, dict):
        node.pop('_scope_', None)
        if node.get('type') in ('Resize', 'RandomResize'):
            node['scale'] = tuple(side * image_size // short_side for side in node['scale'])
        elif node.get('type') == 'RandomCrop':
            node['crop_size'] = (crop_size, crop_size)
        for value in node.values():
            _set_sizes(value, image_size, short_side, crop_size)


def _dataset_options(meta: DatasetMeta) -> dict[str, Any]:
    metainfo: dict[str, Any] = dict(classes=list(meta.classes))
    if meta.palette is not None:
        metainfo['palette'] = [list(colour) for colour in meta.palette]
    return dict(metainfo=metainfo, reduce_zero_label=meta.reduce_zero_label)


def _model(variant: Variant, architecture: Architecture, decoder: Decoder) -> dict[str, Any]:
    crop, width, patch = variant.crop_size, architecture.embed_dims, architecture.patch_size
    head: dict[str, Any] = dict(type='LinearHead')
    if decoder.num_layers:
        head = dict(
            type='SegmenterMaskTransformerHead',
            embed_dims=decoder.embed_dims,
            num_layers=decoder.num_layers,
            num_heads=official_segmenter.decoder_heads(decoder.embed_dims, variant.num_heads),
            drop_rate=variant.decoder_dropout,
            attn_drop_rate=variant.decoder_dropout,
            drop_path_rate=variant.decoder_drop_path_rate,
        )
    loss = dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True)
    return dict(
        type='Segmenter',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            **NORMALIZATION[variant.normalization],
            bgr_to_rgb=True,
            pad_val=0,
            seg_pad_val=255,
            size=(crop, crop),
        ),
        backbone=dict(
            type='SegmenterViT',
            img_size=variant.input_size,
            patch_size=patch,
            embed_dims=width,
            num_layers=architecture.num_layers,
            num_heads=variant.num_heads,
            mlp_ratio=architecture.mlp_ratio,
            drop_rate=variant.dropout,
            attn_drop_rate=variant.dropout,
            drop_path_rate=variant.drop_path_rate,
            with_dist_token=architecture.with_dist_token,
            final_norm=True,
            norm_cfg=dict(type='LN', eps=official_segmenter.EPS),
            interpolate_mode='bilinear',
        ),
        decode_head=dict(**head, in_channels=width, num_classes=decoder.num_classes, loss_decode=loss),
        train_cfg=dict(),
        test_cfg=dict(
            mode='slide', crop_size=(crop, crop), stride=(crop - 32, crop - 32), size_divisor=patch, upscale_small=True
        ),
    )
