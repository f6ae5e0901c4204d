"""Training and evaluation in several processes give the results of one process with the same images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import mmengine.config.config
import mmengine.runner.runner
import numpy as np
import pytest
import torch
from processes import run_processes
from tiny_run import CLASSES, PALETTE, tiny_config, write_image

from mmseg_segmenter import engine
from mmseg_segmenter.errors import UserError
from mmseg_segmenter.models.losses import CrossEntropyLoss

LOSS = dict(type='CrossEntropyLoss', avg_non_ignore=True)
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 13 images with two sets of annotations: all pixels have labels, or few in some images."""
    folder = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    for i in range(13):
        write_image(folder / 'images' / f'{i:02}.png', (32, 32), i)
        labels = np.kron(rng.integers(0, 5, (4, 4)), np.ones((8, 8))).astype(np.uint8)
        for name, share in (('full', 0), ('partial', rng.choice([0.1, 0.5, 0.95]))):
            (folder / name).mkdir(exist_ok=True)
            cv2.imwrite(str(folder / name / f'{i:02}.png'), np.where(rng.random((32, 32)) < share, 255, labels))
    return folder


def config(data: Path, work_dir: Path, batch_size: int, annotations: str = 'full', **changes: Any) -> str:
    """Write a config that trains without randomness but for the initial weights and the order of images."""
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


def train(path: str, launcher: str = 'pytorch') -> None:
    torch.set_default_dtype(torch.float64)  # a training enlarges rounding errors a thousand times
    # Asking compilers for their versions and formatting the config for the log would take seconds in each run.
    mmengine.runner.runner.collect_env = dict
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)
    engine.run(engine.load_config(path, launcher=launcher), 'train')


def weights_of(work_dir: Path, iterations: int = 50) -> Weights:
    state: Weights = torch.load(work_dir / f'iter_{iterations}.pth', weights_only=True)['state_dict']
    return state


def log_of(work_dir: Path) -> list[dict[str, float]]:
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def trained(processes: int, data: Path, work_dir: Path, batch_size: int, **kwargs: Any) -> Weights:
    """Train and return the weights."""
    iterations = kwargs.get('train_cfg.max_iters', 50)
    run_processes(train, processes, config(data, work_dir, batch_size, **kwargs))
    return weights_of(work_dir, iterations)


def difference(one: Weights, other: Weights) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def assert_same_log(
    work_dir: Path, wanted: Path, names: Sequence[str] = ('loss', 'decode.loss_ce', 'decode.acc_seg')
) -> None:
    # mmengine also logs the last batch of each pass over the data, at iterations that depend on the batch size.
    one, other = (
        {row['iter']: row for row in log_of(path) if row.get('iter', 1) % 10 == 0} for path in (wanted, work_dir)
    )
    assert one.keys() == other.keys() == {10, 20, 30, 40, 50}
    for i, row in one.items():
        for name in names:
            assert other[i][name] == pytest.approx(row[name], rel=1e-5), (i, name)


@pytest.fixture(scope='module')
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the work dir of a training in one process with batches of four fully labelled images."""
    work_dir = tmp_path_factory.mktemp('whole') / 'whole'
    trained(1, data, work_dir, 4)
    return work_dir


@pytest.mark.parametrize('processes', [2, 4])
def test_fully_labelled_images(processes: int, data: Path, whole: Path, tmp_path: Path) -> None:
    """Weights, logged losses and scores are those of one process."""
    weights = trained(processes, data, tmp_path / 'several', 4 // processes)
    assert difference(weights, weights_of(whole)) < 1e-6
    assert_same_log(tmp_path / 'several', whole)
    wanted, found = (log_of(work_dir)[-1] for work_dir in (whole, tmp_path / 'several'))
    assert {n: found[n] for n in ('mIoU', 'aAcc', 'own/mIoU')} == {n: wanted[n] for n in ('mIoU', 'aAcc', 'own/mIoU')}


@pytest.mark.parametrize(
    ('processes', 'batch_size', 'accumulated'), [(1, 2, 2), (2, 1, 2)], ids=['one process', 'two processes']
)
def test_accumulation_of_fully_labelled_images(
    processes: int, batch_size: int, accumulated: int, data: Path, tmp_path: Path
) -> None:
    constant = {'param_scheduler': []}
    wanted = trained(1, data, tmp_path / 'whole', 4, **constant)
    changes = {
        'optim_wrapper.accumulative_counts': accumulated,
        'train_cfg.max_iters': 50 * accumulated,
        'default_hooks.checkpoint.interval': 50 * accumulated,
    }
    weights = trained(processes, data, tmp_path / 'parts', batch_size, **constant, **changes)
    assert difference(weights, wanted) < 1e-6


@pytest.mark.parametrize('class_weight', [None, [0.5, 1.0, 2.0, 1.0, 4.0]], ids=['equal classes', 'class weights'])
def test_ignored_pixels(class_weight: list[float] | None, data: Path, tmp_path: Path) -> None:
    """The mean over all labelled pixels equals one process, also with accumulation; the published mean does not."""
    options: dict[str, Any] = {
        'annotations': 'partial', 'param_scheduler': [], 'model.decode_head.loss_decode.class_weight': class_weight,
    }  # fmt: skip
    wanted = trained(1, data, tmp_path / 'whole', 4, **options)
    published = trained(2, data, tmp_path / 'published', 2, **options)
    assert difference(published, wanted) > 1e-3
    options['model.decode_head.loss_decode.avg_over'] = 'all'
    weights = trained(2, data, tmp_path / 'two', 2, **options)
    assert difference(weights, wanted) < 1e-6
    assert_same_log(tmp_path / 'two', tmp_path / 'whole', ['loss', 'decode.loss_ce'])


def test_ignored_pixels_of_accumulated_batches(data: Path, tmp_path: Path) -> None:
    """The mean is over the batches of an update, also if the last update has fewer; no batch is lost."""
    options: dict[str, Any] = {
        'annotations': 'partial', 'param_scheduler': [], 'model.decode_head.loss_decode.avg_over': 'all',
    }  # fmt: skip
    found = []
    for processes, batch_size, accumulated, iterations in ((2, 1, 4, 14), (1, 4, 2, 7)):  # 8, 8, 8 and 4 images
        options |= {
            'optim_wrapper.accumulative_counts': accumulated,
            'train_cfg.max_iters': iterations,
            'default_hooks.checkpoint.interval': iterations,
        }
        found.append(trained(processes, data, tmp_path / f'{processes}', batch_size, **options))
    assert difference(*found) < 1e-6


def test_other_decode_heads(data: Path, tmp_path: Path) -> None:
    """The mean over all labelled pixels applies in mmseg's heads, beside other losses and with hard pixels only."""
    loss = [dict(LOSS, avg_over='all'), dict(type='DiceLoss', loss_weight=0.0)]
    head = dict(
        type='FCNHead', in_channels=16, in_index=0, channels=8, num_convs=1, num_classes=5, dropout_ratio=0.0,
        loss_decode=dict(LOSS, avg_over='all', loss_weight=0.4),
    )  # fmt: skip
    options: dict[str, Any] = {
        'annotations': 'partial', 'model.auxiliary_head': head, 'model.decode_head.loss_decode': loss,
        'train_cfg.max_iters': 10, 'default_hooks.checkpoint.interval': 10,
    }  # fmt: skip
    wanted = trained(1, data, tmp_path / 'whole', 4, **options)
    assert difference(trained(2, data, tmp_path / 'two', 2, **options), wanted) < 1e-6


def test_a_loss_that_cannot_be_averaged_over_all() -> None:
    for arguments in (dict(), dict(avg_non_ignore=True, use_sigmoid=True), dict(avg_non_ignore=True, reduction='sum')):
        with pytest.raises(UserError, match="avg_over='all' needs avg_non_ignore=True"):
            CrossEntropyLoss(avg_over='all', **arguments)
    with pytest.raises(UserError, match="avg_over='rank', expected 'process' or 'all'"):
        CrossEntropyLoss(avg_over='rank')  # type: ignore[arg-type]
    loss = CrossEntropyLoss(avg_over='all', avg_non_ignore=True)
    with pytest.raises(UserError, match=r"custom_hooks = \[dict\(type='LabelledPixelsHook'\)\]"):
        loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
