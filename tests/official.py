"""The official reference data, and its weights under our names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmseg.registry import MODELS

DATA = Path(__file__).parent / 'data'
_BLOCK = {
    'norm1': 'ln1',
    'attn.qkv.': 'attn.attn.in_proj_',
    'attn.proj': 'attn.attn.out_proj',
    'norm2': 'ln2',
    'mlp.fc1': 'ffn.layers.0.0',
    'mlp.fc2': 'ffn.layers.1',
}


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f'segm_set1_{name}.npz') as file:
        return dict(file)


def to_ours(reference: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    state = {}
    for key, value in reference.items():
        if not key.startswith('sd/'):
            continue
        name = key[3:].replace('encoder.', 'backbone.').replace('decoder.', 'decode_head.', 1)
        name = name.replace('.blocks.', '.layers.').replace('patch_embed.proj.', 'patch_embed.projection.')
        name = name.replace('backbone.norm.', 'backbone.ln1.').replace('proj_dec', 'dec_proj')
        if '.layers.' in name:
            for theirs, ours in _BLOCK.items():
                name = name.replace(theirs, ours)
        tensor = torch.from_numpy(value)
        if name in ('decode_head.proj_patch', 'decode_head.proj_classes'):
            # raw parameters used as x @ W
            name, tensor = name.replace('proj_patch', 'patch_proj').replace('proj_classes', 'classes_proj'), tensor.T
            name += '.weight'
        if name.startswith('decode_head.head.'):
            name = name.replace('head.head', 'head.conv_seg')
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        state[name] = tensor
    return state


def build(name: str, reference: dict[str, np.ndarray]) -> Any:
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
    model.load_state_dict(to_ours(reference), strict=True)
    return model.eval()
