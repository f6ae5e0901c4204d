"""Training and evaluation in several processes give the results of one process with the same images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmengine.config.config
import mmengine.runner.runner
import pytest
import torch
from processes import run_processes
from tiny_training import LOSS, training_config, write_dataset

from mmseg_segmenter import engine
from mmseg_segmenter.errors import UserError
from mmseg_segmenter.models.losses import CrossEntropyLoss

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp('data'))


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
    run_processes(train, processes, training_config(data, work_dir, batch_size, **kwargs))
    return weights_of(work_dir, iterations)


def assert_same_weights(one: Weights, other: Weights, atol: float) -> None:
    assert difference(one, other) < atol


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


@pytest.mark.parametrize('processes', [2, pytest.param(4, marks=pytest.mark.slow)])
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


@pytest.mark.parametrize(
    'class_weight',
    [
        pytest.param(None, id='equal classes'),
        pytest.param([0.5, 1.0, 2.0, 1.0, 4.0], id='class weights', marks=pytest.mark.slow),
    ],
)
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
