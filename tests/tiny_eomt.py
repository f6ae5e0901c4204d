"""Tiny EoMT models, and those of the authors' code."""

import json
from pathlib import Path

import numpy as np
import torch
from mmseg.registry import MODELS

from mmseg_segmenter.checkpoints.architecture import read_architecture
from mmseg_segmenter.checkpoints.formats import official_eomt

DATA = Path(__file__).parent / 'data'
LOSS = dict(type='CrossEntropyLoss')  # in place of the loss, where a test does not train


def tiny_eomt(test_cfg=None, backbone=None, head=None, **options):
    """Return an EoMT with random weights whose masks and classes differ from pixel to pixel."""
    torch.manual_seed(0)
    config = dict(
        type='EoMT',
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=dict(
            type='SegmenterViT', img_size=32, patch_size=8, embed_dims=16, num_layers=2, num_heads=2, final_norm=True
        )
        | (backbone or {}),
        decode_head=dict(
            type='EoMTHead',
            in_channels=16,
            num_queries=5,
            num_blocks=1,
            patch_size=8,
            num_classes=4,
            loss_decode=LOSS,
        )
        | (head or {}),
        test_cfg=test_cfg,
        **options,
    )
    model = MODELS.build(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        model.decode_head.mask_embed[-1].weight.mul_(4)
        model.decode_head.cls_embed.weight.normal_(std=2)
        model.decode_head.cls_embed.bias[-1] = -2
    return model.eval()


def official(name):
    """Return arrays and meta of an output of the authors' code, and its tensors."""
    with np.load(DATA / f'eomt_{name}.npz') as file:
        arrays = dict(file)
    weights = {key[3:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith('sd/')}
    return arrays, json.loads(bytes(arrays['meta_json'])), weights


def official_model(name):
    """Return the model of :func:`official`."""
    _, meta, weights = official(name)
    heads = meta['num_heads' if name == 'dinov2' else 'num_attention_heads']
    state = official_eomt.to_mmseg(weights, heads).state_dict
    backbone = {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}
    architecture = read_architecture(backbone, num_heads=heads, options=official_eomt.options(weights))
    model = MODELS.build(
        dict(
            type='EoMT',
            backbone=architecture.backbone(1e-6 if name == 'dinov2' else 1e-5),
            decode_head=dict(
                type='EoMTHead',
                in_channels=architecture.embed_dims,
                num_queries=meta['num_queries'],
                num_blocks=meta['num_blocks'],
                num_classes=meta['num_classes'],
                loss_decode=LOSS,
            ),
        )
    )
    model.load_state_dict(state, strict=True)
    return model
