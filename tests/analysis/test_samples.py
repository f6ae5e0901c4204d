"""The command lines draw sheets and matrices of a tiny generated dataset."""

import re
import runpy
import sys
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import set_random_seed
from mmseg.registry import DATASETS, MODELS
from PIL import Image

from mmseg_segmenter.analysis import samples
from mmseg_segmenter.datasets.shapes import make_shapes

TOOLS = Path(__file__).parents[2] / 'tools' / 'analysis_tools'
CLASSES = ('ground', 'disc', 'striped')
PALETTE = [[90, 90, 90], [230, 25, 75], [255, 225, 25]]
TEXT = """
default_scope = 'mmseg'
custom_imports = dict(imports=['mmseg_segmenter'], allow_failed_imports=False)
work_dir = '{root}/work'
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
def_metainfo = dict(classes=('ground', 'disc', 'striped'), palette=[[90, 90, 90], [230, 25, 75], [255, 225, 25]])
common = dict(type='BaseSegDataset', data_root='{root}/data', img_suffix='.jpg', seg_map_suffix='.png',
              reduce_zero_label=True, metainfo=def_metainfo)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[*load, dict(type='RandomCrop', crop_size=(24, 32)), dict(type='RandomFlip', prob=0.5),
                  dict(type='PhotoMetricDistortion'), dict(type='PackSegInputs')],
        **common))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=[load[0], dict(type='Resize', scale=(80, 64), keep_ratio=True), load[1], dict(type='PackSegInputs')],
        **common))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
env_cfg = dict(cudnn_benchmark=False)
model = dict(
    type='Segmenter',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[127.5, 120, 110], std=[60, 50, 40], bgr_to_rgb=True,
                           size=(32, 32), pad_val=0, seg_pad_val=255),
    backbone=dict(type='SegmenterViT', img_size=32, patch_size=8, embed_dims=16, num_layers=1, num_heads=2,
                  final_norm=True),
    decode_head=dict(type='LinearHead', in_channels=16, num_classes=3),
    test_cfg=dict(mode='whole', size_divisor=8))
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    make_shapes(str(root / 'data'), num_images=15, size=(40, 48), num_classes=3)
    (root / 'tiny.py').write_text(TEXT.format(root=root).replace('def_metainfo', 'class_info'))
    return root / 'tiny.py'


@pytest.fixture(scope='module')
def checkpoint(config):
    path = config.parent / 'model.pth'
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(Config.fromfile(config).model).state_dict(), meta={}), path)
    return path


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a tool in this process; return its exit code or message, and what it printed."""

    def run(tool, *args):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
        try:
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
        except SystemExit as stopped:
            return stopped.code, ''.join(capsys.readouterr())
        return 0, capsys.readouterr().out

    return run


def pictures(path, titles, side, height):
    """Cut the pictures of the first row out of a sheet of one column."""
    sheet = np.asarray(Image.open(path))
    top = 28
    return [sheet[top : top + height, 8 + i * (side + 8) :][:, :side] for i in range(titles)]


def change(config, tmp_path, **options):
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options)
    path = tmp_path / 'changed.py'
    cfg.dump(path)
    return path


# browse_dataset.py


def test_the_models_input(call, config, tmp_path):
    """The sheet shows what the seeded pipeline yields, padded like by the preprocessor."""
    out = tmp_path / 'sheet.png'
    code, output = call('browse_dataset.py', config, '--out', out, '--number', 1, '--side', 32, '--seed', 3)
    assert code == 0 and output == f'wrote {out}\n'
    dataset = DATASETS.build(Config.fromfile(config).train_dataloader.dataset)
    (index,) = samples.choose(dataset, 1, 3)
    set_random_seed(3)
    item = dataset[index]
    image, drawn = pictures(out, 2, 32, 32)
    assert (image[:24] == item['inputs'].permute(1, 2, 0).numpy()[..., ::-1]).all()
    assert (image[24:] == [128, 120, 110]).all()  # 0 after the normalisation
    labels = item['data_samples'].gt_sem_seg.data[0].numpy()
    for k, colour in enumerate(PALETTE):
        grey = cv2.cvtColor(image[:24], cv2.COLOR_RGB2GRAY)[labels == k, None]
        expected = np.round(grey * np.float32(0.4) + np.float32(colour) * np.float32(0.6))
        assert np.abs(drawn[:24][labels == k] - expected).max() <= 1
    hatched = np.concatenate([drawn[:24][labels == 255], drawn[24:].reshape(-1, 3)])
    assert set(map(tuple, hatched.tolist())) == {(150, 150, 150), (215, 215, 215)}


def test_seed(call, config, tmp_path):
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        assert call('browse_dataset.py', config, '--out', tmp_path / name / 'x.png', '--seed', seed)[0] == 0
    a, b, c = ((tmp_path / name / 'x.png').read_bytes() for name in 'abc')
    assert a == b != c


def test_original_and_validation(call, config, tmp_path):
    out = tmp_path / 'sheet.png'
    assert call('browse_dataset.py', config, '--out', out, '--number', 1, '--side', 48, '--original')[0] == 0
    dataset = DATASETS.build(Config.fromfile(config).train_dataloader.dataset)
    name = dataset.get_data_info(samples.choose(dataset, 1, 0)[0])['img_path']
    assert (pictures(out, 3, 48, 48)[0][4:44] == mmcv.imread(name)[..., ::-1]).all()
    # more than there are: all; at the size of the test pipeline, without padding
    assert call('browse_dataset.py', config, '--out', out, '--split', 'val', '--number', 99, '--side', 77)[0] == 0
    assert Image.open(out).size[0] == 3 * (2 * (77 + 8) + 16)


def test_single_channel(call, config, tmp_path):
    options = {
        'model.data_preprocessor.mean': [100],
        'model.data_preprocessor.std': [50],
        'train_dataloader.dataset.pipeline.0.color_type': 'grayscale',
        'train_dataloader.dataset.pipeline.4': dict(type='RandomFlip', prob=0.0),
    }
    out = tmp_path / 'sheet.png'
    args = ['--out', out, '--number', 1, '--side', 32]
    assert call('browse_dataset.py', change(config, tmp_path, **options), *args)[0] == 0
    image = pictures(out, 2, 32, 32)[0]
    assert (np.ptp(image, axis=2) == 0).all() and image[:24].std() > 5 and (image[24:] == 100).all()


def test_other_channels(call, config, tmp_path):
    rng = np.random.default_rng(0)
    for kind in ('images', 'annotations'):
        (tmp_path / kind).mkdir()
    cv2.imwrite(str(tmp_path / 'images' / 'rgba.png'), rng.integers(0, 255, (40, 48, 4), np.uint8))
    cv2.imwrite(str(tmp_path / 'annotations' / 'rgba.png'), np.ones((40, 48), np.uint8))
    options = {
        'train_dataloader.dataset.data_root': str(tmp_path),
        'train_dataloader.dataset.data_prefix': dict(img_path='images', seg_map_path='annotations'),
        'train_dataloader.dataset.img_suffix': '.png',
        'train_dataloader.dataset.pipeline.0.color_type': 'unchanged',
        'train_dataloader.dataset.pipeline.4': dict(type='RandomFlip', prob=0.0),
        'model.data_preprocessor.mean': [100] * 4,
        'model.data_preprocessor.std': [50] * 4,
    }
    path = change(config, tmp_path, **options)
    code, _ = call('browse_dataset.py', path, '--out', tmp_path / 'x.png')
    assert re.search(r'images/rgba\.png: image of shape \(32, 32, 4\); expected 1 or 3 channels', code)
    assert not (tmp_path / 'x.png').exists()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'train_dataloader.dataset.data_root': 'nowhere'}, 'dataset folder nowhere/images/training not found'),
        ({'train_dataloader.dataset.reduce_zero_label': False}, r'\.png: found label 3, expected 0 to 2'),
        ({'train_dataloader': None}, 'has no train_dataloader'),
        ({'train_dataloader.dataset.metainfo': None}, 'no class names; set metainfo=dict'),
        ({'train_dataloader.dataset.data_prefix.seg_map_path': 'images/training'}, 'No such file|found label|readable'),
    ],
)
def test_wrong_dataset(call, config, tmp_path, options, message):
    code, _ = call('browse_dataset.py', change(config, tmp_path, **options), '--out', tmp_path / 'x.png')
    assert isinstance(code, str) and re.search(message, code)
    assert not (tmp_path / 'x.png').exists()


@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        ('images/validation/scene_00004.jpg', b'', 'cannot be loaded'),
        ('images/validation/scene_00004.jpg', b'no image', 'cannot be loaded .*failed to load image'),
        ('annotations/validation/scene_00004.png', b'no image', 'cannot be loaded .*cannot identify image'),
        ('annotations/validation/scene_00004.png', None, 'No such file'),
    ],
)
@pytest.mark.parametrize('tool', ['browse_dataset.py', 'browse_predictions.py', 'confusion_matrix.py'])
def test_damaged_dataset(call, config, label_maps, tmp_path, tool, file, content, message):
    make_shapes(str(tmp_path / 'data'), num_images=5, size=(40, 48), num_classes=3)
    path = tmp_path / 'data' / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    options = {f'{split}_dataloader.dataset.data_root': str(tmp_path / 'data') for split in ('val', 'test')}
    args = ['--split', 'val'] if tool == 'browse_dataset.py' else ['--predictions', label_maps]
    code, _ = call(tool, change(config, tmp_path, **options), *args, '--out', tmp_path / 'x.png')
    assert isinstance(code, str) and str(path) in code and re.search(message, code, re.DOTALL)
    assert not (tmp_path / 'x.png').exists()


def test_annotation_in_colours(call, config, tmp_path):
    make_shapes(str(tmp_path / 'data'), num_images=5, size=(40, 48), num_classes=3)
    for path in (tmp_path / 'data' / 'annotations' / 'training').iterdir():
        Image.open(path).convert('RGB').save(path)
    path = change(config, tmp_path, **{'train_dataloader.dataset.data_root': str(tmp_path / 'data')})
    with pytest.warns(UserWarning, match='Please pay attention your ground truth'):  # mmseg's
        code, _ = call('browse_dataset.py', path, '--out', tmp_path / 'x.png')
    assert re.search(r'jpg: annotation of shape \(24, 32, 3\); expected \(H, W\), one label per pixel', code)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--out', 'x.jpg'], 'out=x.jpg; expected the name of a file that ends in .png'),
        (['--out', 'x.png', '--number', '0'], 'number=0; expected at least 1'),
        (['--out', 'x.png', '--columns', '0'], 'columns=0; expected at least 1'),
        (['--out', 'x.png', '--side', '3'], 'side=3; expected at least 32'),
        (['--out', '/dev/null/x.png'], 'cannot write /dev/null/x.png'),
    ],
)
def test_wrong_arguments(call, config, args, message):
    code, _ = call('browse_dataset.py', config, *args)
    assert code.startswith('browse_dataset.py: ') and message in code


# browse_predictions.py and confusion_matrix.py


@pytest.fixture(scope='module')
def label_maps(config, checkpoint):
    """Write what tools/test.py --out writes, from the model itself."""
    cfg = Config.fromfile(config)
    folder = config.parent / 'labels'
    folder.mkdir()
    predict = samples.checkpoint_predictor(cfg, str(checkpoint))
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    for i in range(len(dataset)):
        labels = predict(dataset[i])
        name = Path(dataset[i]['data_samples'].img_path).stem
        Image.fromarray((labels + 1).astype(np.uint8)).save(folder / f'{name}.png')
    return folder


def test_predictions_of_checkpoint_and_folder_agree(call, config, checkpoint, label_maps, tmp_path):
    for name, source in (('a', [checkpoint]), ('b', ['--predictions', label_maps])):
        code, output = call('browse_predictions.py', config, *source, '--out', tmp_path / f'{name}.png', '--side', 48)
        assert code == 0 and f'wrote {tmp_path}/{name}.png' in output
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()


def test_predictions_are_drawn(call, config, label_maps, tmp_path):
    out = tmp_path / 'x.png'
    args = ['--predictions', label_maps, '--number', 1, '--side', 48, '--split', 'test', '--out', out]
    assert call('browse_predictions.py', config, *args)[0] == 0
    dataset = DATASETS.build(Config.fromfile(config).test_dataloader.dataset)
    item = dataset[samples.choose(dataset, 1, 0)[0]]
    labels = item['data_samples'].gt_sem_seg.data[0].numpy()
    guess = np.asarray(Image.open(label_maps / f'{Path(item["data_samples"].img_path).stem}.png')).astype(int) - 1
    drawn = pictures(out, 4, 48, 40)[3].astype(int)
    wrong, right = (labels != guess) & (labels != 255), labels == guess
    assert wrong.any() and right.any()
    assert (drawn[wrong][:, 0] > drawn[wrong][:, 2]).all() and (drawn[right][:, 0] < drawn[right][:, 2]).all()


def test_confusion_of_checkpoint_and_folder_agree(call, config, checkpoint, label_maps, tmp_path):
    printed = []
    for name, source in (('a', [checkpoint]), ('b', ['--predictions', label_maps])):
        code, output = call('confusion_matrix.py', config, *source, '--out', tmp_path / name / 'm.png', '--sort', 'iou')
        assert code == 0
        printed.append(re.findall(r'^\|.*\|$', output, re.MULTILINE))
    assert printed[0] == printed[1] and len(printed[0]) == 6
    for file in ('m.csv', 'm_classes.csv', 'm_classes.md'):
        assert (tmp_path / 'a' / file).read_bytes() == (tmp_path / 'b' / file).read_bytes()
    assert '\n'.join(printed[0]) + '\n' == (tmp_path / 'a' / 'm_classes.md').read_text()


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda path: path.unlink(), 'no prediction for .*images/validation/scene_00004.jpg'),
        (lambda path: path.write_bytes(b'no image'), 'scene_00004.png .*is not a readable image'),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), 'scene_00004.png .*is incomplete'),
        (lambda path: Image.new('L', (48, 40), 0).save(path), r'png: found label 0, expected 1 to 3 \(num_classes=3\)'),
        (lambda path: Image.new('L', (48, 40), 9).save(path), r'png: found label 9, expected 1 to 3'),
        (lambda path: Image.new('RGB', (48, 40)).save(path), r'shape \(40, 48, 3\); expected a label map'),
        (lambda path: Image.new('L', (40, 48), 1).save(path), r'scene_00004.jpg: .*48.*40'),
    ],
)
@pytest.mark.parametrize('tool', ['confusion_matrix.py', 'browse_predictions.py'])
def test_damaged_predictions(call, config, label_maps, tmp_path, tool, damage, message):
    folder = tmp_path / 'labels'
    folder.mkdir()
    for file in label_maps.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder / 'scene_00004.png')
    code, _ = call(tool, config, '--predictions', folder, '--out', tmp_path / 'x.png')
    assert isinstance(code, str) and re.search(message, code)
    assert [p.name for p in tmp_path.iterdir()] == ['labels']


def test_confusion_fails_before_the_test_and_in_one_line(call, config, checkpoint, tmp_path):
    tool, out = 'confusion_matrix.py', ['--out', tmp_path / 'x.png', '--work-dir', tmp_path / 'w']
    assert 'cannot write /dev/null/x.png: ' in call(tool, config, checkpoint, '--out', '/dev/null/x.png')[0]
    assert 'has no test_dataloader' in call(tool, config, checkpoint, *out, '--cfg-options', 'test_dataloader=None')[0]
    assert not list(tmp_path.iterdir())
    (tmp_path / 'junk.pth').write_bytes(b'junk')
    code, _ = call(tool, config, tmp_path / 'junk.pth', *out)
    assert 'junk.pth (4 bytes) is not a readable checkpoint' in code


@pytest.mark.parametrize('tool', ['confusion_matrix.py', 'browse_predictions.py'])
def test_checkpoint_of_another_model(call, config, checkpoint, tool, tmp_path):
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    for name, change in {
        'missing.pth': lambda key, value: {} if key == 'decode_head.conv_seg.weight' else {key: value},
        'shape.pth': lambda key, value: {key: value[:, :2] if key == 'decode_head.conv_seg.weight' else value},
    }.items():
        changed = {k: v for key, value in state.items() for k, v in change(key, value).items()}
        torch.save(dict(state_dict=changed, meta={}), tmp_path / name)
        work_dir = ['--work-dir', tmp_path / 'w'] if tool == 'confusion_matrix.py' else []
        code, _ = call(tool, config, tmp_path / name, '--out', tmp_path / 'x.png', *work_dir)
        assert f'{name} is not a checkpoint of this model: 1 tensors are missing or of another shape' in code
        assert 'decode_head.conv_seg.weight' in code and not (tmp_path / 'x.png').exists()


@pytest.mark.parametrize('tool', ['confusion_matrix.py', 'browse_predictions.py'])
def test_missing_files(call, config, tool, tmp_path):
    out = ['--out', tmp_path / 'x.png']
    assert 'checkpoint no.pth not found' in call(tool, config, 'no.pth', *out)[0]
    assert 'folder no of predictions not found' in call(tool, config, '--predictions', 'no', *out)[0]
    assert 'config no.py not found' in call(tool, 'no.py', 'no.pth', *out)[0]
    assert 'give either a checkpoint or --predictions' in call(tool, config, *out)[1]
    assert 'expected the name of a file' in call(tool, config, '--predictions', tmp_path, '--out', 'x.pdf')[0]


def test_annotation_of_another_size_than_the_prediction(call, config, checkpoint, tmp_path):
    """The usual mistake in a test pipeline."""
    dataset = Config.fromfile(config).val_dataloader.dataset
    swapped = [dataset.pipeline[i] for i in (0, 2, 1, 3)]
    path = change(config, tmp_path, **{'val_dataloader.dataset.pipeline': swapped})
    code, _ = call('browse_predictions.py', path, checkpoint, '--out', tmp_path / 'x.png')
    assert 'prediction of 40x48 pixels, annotation of 64x77; in a test pipeline LoadAnnotations' in code
