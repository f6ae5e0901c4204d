"""Make a tiny model with its config and checkpoint, and images to segment."""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmseg.registry import MODELS

CLASSES = ('sky', 'road', 'tree', 'car', 'person')
PALETTE = [[70, 130, 180], [128, 64, 128], [107, 142, 35], [0, 0, 142], [220, 20, 60]]


def tiny_config(num_classes: int = 5, mode: str = 'slide', **changes: Any) -> Config:
    """Return the config of a Segmenter with one block and patches of 8 pixels.

    Args:
        num_classes: of the head.
        mode: ``'slide'`` (windows of 32 pixels) or ``'whole'``.
        changes: values by dotted key, with ``__`` for the dots.
    """
    head = dict(
        type='SegmenterMaskTransformerHead',
        in_channels=16,
        embed_dims=16,
        num_layers=1,
        num_heads=2,
        num_classes=num_classes,
    )
    preprocessor = dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True, pad_val=0, seg_pad_val=255
    )
    backbone = dict(
        type='SegmenterViT', img_size=(32, 32), patch_size=8, embed_dims=16, num_layers=1, num_heads=2, final_norm=True
    )
    test_cfg = dict(mode=mode, crop_size=(32, 32), stride=(24, 24)) if mode == 'slide' else dict(mode=mode)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ]
    cfg = Config(
        dict(
            default_scope='mmseg',
            custom_imports=dict(imports=['mmseg_segmenter'], allow_failed_imports=False),
            model=dict(
                type='Segmenter',
                data_preprocessor=preprocessor,
                backbone=backbone,
                decode_head=head,
                test_cfg=test_cfg,
            ),
            visualizer=dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'),
            test_pipeline=pipeline,
            test_dataloader=dict(
                batch_size=1,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(type='BaseSegDataset', pipeline=pipeline, metainfo=dict(classes=CLASSES, palette=PALETTE)),
            ),
            tta_model=dict(type='SegTTAModel'),
            tta_pipeline=[
                dict(type='LoadImageFromFile'),
                dict(
                    type='TestTimeAug',
                    transforms=[
                        [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (1.0, 1.5)],
                        [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
                        [dict(type='LoadAnnotations')],
                        [dict(type='PackSegInputs')],
                    ],
                ),
            ],
        )
    )
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return cfg


def dataset_config(root: Path) -> Config:
    """Return a config whose training set is the PNG files in ``images`` and ``labels`` of a folder."""
    cfg = tiny_config()
    cfg.train_dataloader = dict(
        batch_size=1,
        dataset=dict(
            type='BaseSegDataset',
            data_root=str(root),
            data_prefix=dict(img_path='images', seg_map_path='labels'),
            img_suffix='.png',
            metainfo=dict(classes=CLASSES),
            pipeline=cfg.test_pipeline,
        ),
    )
    cfg.test_dataloader = None
    return cfg


def save_run(folder: Path, cfg: Config, meta: dict[str, Any] | None = None) -> Path:
    """Write a config and a checkpoint with random weights; return the folder.

    Args:
        folder: to write to.
        cfg: config.
        meta: ``dataset_meta`` of the checkpoint, default: CLASSES and PALETTE. ``{}`` for none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cfg.dump(folder / 'config.py')
    torch.manual_seed(0)
    state = MODELS.build(cfg.copy().model).state_dict()
    for value in state.values():
        if value.ndim >= 2:  # as they are, all pixels would be of one class
            value.normal_(std=2 / math.sqrt(value[0].numel()))
    meta = dict(classes=CLASSES, palette=PALETTE) if meta is None else meta
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=meta) if meta else {}), folder / 'model.pth')
    return folder


def write_image(path: Path, size: tuple[int, int] = (40, 56), seed: int = 0) -> Path:
    """Write an image of large random blobs; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC))
    return path
