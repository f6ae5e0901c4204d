"""Load the reference data of the official code, and build our models with its weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmseg.registry import MODELS

from mmseg_segmenter.checkpoints.formats import official_segmenter

DATA = Path(__file__).parent / 'data'


def load(name: str) -> dict[str, np.ndarray]:
    """Return inputs, outputs and weights of the reference model ``linear`` or ``mask_transformer``."""
    with np.load(DATA / f'segm_set1_{name}.npz') as file:
        return dict(file)


def weights(reference: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the official state_dict under its own names."""
    return {key[3:]: torch.from_numpy(value) for key, value in reference.items() if key.startswith('sd/')}


def build(name: str, reference: dict[str, np.ndarray], **head_options: Any) -> Any:
    """Build the model of a reference with its weights."""
    meta = json.loads(bytes(reference['meta_json']))
    head: dict[str, Any] = dict(in_channels=meta['d_model'], num_classes=meta['n_cls'])
    if name == 'linear':
        head.update(type='LinearHead')
    else:
        head.update(
            type='SegmenterMaskTransformerHead',
            embed_dims=meta['d_model'],
            num_heads=meta['dec_heads'],
            num_layers=meta['decoder']['n_layers'],
        )
    head.update(head_options)
    model = MODELS.build(
        dict(
            type='Segmenter',
            data_preprocessor=dict(type='SegDataPreProcessor'),
            backbone=dict(
                type='SegmenterViT',
                img_size=meta['image_size'],
                patch_size=meta['patch_size'],
                embed_dims=meta['d_model'],
                num_layers=meta['n_layers'],
                num_heads=meta['n_heads'],
                final_norm=True,
                interpolate_mode='bilinear',
            ),
            decode_head=head,
            test_cfg=dict(mode='whole', size_divisor=meta['patch_size']),
        )
    )
    model.load_state_dict(official_segmenter.to_mmseg(weights(reference)).state_dict, strict=True)
    return model.eval()
