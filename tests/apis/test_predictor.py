"""A Predictor gives the labels of tools/test.py, and scores that fit them."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS
from PIL import Image
from tiny_run import CLASSES, PALETTE, save_run, tiny_config, write_image

from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.errors import MissingFileError, UserError

RESIZE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 48), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
FCN = dict(
    _delete_=True,
    type='FCNHead',
    in_channels=16,
    channels=8,
    num_convs=1,
    concat_input=False,
    num_classes=5,
    norm_cfg=dict(type='BN'),
)


def expected(folder, files, tta=False, **changes):
    """Results of ``test_step``, which tools/test.py evaluates, on images without annotations."""
    cfg = Config.fromfile(folder / 'config.py')
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    model = MODELS.build(cfg.model)
    load_checkpoint(model, str(folder / 'model.pth'), map_location='cpu', logger='silent')
    pipeline = cfg.tta_pipeline if tta else cfg.test_dataloader.dataset.pipeline
    text = [one for one in pipeline if one['type'] != 'LoadAnnotations']
    if tta:
        text[-1]['transforms'] = [one for one in text[-1]['transforms'] if one[0]['type'] != 'LoadAnnotations']
        model = MODELS.build({**cfg.tta_model, 'module': model})
    model.eval()
    transforms = Compose(text)
    with torch.no_grad():
        return [model.test_step(pseudo_collate([transforms(dict(img_path=str(file)))]))[0] for file in files]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Images of three sizes."""
    folder = tmp_path_factory.mktemp('images')
    sizes = [(40, 56), (40, 56), (64, 32), (40, 56), (33, 71)]
    return [write_image(folder / f'{i}.png', size, i) for i, size in enumerate(sizes)]


def labels(result):
    return result.pred_sem_seg.data[0].numpy().astype(int)


CONFIGS = {
    'slide': {},
    'whole': dict(mode='whole'),
    'resize': dict(test_dataloader__dataset__pipeline=RESIZE, test_pipeline=RESIZE),
    'padding': dict(model__test_cfg__size_divisor=8, model__test_cfg__upscale_small=True),
    'encoder-decoder': dict(model__type='EncoderDecoder'),
    'fcn': dict(model__decode_head=FCN),
}


@pytest.mark.parametrize('kind', CONFIGS)
def test_labels_are_those_of_a_test(make_run, files, kind):
    folder = make_run(**CONFIGS[kind])
    found = list(Predictor(folder, device='cpu')(map(str, files)))
    wanted = expected(folder, files)
    assert len(set(np.concatenate([one.labels.ravel() for one in found]))) > 2  # the comparison means something
    for prediction, result in zip(found, wanted, strict=True):
        assert prediction.labels.dtype == np.uint8
        assert np.array_equal(prediction.labels, labels(result))


@pytest.mark.parametrize('kind', ['slide', 'encoder-decoder'])
def test_labels_with_augmentations(make_run, files, kind):
    folder = make_run(**CONFIGS[kind])
    found = list(Predictor(folder, device='cpu', tta=True)(files[:3]))
    plain = list(Predictor(folder, device='cpu')(files[:3]))
    for prediction, result in zip(found, expected(folder, files[:3], tta=True), strict=True):
        # mmseg averages in another order
        assert np.mean(prediction.labels == labels(result)) > (0.999 if kind == 'encoder-decoder' else 1 - 1e-9)
    assert any(not np.array_equal(a.labels, b.labels) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize('kind', ['slide', 'whole', 'resize', 'fcn'])
def test_scores_are_the_softmax_of_the_logits(make_run, files, kind):
    folder = make_run(**CONFIGS[kind])
    (result,) = expected(folder, files[:1], model__test_cfg__return_logits=True)
    softmax = result.seg_logits.data.softmax(0)
    prediction = Predictor(folder, device='cpu').predict(files[0])
    assert prediction.probabilities.dtype == prediction.confidence.dtype == np.float16
    assert np.abs(prediction.probabilities - softmax.numpy()).max() < 1e-3
    assert np.abs(prediction.confidence - softmax.amax(0).numpy()).max() < 1e-3
    assert np.array_equal(prediction.labels, softmax.argmax(0).numpy())


@pytest.mark.parametrize('kind', ['Segmenter', 'EncoderDecoder'])
@pytest.mark.parametrize('num_classes', [1, 2])
def test_one_class_with_a_sigmoid(make_run, files, kind, num_classes):
    """mmseg's heads with one output: a pixel is foreground if its probability is above the threshold."""
    head = {**FCN, 'num_classes': num_classes, 'out_channels': 1, 'threshold': 0.45}
    head['loss_decode'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
    folder = make_run(meta=dict(classes=CLASSES[:2], palette=PALETTE[:2]), model__decode_head=head, model__type=kind)
    predictor = Predictor(folder, device='cpu')
    (result,) = expected(folder, files[:1], model__test_cfg__return_logits=True)
    prediction = predictor.predict(files[0])
    assert set(np.unique(prediction.labels)) == {0, 1}
    assert np.array_equal(prediction.labels, labels(result))
    foreground = result.seg_logits.data[0].numpy()
    assert prediction.probabilities.shape == (2, 40, 56)
    assert np.abs(prediction.probabilities[1] - foreground).max() < 1e-3
    assert np.abs(prediction.confidence - np.maximum(foreground, 1 - foreground)).max() < 1e-3


def test_cascade(make_run, files):
    """mmseg's CascadeEncoderDecoder, with two heads. With one class, mmseg itself fails."""
    fcn = {key: value for key, value in FCN.items() if key != '_delete_'}
    ocr = {key: value for key, value in fcn.items() if key not in ('num_convs', 'concat_input')}
    heads = [fcn, {**ocr, 'type': 'OCRHead', 'ocr_channels': 8}]
    folder = make_run(model__type='CascadeEncoderDecoder', model__num_stages=2, model__decode_head=heads)
    predictor = Predictor(folder, device='cpu')
    for prediction, result in zip(predictor(files), expected(folder, files), strict=True):
        assert len(np.unique(prediction.labels)) > 1
        assert np.array_equal(prediction.labels, labels(result))
        assert np.abs(prediction.probabilities - result.seg_logits.data.softmax(0).numpy()).max() < 1e-3


def test_partial_checkpoint_of_mmsegs_own_class(make_run):
    head = {key: value for key, value in FCN.items() if key != '_delete_'}
    changes = dict(model__type='CascadeEncoderDecoder', model__num_stages=1, model__decode_head=[head])
    folder = make_run(**changes)
    (path,) = folder.glob('*.pth')
    content = torch.load(path, weights_only=True)
    del content['state_dict']['backbone.cls_token']
    torch.save(content, path)
    with pytest.raises(UserError, match=r'1 tensors are missing or of another shape, the first backbone\.cls_token'):
        Predictor(folder, device='cpu')
    assert Predictor(folder, device='cpu', allow_partial=True).model


@pytest.mark.parametrize('batch_size', [2, 3, 8])
@pytest.mark.parametrize('kind', ['slide', 'resize', 'encoder-decoder'])
def test_batches_change_nothing(make_run, files, batch_size, kind):
    predictor = Predictor(make_run(**CONFIGS[kind]), device='cpu')
    one_by_one = list(predictor(files))
    found = list(predictor(iter(files), batch_size=batch_size))
    assert [p.source for p in found] == [str(file) for file in files]
    assert [p.index for p in found] == list(range(len(files)))
    for a, b in zip(found, one_by_one, strict=True):
        assert np.array_equal(a.labels, b.labels)
        assert np.abs(a.probabilities - b.probabilities).max() < 1e-3


def test_batches_with_augmentations(run_folder, files):
    predictor = Predictor(run_folder, device='cpu', tta=True)
    for a, b in zip(predictor(files, batch_size=3), predictor(files), strict=True):
        assert np.array_equal(a.labels, b.labels)


def test_images_in_memory(run_folder, files):
    """BGR and RGB arrays, PIL images and files give the same labels."""
    predictor = Predictor(run_folder, device='cpu')
    image = Image.open(files[0])
    rgb = np.asarray(image)
    wanted = predictor.predict(files[0]).labels
    assert np.array_equal(predictor.predict(rgb, channel_order='rgb').labels, wanted)
    assert np.array_equal(predictor.predict(rgb[..., ::-1]).labels, wanted)
    assert np.array_equal(predictor.predict(image).labels, wanted)
    assert not np.array_equal(predictor.predict(rgb).labels, wanted)
    (one,) = predictor(rgb[..., ::-1])
    assert np.array_equal(one.labels, wanted)


def test_no_images(run_folder):
    assert list(Predictor(run_folder, device='cpu')([])) == []


@pytest.mark.parametrize('size', [(1, 1), (3, 500), (500, 3)])
def test_extreme_sizes(run_folder, tmp_path, size):
    path = write_image(tmp_path / 'a.png', size)
    assert Predictor(run_folder, device='cpu').predict(path).labels.shape == size


def test_classes_come_from_the_checkpoint_then_from_the_config(tmp_path):
    others = dict(classes=list('abcde'), palette=[[i, i, i] for i in range(5)])
    predictor = Predictor(save_run(tmp_path / 'a', tiny_config(), others), device='cpu')
    assert predictor.classes.names == tuple('abcde')
    assert predictor.classes.palette.tolist() == others['palette']
    predictor = Predictor(save_run(tmp_path / 'b', tiny_config(), {}), device='cpu')
    assert predictor.classes.names == CLASSES
    assert predictor.classes.palette.tolist() == PALETTE


def test_classes_of_a_known_dataset(tmp_path):
    cfg = tiny_config(num_classes=150)
    cfg.test_dataloader.dataset = dict(type='ADE20KDataset', pipeline=cfg.test_pipeline)
    predictor = Predictor(save_run(tmp_path, cfg, {}), device='cpu')
    assert predictor.classes.names[:2] == ('wall', 'building')
    assert predictor.classes.palette[0].tolist() == [120, 120, 120]


def test_classes_without_names_or_colours(tmp_path):
    cfg = tiny_config(num_classes=300)
    cfg.test_dataloader.dataset.pop('metainfo')
    folder = save_run(tmp_path, cfg, {})
    predictor = Predictor(folder, device='cpu')
    assert predictor.classes.names[299] == 'class 299'
    assert len({tuple(colour) for colour in predictor.classes.palette.tolist()}) > 250
    prediction = predictor.predict(write_image(tmp_path / 'a.png'))
    assert prediction.labels.dtype == np.uint16
    prediction.save(tmp_path / 'labels.png', 'labels')
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'labels.png')), prediction.labels)


def test_names_that_do_not_fit_the_head(tmp_path):
    folder = save_run(tmp_path, tiny_config(), dict(classes=('a', 'b'), palette=[[0, 0, 0], [1, 1, 1]]))
    with pytest.raises(UserError, match='2 class names in dataset_meta, num_classes=5 in the head'):
        Predictor(folder, device='cpu')


def test_logits_that_are_not_finite(run_folder, tmp_path):
    predictor = Predictor(run_folder, device='cpu')
    with torch.no_grad():
        next(predictor.model.backbone.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match=r'a\.png: the logits of the model are not finite'):
        predictor.predict(write_image(tmp_path / 'a.png'))


def test_wrong_arguments(run_folder, tmp_path):
    config = run_folder / 'config.py'
    with pytest.raises(UserError, match='no checkpoint given'):
        Predictor(config)
    with pytest.raises(MissingFileError, match=r'checkpoint .*nothing\.pth not found'):
        Predictor(config, tmp_path / 'nothing.pth')
    with pytest.raises(MissingFileError, match=r'config .*nothing\.py not found'):
        Predictor(tmp_path / 'nothing.py', run_folder / 'model.pth')
    with pytest.raises(UserError, match="runtime='tensorrt'"):
        Predictor(run_folder, runtime='tensorrt')
    with pytest.raises(UserError, match="amp='fp8'"):
        Predictor(run_folder, amp='fp8')
    with pytest.raises(UserError, match='Segmentr is not in the mmseg::model registry'):
        Predictor(run_folder, cfg_options={'model.type': 'Segmentr'})
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    with pytest.raises(UserError, match=r'config .*broken\.py'):
        Predictor(tmp_path / 'broken.py', run_folder / 'model.pth')
    (tmp_path / 'second.py').touch()
    with pytest.raises(UserError, match=r'expected one config .*broken\.py, second\.py'):
        Predictor(tmp_path, run_folder / 'model.pth')
    with pytest.raises(UserError, match='batch_size=0'):
        list(Predictor(run_folder, device='cpu')([], batch_size=0))


def test_checkpoint_of_another_model(run_folder, tmp_path):
    torch.save(dict(state_dict={'backbone.weight': torch.ones(1)}), tmp_path / 'other.pth')
    with pytest.raises(UserError, match='is not a checkpoint of this model'):
        Predictor(run_folder / 'config.py', tmp_path / 'other.pth', device='cpu')


def test_folder_of_a_run(run_folder, tmp_path):
    """The best checkpoint is preferred, then the last."""
    cfg = tiny_config()
    folder = save_run(tmp_path / 'run', cfg)
    (folder / 'model.pth').rename(folder / 'iter_10.pth')
    (folder / 'iter_20.pth').write_bytes((folder / 'iter_10.pth').read_bytes())
    with pytest.raises(MissingFileError, match='found 2; name the file'):
        Predictor(folder)
    (folder / 'last_checkpoint').write_text('/elsewhere/iter_20.pth')
    assert Predictor(folder, device='cpu').checkpoint == str(folder / 'iter_20.pth')
    (folder / 'iter_10.pth').rename(folder / 'best_mIoU_iter_10.pth')
    assert Predictor(folder, device='cpu').checkpoint == str(folder / 'best_mIoU_iter_10.pth')


def test_custom_loading_of_the_config(make_run, files):
    """A pipeline that loads images in grey keeps doing so."""
    loading = [dict(type='LoadImageFromFile', color_type='grayscale'), *RESIZE[2:]]
    changes = dict(model__data_preprocessor=dict(type='SegDataPreProcessor', mean=[127.5], std=[127.5]),
                   model__backbone__in_channels=1, test_dataloader__dataset__pipeline=loading)  # fmt: skip
    folder = make_run(**changes)
    found = Predictor(folder, device='cpu').predict(files[0])
    assert np.array_equal(found.labels, labels(expected(folder, files[:1])[0]))
    assert found.overlay().shape == (40, 56, 3)


def test_preparing_in_threads(make_run, tmp_path):
    """Resize keeps the scale of the image in an attribute while it runs."""
    from concurrent.futures import ThreadPoolExecutor

    resize = [RESIZE[0], dict(type='Resize', scale_factor=0.5, keep_ratio=True), *RESIZE[2:]]
    predictor = Predictor(make_run(test_dataloader__dataset__pipeline=resize), device='cpu')
    sizes = [(2 * (8 + i), 2 * (90 - i)) for i in range(60)]
    files = [write_image(tmp_path / f'{i}.png', size) for i, size in enumerate(sizes)]
    with ThreadPoolExecutor(8) as pool:
        prepared = list(pool.map(predictor.prepare, files))
    assert [one.shape[1:] for one in prepared] == [(h // 2, w // 2) for h, w in sizes]
