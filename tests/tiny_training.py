"""Train the tiny model of tiny_run.py on fabricated images."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tiny_run import CLASSES, PALETTE, tiny_config, write_image

LOSS = dict(type='CrossEntropyLoss', avg_non_ignore=True)


def write_dataset(folder: Path) -> Path:
    """Write 13 images with two sets of annotations: all pixels have labels, or few in some images.

    Returns:
        ``folder``, with ``images``, ``full`` and ``partial`` inside.
    """
    rng = np.random.default_rng(0)
    for i in range(13):
        write_image(folder / 'images' / f'{i:02}.png', (32, 32), i)
        labels = np.kron(rng.integers(0, 5, (4, 4)), np.ones((8, 8))).astype(np.uint8)
        for name, share in (('full', 0), ('partial', rng.choice([0.1, 0.5, 0.95]))):
            (folder / name).mkdir(exist_ok=True)
            cv2.imwrite(str(folder / name / f'{i:02}.png'), np.where(rng.random((32, 32)) < share, 255, labels))
    return folder


def training_config(data: Path, work_dir: Path, batch_size: int, annotations: str = 'full', **changes: Any) -> str:
    """Write a config that trains without randomness but for the initial weights and the order of images.

    Args:
        data: of :func:`write_dataset`.
        work_dir: for ``config.py`` and the run.
        batch_size: of a process.
        annotations: ``'full'`` or ``'partial'``.
        changes: values by dotted key.

    Returns:
        The path of the config.
    """
    cfg = tiny_config(mode='whole')
    dataset = dict(
        type='BaseSegDataset', data_root=str(data), data_prefix=dict(img_path='images', seg_map_path=annotations),
        img_suffix='.png', seg_map_suffix='.png', pipeline=cfg.test_pipeline,
        metainfo=dict(classes=CLASSES, palette=PALETTE),
    )  # fmt: skip
    cfg.model.decode_head.loss_decode = LOSS
    cfg.model.train_cfg = dict()
    cfg.model.data_preprocessor.size = (32, 32)
    cfg.merge_from_dict(
        dict(
            work_dir=str(work_dir),
            randomness=dict(seed=0),
            train_dataloader=dict(
                batch_size=batch_size,
                num_workers=0,
                sampler=dict(type='InfiniteSampler', shuffle=True),
                dataset=dataset,
            ),
            val_dataloader=dict(
                batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=50, val_interval=50),
            val_cfg=dict(type='ValLoop'),
            val_evaluator=[dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='ConfusionMatrix', prefix='own')],
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
            param_scheduler=[dict(type='PolyLR', power=0.9, eta_min=1e-5, begin=0, end=51, by_epoch=False)],
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch=False),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=50),
            ),
            log_processor=dict(by_epoch=False, window_size=10),
        )
    )
    cfg.merge_from_dict(changes)
    for unused in ('test_dataloader', 'tta_model', 'tta_pipeline'):
        cfg.pop(unused)
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / 'config.py'
    cfg.dump(path)
    return str(path)
