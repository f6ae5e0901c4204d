"""Pictures of validations and tests, compared by their content."""

import itertools
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmengine.visualization import Visualizer
from PIL import Image

from mmseg_segmenter import SegmenterVisualizationHook
from mmseg_segmenter.errors import UserError
from mmseg_segmenter.visualization import sheet
from mmseg_segmenter.visualization.hook import picture_names, spread

CLASSES = ('sky', 'road', 'tree', 'car')
PALETTE = [[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 0, 250]]
SIZE = (40, 60)
PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]


class Upside(BaseModel):
    """Predict the annotation upside down, at the size of the original image, and class 2 where it is ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Any, data_samples: Any, mode: str = 'tensor') -> Any:
        if mode == 'loss':
            return dict(loss=self.weight.sum())
        for sample in data_samples:
            labels = np.full(sample.ori_shape, 1, np.uint8)
            if 'gt_sem_seg' in sample:
                labels = sheet.resize_labels(sample.gt_sem_seg.data[0].numpy(), sample.ori_shape)[::-1].copy()
            labels[labels == 255] = 2
            sample.pred_sem_seg = PixelData(data=torch.from_numpy(labels)[None])
        return data_samples


def write_sample(root: Path, name: str, labels: tuple[int, ...] = (0, 1, 255), dtype: type = np.uint8) -> None:
    """Write an image, and an annotation with a stripe for each label."""
    image, annotation = root / 'images' / f'{name}.png', root / 'labels' / f'{name}.png'
    for path in (image, annotation):
        path.parent.mkdir(parents=True, exist_ok=True)
    high = 60000 if dtype is np.uint16 else 250
    pixels = np.random.default_rng(len(name)).integers(0, high, (*SIZE, 3), dtype)
    cv2.imwrite(str(image), pixels)
    stripes = np.array(labels, np.uint8)[np.arange(SIZE[0]) * len(labels) // SIZE[0]]
    cv2.imwrite(str(annotation), np.repeat(stripes[:, None], SIZE[1], axis=1))


def loader(root: Path, batch_size: int = 1, pipeline: Any = None, **dataset: Any) -> dict[str, Any]:
    return dict(
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='BaseSegDataset',
            data_root=str(root),
            data_prefix=dict(img_path='images', seg_map_path='labels'),
            img_suffix='.png',
            metainfo=dict(classes=CLASSES, palette=PALETTE),
            pipeline=pipeline or PIPELINE,
        )
        | dataset,
    )


COUNT = itertools.count()


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Return a function that builds a runner with the hook."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)

    def make(split: str, data: dict[str, Any], backends: Any = None, visualizer: Any = None, **hook: Any) -> Runner:
        name = f'{tmp_path.name}-{next(COUNT)}'  # mmengine keeps visualizers and loggers by name
        cfg = Config(
            {
                'default_scope': 'mmseg',
                'work_dir': str(tmp_path / 'work'),
                'experiment_name': name,
                'default_hooks': dict(visualization=dict(type='SegmenterVisualizationHook', **hook)),
                'visualizer': dict(
                    type='SegLocalVisualizer',
                    name=name,
                    vis_backends=backends or [dict(type='LocalVisBackend')],
                    **(visualizer or {}),
                ),
                f'{split}_dataloader': data,
                f'{split}_evaluator': dict(type='IoUMetric'),
                f'{split}_cfg': dict(type=f'{split.title()}Loop'),
                # Whoever asks for the iteration builds these data, which do not exist.
                'train_dataloader': loader(tmp_path / 'nowhere'),
                'train_cfg': dict(type='IterBasedTrainLoop', max_iters=1),
                'optim_wrapper': dict(optimizer=dict(type='SGD', lr=0.0)),
            }
        )
        return Runner(model=Upside(), cfg=cfg, **cfg)

    return make


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def panel(drawn: np.ndarray, number: int) -> np.ndarray:
    """Return one of the pictures in a sheet."""
    left = sheet.GAP + number * (SIZE[1] + sheet.GAP)
    return drawn[sheet.LINE : sheet.LINE + SIZE[0], left : left + SIZE[1]]


def in_legend(drawn: np.ndarray) -> list[bool]:
    """Return which classes, and whether ignored pixels, are in the legend."""
    legend = drawn[sheet.LINE + SIZE[0] + sheet.LINE :]
    return [bool((legend == colour).all(axis=2).any()) for colour in [*PALETTE, [150] * 3]]


def test_pictures_of_a_test(build, tmp_path):
    """They are named like the images, also those of one name in several folders, and need no training data."""
    root, out = tmp_path / 'data', tmp_path / 'pictures'
    for name, labels in (('a/x', (0, 1, 255)), ('b/x', (3, 1)), ('y', (1,))):
        write_sample(root, name, labels)
    build('test', loader(root, batch_size=2), show_dir=str(out)).test()
    assert sorted(str(p.relative_to(out)) for p in out.rglob('*') if p.is_file()) == ['a/x.png', 'b/x.png', 'y.png']
    for name, present in (('a/x', [1, 1, 1, 0, 1]), ('b/x', [0, 1, 0, 1, 0]), ('y', [0, 1, 0, 0, 0])):
        drawn, image = read(out / f'{name}.png'), read(root / 'images' / f'{name}.png')
        annotation = read(root / 'labels' / f'{name}.png')
        prediction = np.where(annotation[::-1] == 255, 2, annotation[::-1])
        assert in_legend(drawn) == [bool(k) for k in present], name
        assert (panel(drawn, 0) == image).all()
        assert (panel(drawn, 1) == sheet.overlay(image, annotation, PALETTE)).all()
        assert (panel(drawn, 2) == sheet.overlay(image, prediction, PALETTE)).all()
    hatched = panel(read(out / 'a/x.png'), 1)[-10:].reshape(-1, 3)
    assert {tuple(pixel) for pixel in hatched.tolist()} == {(150, 150, 150), (215, 215, 215)}


def test_pictures_as_jpeg(build, tmp_path):
    write_sample(tmp_path, 'x')
    build('test', loader(tmp_path), show_dir=str(tmp_path / 'out'), suffix='.jpg').test()
    with Image.open(tmp_path / 'out' / 'x.jpg') as image:
        assert image.format == 'JPEG'


def test_annotation_at_another_size(build, tmp_path):
    write_sample(tmp_path, 'x', (0, 3))
    pipeline = [PIPELINE[0], PIPELINE[1], dict(type='Resize', scale=(30, 20)), PIPELINE[2]]
    runner = build('test', loader(tmp_path, pipeline=pipeline), show_dir=str(tmp_path / 'out'))
    runner.test_loop.evaluator.metrics.clear()  # IoUMetric does not support it
    runner.test()
    drawn, image = read(tmp_path / 'out' / 'x.png'), read(tmp_path / 'images' / 'x.png')
    assert (panel(drawn, 0) == image).all()  # at its original size
    assert (panel(drawn, 1) == sheet.overlay(image, read(tmp_path / 'labels' / 'x.png'), PALETTE)).all()


def test_images_without_annotation(build, tmp_path):
    write_sample(tmp_path, 'x')
    pipeline = [PIPELINE[0], PIPELINE[2]]
    runner = build('test', loader(tmp_path, pipeline=pipeline), show_dir=str(tmp_path / 'out'))
    runner.test_loop.evaluator.metrics.clear()  # there is nothing to score
    runner.test()
    drawn, image = read(tmp_path / 'out' / 'x.png'), read(tmp_path / 'images' / 'x.png')
    assert in_legend(drawn) == [False, True, False, False, False]
    assert (panel(drawn, 1) == sheet.overlay(image, np.ones(SIZE, int), PALETTE)).all()


def test_labels_outside_the_classes_are_hatched(build, tmp_path):
    write_sample(tmp_path, 'x', (0, 9))
    runner = build('test', loader(tmp_path), show_dir=str(tmp_path / 'out'))
    runner.model.forward = lambda inputs, data_samples, mode: [
        sample.set_data(dict(pred_sem_seg=PixelData(data=torch.zeros(1, *SIZE, dtype=torch.int64)))) or sample
        for sample in data_samples
    ]
    runner.test()
    drawn = read(tmp_path / 'out' / 'x.png')
    assert in_legend(drawn) == [True, False, False, False, True]
    assert set(np.unique(panel(drawn, 1)[20:])) == {150, 215}


def test_images_are_read_as_the_pipeline_reads_them(build, tmp_path):
    """This one has 16 bits, which mmcv's default loader would cut to 8."""
    write_sample(tmp_path, 'x', dtype=np.uint16)
    pipeline = [dict(type='LoadImageFromFile', color_type='unchanged'), *PIPELINE[1:]]
    build('test', loader(tmp_path, pipeline=pipeline), show_dir=str(tmp_path / 'out')).test()
    wanted = sheet.to_rgb(cv2.imread(str(tmp_path / 'images' / 'x.png'), cv2.IMREAD_UNCHANGED))
    assert (panel(read(tmp_path / 'out' / 'x.png'), 0) == wanted).all()


def test_a_picture_that_cannot_be_written_is_an_error_after_the_test(build, tmp_path):
    for name in ('a/x', 'b/x', 'y'):
        write_sample(tmp_path, name)
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'a').touch()
    runner = build('test', loader(tmp_path), show_dir=str(out))
    message = r'^1 of 3 pictures were not drawn, the first of .*/images/a/x\.png: cannot write .*/out/a/x\.png: '
    with pytest.raises(UserError, match=message):
        runner.test()
    assert (out / 'b' / 'x.png').exists() and (out / 'y.png').exists()


def test_draw_true_is_that_of_mmsegs_own_tools(build, tmp_path):
    write_sample(tmp_path, 'x')
    build('test', loader(tmp_path), draw=True, visualizer=dict(save_dir=str(tmp_path / 'out'))).test()
    assert in_legend(read(tmp_path / 'out' / 'x.png')) == [True, True, True, False, True]


@pytest.mark.parametrize('hook', [dict(), dict(draw=False, show_dir='out', show=True)])
def test_no_pictures(build, tmp_path, monkeypatch, hook):
    monkeypatch.chdir(tmp_path)
    write_sample(tmp_path, 'x')
    build('test', loader(tmp_path), **hook).test()
    assert not (tmp_path / 'out').exists() and not list((tmp_path / 'work').rglob('*.png'))


def test_window(build, tmp_path, monkeypatch):
    """The backends keep their scalars, which mmseg's hook drops when it opens windows."""
    write_sample(tmp_path, 'a/x')
    shown = []
    monkeypatch.setattr(Visualizer, 'show', lambda self, picture, **options: shown.append((picture, options)))
    runner = build('test', loader(tmp_path), show=True, wait_time=3)
    runner.test()
    ((picture, options),) = shown
    assert options == dict(win_name='a/x', wait_time=3) and in_legend(picture) == [True, True, True, False, True]
    assert list(runner.visualizer._vis_backends) == ['LocalVisBackend'] and not list(tmp_path.rglob('out'))


def drawn_in_validation(runner: Runner) -> list[str]:
    return sorted(path.name for path in (Path(runner.log_dir) / 'vis_data').glob('vis_image/*'))


def test_pictures_of_a_validation(build, tmp_path):
    """The same ones each time, in TensorBoard too."""
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for i in range(10):
        write_sample(tmp_path, f'{i % 2}/{i}', (i % 4, 255))
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    runner = build('val', loader(tmp_path, batch_size=3), backends, number=3)
    runner.val()
    first = drawn_in_validation(runner)
    assert first == ['val_0_2_0.png', 'val_1_1_0.png', 'val_1_7_0.png']
    runner.val()
    assert drawn_in_validation(runner) == first
    for backend in runner.visualizer._vis_backends.values():
        backend.close()
    events = EventAccumulator(str(Path(runner.log_dir) / 'vis_data')).Reload()
    for name in ('val_0_2', 'val_1_1', 'val_1_7'):
        drawn = read(Path(runner.log_dir) / 'vis_data' / 'vis_image' / f'{name}_0.png')
        assert (decode(events.Images(name)[0]) == drawn).all() and events.Images(name)[0].step == 0
        assert in_legend(drawn) == [k in (int(name[-1]) % 4, 2) for k in range(4)] + [True]


def decode(event: Any) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_interval_and_size_of_a_validation(build, tmp_path):
    for i in range(3):
        write_sample(tmp_path, str(i))
    runner = build('val', loader(tmp_path), number=1, interval=2, side=32)
    runner.val()
    assert drawn_in_validation(runner) == []
    runner.val()
    (name,) = drawn_in_validation(runner)
    drawn = read(Path(runner.log_dir) / 'vis_data' / 'vis_image' / name)
    assert name == 'val_1_0.png' and drawn.shape[0] == 2 * sheet.LINE + 21 + 30 + 22  # of 40x60, and 2 lines of legend


def test_a_picture_is_not_worth_a_training(build, tmp_path):
    """A validation goes on if an image disappears after the loader has read it."""
    for i in range(2):
        write_sample(tmp_path, str(i))
    runner = build('val', loader(tmp_path))
    predict = runner.model.forward

    def forward(inputs: Any, data_samples: Any, mode: str) -> Any:
        (tmp_path / 'images' / '0.png').unlink(missing_ok=True)
        return predict(inputs, data_samples, mode)

    runner.model.forward = forward
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    runner.logger.addHandler(handler)
    runner.val()
    assert drawn_in_validation(runner) == ['val_1_0.png']
    messages = [record.getMessage() for record in records if record.levelno == logging.WARNING]
    assert [m for m in messages if 'images/0.png was not drawn: FileNotFoundError' in m]


def test_other_processes_draw_their_tests_but_no_validation(build, tmp_path, monkeypatch):
    monkeypatch.setattr('mmseg_segmenter.visualization.hook.is_main_process', lambda: False)
    write_sample(tmp_path, 'x')
    runner = build('val', loader(tmp_path))
    runner.val()
    assert drawn_in_validation(runner) == []
    build('test', loader(tmp_path), show_dir=str(tmp_path / 'out')).test()
    assert (tmp_path / 'out' / 'x.png').exists()


def test_concatenated_datasets(build, tmp_path):
    for name in 'ab':
        write_sample(tmp_path / name, 'x')
    parts = [loader(tmp_path / name)['dataset'] for name in 'ab']
    data = loader(tmp_path) | dict(dataset=dict(type='ConcatDataset', datasets=parts))
    build('test', data, show_dir=str(tmp_path / 'out')).test()
    out = sorted(str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out').rglob('*.png'))
    assert out == ['a/images/x.png', 'b/images/x.png']


def test_names():
    def names(*paths, roots=('data/img',)):
        return list(picture_names(paths, set(roots)).values())

    assert names('data/img/a/x.jpg', 'data/img/x.jpg') == ['a/x', 'x']
    assert names('data/img/x.jpg', 'data/img/X.png', 'data/img/y.png') == ['x.jpg', 'X.png', 'y']
    assert names('s3://b/img/x.jpg', roots=['s3://b/img/']) == ['x']
    assert names('s3://b/img/x.jpg', 's3://b/img2/x.jpg', roots=['s3://b/img', 's3://b/img2']) == ['img/x', 'img2/x']
    one, other = names('data/img/x.jpg', 'data/img/X.jpg')  # they are one file where case does not matter
    assert one.startswith('x.jpg-') and other.startswith('X.jpg-') and one.casefold() != other.casefold()
    assert names('/other/x.jpg', '../x.jpg') == ['other/x', 'x']  # not below the root, and yet below the folder


def test_spread():
    assert spread(4, 100) == [12, 37, 62, 87] and spread(5, 3) == [0, 1, 2] and spread(0, 9) == spread(3, 0) == []


@pytest.mark.parametrize('setting', [dict(number=-1), dict(interval=0), dict(side=3), dict(suffix='.gif')])
def test_settings_out_of_range(setting):
    with pytest.raises(UserError, match=f'^SegmenterVisualizationHook: {next(iter(setting))}='):
        SegmenterVisualizationHook(**setting)
