"""Runs of the official Segmenter: ``checkpoint.pth`` beside ``variant.yml``."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pprint import pformat
from typing import Any

import torch
import yaml
from mmengine.config import Config
from torch import Tensor

from .. import __version__
from ..errors import MissingFileError, UserError
from ..files import refuse_existing, write_atomically, write_checkpoint, write_text
from .architecture import Architecture, read_architecture, value_warnings
from .formats import official_segmenter
from .keymap import Conversion, listed
from .read import provenance, read_tensors
from .verify import Comparison, verify_official_run

# segm/data/utils.py, STATS, in units of 8-bit pixels
_NORMALIZATION = {
    'vit': dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    'deit': dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
}
_DATASETS = {
    'ade20k': {512: 'ade20k.py', 640: 'ade20k_640x640.py'},
    'cityscapes': {768: 'cityscapes_768x768.py'},
    'pascal_context': {480: 'pascal_context.py'},
}


class _VariantLoader(yaml.SafeLoader):
    """Plain YAML and ``!!python/tuple``; any other tag is refused."""


def _tuple(loader: yaml.SafeLoader, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


_VariantLoader.add_constructor('tag:yaml.org,2002:python/tuple', _tuple)


@dataclass(frozen=True)
class OfficialRun:
    """An official run in mmseg's layout.

    Attributes:
        checkpoint: path of ``checkpoint.pth``.
        variant: content of ``variant.yml``.
        conversion: tensors and the account of every source key.
        architecture: of the encoder.
        verified: outputs of both models, if they were compared.
    """

    checkpoint: str
    variant: dict[str, Any]
    conversion: Conversion
    architecture: Architecture
    verified: Comparison | None = None

    @property
    def decoder_layers(self) -> int:
        """Blocks of the mask decoder, from the weights; 0 for the linear one."""
        return _depth(self.conversion.state_dict, 'decode_head.layers.')

    @property
    def num_classes(self) -> int:
        state = self.conversion.state_dict
        return state['decode_head.cls_emb'].shape[1] if self.decoder_layers else len(state['decode_head.conv_seg.bias'])

    @property
    def warnings(self) -> list[str]:
        """What a user should know before using these weights."""
        return value_warnings(self.checkpoint, self.conversion.state_dict)

    def __str__(self) -> str:
        decoder = f'mask decoder of {self.decoder_layers} layers' if self.decoder_layers else 'linear decoder'
        return (
            f'read {self.checkpoint}: {self.architecture}; {decoder}, {self.num_classes} classes\n'
            f'mapped {len(self.conversion.origin)} tensors; dropped {listed(self.conversion.dropped) or "nothing"}'
            + (f'\nverified: {self.verified}' if self.verified else '')
        )


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split('.')[0] for key in state if key.startswith(prefix)})


def read_variant(path: str) -> dict[str, Any]:
    """Read ``variant.yml`` without executing anything in it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, a tag other than ``!!python/tuple``, or parts
            that every official run has are missing.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f'{path} not found; the official code writes it beside checkpoint.pth')
    try:
        with open(path, encoding='utf-8') as file:
            variant = yaml.load(file, Loader=_VariantLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f'{path}: refused or not YAML ({" ".join(str(error).split())})') from None
    for key in ('net_kwargs', 'dataset_kwargs'):
        if not isinstance(variant, dict) or not isinstance(variant.get(key), dict):
            raise UserError(f'{path}: no {key}, which every official variant.yml has')
    return variant


def read_run(source: str) -> OfficialRun:
    """Read an official run.

    Args:
        source: its folder, or ``checkpoint.pth`` in it.

    Raises:
        FileNotFoundError: checkpoint or variant is missing.
        ValueError: names the file and what is wrong.
    """
    checkpoint = os.path.join(source, 'checkpoint.pth') if os.path.isdir(source) else source
    tensors = read_tensors(checkpoint)
    variant = read_variant(os.path.join(os.path.dirname(checkpoint), 'variant.yml'))
    heads = variant['net_kwargs'].get('n_heads')
    try:
        conversion = official_segmenter.to_mmseg(tensors)
        names = {k: k.removeprefix('backbone.') for k in conversion.state_dict if k.startswith('backbone.')}
        architecture = read_architecture(
            {names[k]: conversion.state_dict[k] for k in names},
            {names[k]: conversion.origin[k] for k in names if k in conversion.origin},
            heads,
        )
    except ValueError as error:
        raise UserError(f'{checkpoint}: cannot convert, {error}') from None
    if not isinstance(heads, int) or heads < 1 or architecture.embed_dims % heads:
        raise UserError(
            f'{checkpoint}: n_heads={heads!r} in variant.yml does not fit a width of {architecture.embed_dims}'
        )
    return OfficialRun(checkpoint, variant, conversion, architecture)


def config_text(run: OfficialRun) -> str:
    """A config with which the converted weights give the official results.

    LayerNorm eps 1e-5, bilinear position embedding, the normalisation of the
    backbone, and the window and stride of the official evaluation: crop and
    crop - 32 (``segm/eval/miou.py``).

    Raises:
        ValueError: the variant names an unknown dataset or normalisation.
    """
    net, data = run.variant['net_kwargs'], run.variant['dataset_kwargs']
    name, normalization, crop = data.get('dataset'), net.get('normalization'), data.get('crop_size')
    if name not in _DATASETS or normalization not in _NORMALIZATION or not isinstance(crop, int):
        raise UserError(
            f'variant.yml of {run.checkpoint}: dataset={name!r}, crop_size={crop!r}, normalization={normalization!r}; '
            f'expected one of {", ".join(_DATASETS)}, a number, and one of {", ".join(_NORMALIZATION)}'
        )
    bases = _DATASETS[name]
    base = bases.get(crop, next(iter(bases.values())))
    size = tuple(net['image_size'])
    patch, width = run.architecture.patch_size, run.architecture.embed_dims
    head: dict[str, Any] = dict(type='LinearHead')
    if run.decoder_layers:
        decoder = run.conversion.state_dict['decode_head.dec_proj.weight'].shape[0]
        settings = net.get('decoder') or {}
        head = dict(
            type='SegmenterMaskTransformerHead',
            embed_dims=decoder,
            num_layers=run.decoder_layers,
            # segm/model/factory.py; narrower decoders than it makes have as many heads as the encoder
            num_heads=settings.get('n_heads') or decoder // 64 or net['n_heads'],
            drop_rate=settings.get('dropout', 0.0),
            attn_drop_rate=settings.get('dropout', 0.0),
            drop_path_rate=settings.get('drop_path_rate', 0.0),
        )
    loss = dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, avg_non_ignore=True)
    model = dict(
        type='Segmenter',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            **_NORMALIZATION[normalization],
            bgr_to_rgb=True,
            pad_val=0,
            seg_pad_val=255,
            size=(crop, crop),
        ),
        backbone=dict(
            type='SegmenterViT',
            img_size=size,
            patch_size=patch,
            embed_dims=width,
            num_layers=run.architecture.num_layers,
            num_heads=net['n_heads'],
            mlp_ratio=run.architecture.mlp_ratio,
            drop_rate=net.get('dropout', 0.0),
            attn_drop_rate=net.get('dropout', 0.0),
            drop_path_rate=net.get('drop_path_rate', 0.0),
            with_dist_token=run.architecture.with_dist_token,
            final_norm=True,
            norm_cfg=dict(type='LN', eps=1e-5),
            interpolate_mode='bilinear',
        ),
        decode_head=dict(**head, in_channels=width, num_classes=run.num_classes, loss_decode=loss),
        train_cfg=dict(),
        test_cfg=dict(
            mode='slide', crop_size=(crop, crop), stride=(crop - 32, crop - 32), size_divisor=patch, upscale_small=True
        ),
    )
    return f"""# Converted from the official {run.checkpoint} by mmseg_segmenter {__version__}.
_base_ = [
    'mmseg::_base_/datasets/{base}',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_160k.py',
]
custom_imports = dict(imports=['mmseg_segmenter'], allow_failed_imports=False)
model = {pformat(model, sort_dicts=False, width=110)}
"""


def convert_run(source: str, destination: str, force: bool = False, verify: bool = False) -> OfficialRun:
    """Write ``DESTINATION/{model.pth, config.py}`` from an official run.

    Args:
        source: folder of the run, or ``checkpoint.pth`` in it.
        destination: folder, made if needed.
        force: replace existing files.
        verify: write them only if the model they make gives the official
            logits, see :func:`mmseg_segmenter.checkpoints.verify.verify_official_run`.

    Raises:
        FileExistsError: a file exists and ``force`` is not set.
        IsADirectoryError: there is a folder in place of a file.
        OSError: cannot write there.
        ValueError: the logits differ.
        others: as :func:`read_run` and :func:`config_text`.
    """
    _refuse_existing(destination, ('model.pth', 'config.py'), force)
    run = read_run(source)
    text = config_text(run)
    content = dict(state_dict=run.conversion.state_dict, meta=provenance(run.checkpoint, run.architecture))
    writers = {
        'model.pth': lambda path: write_checkpoint(path, content),
        'config.py': lambda path: write_text(path, text),
    }

    def check(staging: str) -> Comparison:
        config, model = (os.path.join(staging, name) for name in ('config.py', 'model.pth'))
        net = run.variant['net_kwargs']
        return verify_official_run(run.checkpoint, net['image_size'], net['n_heads'], config, model)

    return replace(run, verified=write_atomically(destination, writers, force, check if verify else None))


def _refuse_existing(folder: str, names: tuple[str, ...], force: bool) -> None:
    """Before the work, not after it."""
    for name in names:
        refuse_existing(os.path.join(folder, name), force)


def official_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict that the official code loads, from one of ours.

    Its strict loader wants the ImageNet classifier that it never uses: zeros.

    Args:
        state: of a whole segmentor.

    Raises:
        ValueError: lists missing and unknown keys.
    """
    out = official_segmenter.from_mmseg(state)
    width = out['encoder.cls_token'].shape[-1]
    for name in ('head', 'head_dist') if 'encoder.dist_token' in out else ('head',):
        out[f'encoder.{name}.weight'] = torch.zeros(1000, width)
        out[f'encoder.{name}.bias'] = torch.zeros(1000)
    return out


def official_variant(cfg: Config) -> dict[str, Any]:
    """What ``variant.yml`` says of a model, as the official code reads it.

    Args:
        cfg: whole config with a ``Segmenter`` model.

    Raises:
        ValueError: the model is none that the official code can build.
    """
    model = cfg.model
    backbone, head = model.backbone, model.decode_head
    mean = list(model.data_preprocessor.mean)
    normalization = next((name for name, stats in _NORMALIZATION.items() if stats['mean'] == mean), None)
    crop, stride = model.test_cfg.get('crop_size', backbone.img_size), model.test_cfg.get('stride', backbone.img_size)
    is_mask = head.type == 'SegmenterMaskTransformerHead'
    if normalization is None or backbone.get('norm_cfg', {}).get('eps', 1e-5) != 1e-5 or crop[0] != crop[1]:
        raise UserError(
            f'{cfg.filename}: the official code has LayerNorm eps 1e-5, square windows and one of the normalisations '
            f'{", ".join(_NORMALIZATION)}; found norm_cfg={backbone.get("norm_cfg")}, crop_size={crop}, mean={mean}'
        )
    decoder: dict[str, Any] = dict(name='linear', n_cls=head.num_classes)
    if is_mask:
        decoder = dict(
            name='mask_transformer',
            n_cls=head.num_classes,
            n_layers=head.num_layers,
            dropout=head.get('drop_rate', 0.0),
            drop_path_rate=head.get('drop_path_rate', 0.1),
        )
        if head.embed_dims != backbone.embed_dims or head.num_heads != head.embed_dims // 64:
            raise UserError(
                f'{cfg.filename}: the official mask decoder is as wide as the encoder and has width/64 heads; found '
                f'embed_dims={head.embed_dims} on {backbone.embed_dims}, num_heads={head.num_heads}'
            )
    datasets = {'ADE20KDataset': 'ade20k', 'CityscapesDataset': 'cityscapes', 'PascalContextDataset': 'pascal_context'}
    dataset = cfg.test_dataloader.dataset.type
    return dict(
        dataset_kwargs=dict(
            dataset=datasets.get(dataset, dataset),
            image_size=crop[0],
            crop_size=crop[0],
            normalization=normalization,
        ),
        inference_kwargs=dict(im_size=crop[0], window_size=crop[0], window_stride=stride[0]),
        net_kwargs=dict(
            backbone=f'vit_d{backbone.embed_dims}_patch{backbone.patch_size}',
            d_model=backbone.embed_dims,
            decoder=decoder,
            distilled=backbone.get('with_dist_token', False),
            drop_path_rate=backbone.get('drop_path_rate', 0.0),
            dropout=backbone.get('drop_rate', 0.0),
            image_size=tuple(backbone.img_size),
            n_cls=head.num_classes,
            n_heads=backbone.num_heads,
            n_layers=backbone.get('num_layers', 12),
            normalization=normalization,
            patch_size=backbone.patch_size,
        ),
        version='normal',
    )


def write_official_run(
    config: str, checkpoint: str, destination: str, force: bool = False, verify: bool = False
) -> Comparison | None:
    """Write ``DESTINATION/{checkpoint.pth, variant.yml}`` for the official code.

    Args:
        config: config of a ``Segmenter``.
        checkpoint: its weights.
        destination: folder, made if needed.
        force: replace existing files.
        verify: write them only if the official model gives the same logits,
            see :func:`mmseg_segmenter.checkpoints.verify.verify_official_run`.

    Returns:
        Outputs of both models, if they were compared.

    Raises:
        FileNotFoundError: config or checkpoint does not exist.
        FileExistsError: a file exists and ``force`` is not set.
        IsADirectoryError: there is a folder in place of a file.
        ValueError: the official code cannot build this model, keys are
            missing or unknown, or the logits differ.
        OSError: cannot write there.
    """
    _refuse_existing(destination, ('checkpoint.pth', 'variant.yml'), force)
    if not os.path.isfile(config):
        raise MissingFileError(f'config {config} not found (working directory: {os.getcwd()})')
    variant = official_variant(Config.fromfile(config))
    try:
        model = official_state(read_tensors(checkpoint))
    except ValueError as error:
        raise UserError(f'{checkpoint}: cannot convert, {error}') from None
    content = dict(model=model, n_cls=variant['net_kwargs']['n_cls'])
    writers = {
        'checkpoint.pth': lambda path: write_checkpoint(path, content),
        'variant.yml': lambda path: write_text(path, yaml.dump(variant)),
    }

    def check(staging: str) -> Comparison:
        net = read_variant(os.path.join(staging, 'variant.yml'))['net_kwargs']
        official = os.path.join(staging, 'checkpoint.pth')
        return verify_official_run(official, net['image_size'], net['n_heads'], config, checkpoint)

    return write_atomically(destination, writers, force, check if verify else None)
