"""Segmenter.predict against mmseg's EncoderDecoder and the official inference()."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from allocations import LargestTensor
from mmengine.config import ConfigDict
from mmseg.models.segmentors import SegTTAModel as MMSegTTAModel
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from official import DATA, build, load

from mmseg_segmenter.errors import UserError
from mmseg_segmenter.models.dense import confidence_map, label_map, logit_map, probability_map
from mmseg_segmenter.models.dense.logit_map import most_likely

HEADS = dict(
    mask=dict(type='SegmenterMaskTransformerHead', embed_dims=16, num_heads=2, num_layers=1, num_classes=7),
    linear=dict(type='LinearHead', num_classes=300),  # more than a byte of classes
    binary=dict(type='FCNHead', channels=16, num_convs=0, num_classes=2, out_channels=1, threshold=0.45),
    aligned=dict(type='FCNHead', channels=16, num_convs=0, num_classes=50, align_corners=True),
    # has its own predict()
    enc=dict(type='EncHead', channels=8, in_channels=[16], in_index=[-1], num_codes=3, use_se_loss=False,
             add_lateral=False, norm_cfg=dict(type='BN'), num_classes=4),
)  # fmt: skip


def config(kind, head, test_cfg):
    return dict(
        type=kind,
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=dict(type='SegmenterViT', img_size=32, patch_size=8, embed_dims=16, num_layers=2, num_heads=2),
        decode_head=dict(in_channels=16) | HEADS[head],
        test_cfg=ConfigDict(test_cfg),
    )


def ours_and_theirs(head='mask', their_cfg=None, **test_cfg):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        ours = MODELS.build(config('Segmenter', head, test_cfg)).double().eval()
        theirs = MODELS.build(config('EncoderDecoder', head, their_cfg or test_cfg)).double().eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def samples(*metas):
    return [SegDataSample(metainfo=meta) for meta in metas]


def meta(size, ori_shape=None, **kwargs):
    return dict(img_shape=size, pad_shape=size, ori_shape=ori_shape or size, **kwargs)


@torch.no_grad()
def assert_same_results(ours, theirs, size, metas):
    torch.manual_seed(3)
    image = 3 * torch.randn(len(metas), 3, *size, dtype=torch.float64)
    for one, other in zip(
        ours.predict(image, samples(*copy.deepcopy(metas))),
        theirs.predict(image, samples(*copy.deepcopy(metas))),
        strict=True,
    ):
        assert one.pred_sem_seg.data.dtype == other.pred_sem_seg.data.dtype
        assert torch.equal(one.pred_sem_seg.data, other.pred_sem_seg.data)
        assert len(one.pred_sem_seg.data.unique()) > 1
        torch.testing.assert_close(one.seg_logits.data, other.seg_logits.data, rtol=0, atol=1e-10)


MODES = [
    dict(mode='whole'),
    dict(mode='slide', crop_size=(32, 32), stride=(20, 20)),
    dict(mode='slide', crop_size=(32, 24), stride=(9, 24), window_batch_size=3),
]


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('test_cfg', MODES, ids=['whole', 'slide', 'oblong'])
@pytest.mark.parametrize('size', [(48, 56), (45, 50), (20, 70)], ids=str)
def test_equals_mmseg(head, test_cfg, size, monkeypatch):
    monkeypatch.setitem(logit_map._TILE_BYTES, 'cpu', 40_000)  # several tiles
    ours, theirs = ours_and_theirs(head, return_logits=True, **test_cfg)
    assert_same_results(ours, theirs, size, [meta(size), meta(size, (61, 33))])


@pytest.mark.parametrize('test_cfg', MODES, ids=['whole', 'slide', 'oblong'])
@pytest.mark.parametrize(
    'options',
    [
        dict(flip=True, flip_direction='horizontal'),
        dict(flip=True, flip_direction='vertical'),
        dict(flip=False, flip_direction=None),
        dict(padding_size=[3, 1, 0, 4]),
        dict(img_padding_size=[0, 5, 2, 0], flip=True, flip_direction='horizontal'),
    ],
    ids=['horizontal', 'vertical', 'no flip', 'padded', 'padded flip'],
)
def test_flip_and_padding_equal_mmseg(test_cfg, options):
    ours, theirs = ours_and_theirs(return_logits=True, **test_cfg)
    assert_same_results(ours, theirs, (45, 50), [meta((45, 50), (90, 71), **options)])


def test_whole_mode_stretches_to_pad_shape_as_mmseg():
    ours, theirs = ours_and_theirs(mode='whole', return_logits=True)
    stretched = dict(img_shape=(45, 50), pad_shape=(48, 64), ori_shape=(45, 50))
    assert_same_results(ours, theirs, (45, 50), [stretched])


@torch.no_grad()
@pytest.mark.parametrize('test_cfg', MODES, ids=['whole', 'slide', 'oblong'])
def test_inference_and_predictions_without_samples_equal_mmseg(test_cfg):
    ours, theirs = ours_and_theirs(**test_cfg)
    image = torch.randn(2, 3, 45, 50, dtype=torch.float64)
    metas = [meta((45, 50))] * 2
    torch.testing.assert_close(
        ours.inference(image, copy.deepcopy(metas)),
        theirs.inference(image, copy.deepcopy(metas)),
        rtol=0,
        atol=1e-10,
    )
    for one, other in zip(ours.predict(image), theirs.predict(image), strict=True):
        assert torch.equal(one.pred_sem_seg.data, other.pred_sem_seg.data)


def test_inference_is_differentiable():
    ours, theirs = ours_and_theirs(**MODES[1])
    gradients = []
    for model in (ours, theirs):
        image = torch.randn(
            1, 3, 45, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        ).requires_grad_()
        model.inference(image, [meta((45, 50))]).square().sum().backward()
        gradients.append(image.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize('test_cfg', MODES[:2], ids=['whole', 'slide'])
def test_nothing_as_large_as_the_logits(test_cfg, monkeypatch):
    monkeypatch.setitem(logit_map._TILE_BYTES, 'cpu', 1_000_000)
    model, theirs = ours_and_theirs('linear', **test_cfg)
    image, size = torch.randn(1, 3, 120, 120, dtype=torch.float64), HEADS['linear']['num_classes'] * 120 * 120
    with LargestTensor() as largest:
        (result,) = model.predict(image, samples(meta((120, 120))))
    assert 'seg_logits' not in result
    with LargestTensor() as theirs_largest:
        theirs.predict(image, samples(meta((120, 120))))
    assert largest.numel <= size / 8 and theirs_largest.numel >= size


@torch.no_grad()
def test_logits_of_pixels_are_added_up():
    """A head with its own predict() needs one map of the image, however much windows overlap."""
    test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(8, 8), window_batch_size=1)
    model, theirs = ours_and_theirs('enc', **test_cfg)
    image = torch.randn(1, 3, 120, 120, dtype=torch.float64)
    with LargestTensor() as largest:
        (result,) = model.predict(image, samples(meta((120, 120))))
    # the image, or a window of the first layer's attention: nothing is larger than the one map of logits
    assert largest.numel <= HEADS['enc']['num_classes'] * 120 * 120
    assert torch.equal(result.pred_sem_seg.data, theirs.predict(image)[0].pred_sem_seg.data)


@torch.no_grad()
def test_window_batch_size_changes_nothing():
    image = torch.randn(2, 3, 90, 77, dtype=torch.float64)
    results = []
    for size in (1, 3, 50):
        model, _ = ours_and_theirs(mode='slide', crop_size=(32, 32), stride=(20, 20), window_batch_size=size)
        results.append(torch.stack([r.pred_sem_seg.data for r in model.predict(image)]))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@torch.no_grad()
def test_small_images_are_enlarged_when_asked():
    cfg = dict(mode='slide', crop_size=(32, 32), stride=(20, 20))
    model, _ = ours_and_theirs(**cfg, upscale_small=True, return_logits=True)
    plain, _ = ours_and_theirs(**cfg, return_logits=True)
    image = torch.randn(1, 3, 20, 40, dtype=torch.float64)
    enlarged = torch.nn.functional.interpolate(image, (32, 64), mode='bilinear')
    (expected,) = plain.predict(enlarged, samples(meta((32, 64), (25, 50))))
    (found,) = model.predict(image, samples(meta((20, 40), (25, 50))))
    torch.testing.assert_close(found.seg_logits.data, expected.seg_logits.data, rtol=0, atol=1e-10)
    assert model.inference(image, [meta((20, 40))]).shape == (1, 7, 20, 40)
    # padding is counted in pixels of the input
    (padded,) = model.predict(image, samples(meta((20, 40), (17, 40), padding_size=[0, 0, 0, 3])))
    assert padded.pred_sem_seg.shape == (17, 40)
    large = torch.randn(1, 3, 45, 50, dtype=torch.float64)
    assert torch.equal(model.predict(large)[0].pred_sem_seg.data, plain.predict(large)[0].pred_sem_seg.data)


@pytest.mark.parametrize('shape', [(3, 7, 5), (2, 300, 4), (1, 256, 1)])
def test_most_likely_takes_the_first_of_equals(shape):
    scores = torch.randint(0, 4, shape).float()
    first = (scores == scores.amax(1, keepdim=True)).int().argmax(1)
    assert torch.equal(most_likely(scores), first)


# Test-time augmentation


@pytest.fixture
def stack(monkeypatch):
    """A data preprocessor that stays in float64."""
    monkeypatch.setattr(
        'mmseg.models.SegDataPreProcessor.forward',
        lambda self, data, training=False: dict(data, inputs=torch.stack(data['inputs'])),
    )


def augmented(image, ori_shape, ratios=(0.6, 1.0, 1.4)):
    """Inputs and samples as mmseg's TestTimeAug makes them, for a batch of one."""
    inputs, data_samples = [], []
    for ratio in ratios:
        scaled = torch.nn.functional.interpolate(image, scale_factor=ratio, mode='bilinear')
        for flip in (False, True):
            inputs.append([(scaled.flip(3) if flip else scaled)[0]])
            size = tuple(scaled.shape[2:])
            data_samples.append(
                samples(meta(size, ori_shape, flip=flip, flip_direction='horizontal', img_path='image.png'))
            )
    return dict(inputs=inputs, data_samples=data_samples)


@torch.no_grad()
@pytest.mark.parametrize('test_cfg', MODES, ids=['whole', 'slide', 'oblong'])
def test_augmented_equals_mmseg(test_cfg, stack):
    ours, theirs = ours_and_theirs(**test_cfg)
    data = augmented(torch.randn(1, 3, 50, 60, dtype=torch.float64), (70, 64))
    data['data_samples'][0][0].set_metainfo(dict(seg_map_path='map.png'))
    (found,) = MODELS.build(dict(type='SegTTAModel', module=ours)).test_step(copy.deepcopy(data))
    (expected,) = MMSegTTAModel(theirs).test_step(copy.deepcopy(data))
    assert torch.equal(found.pred_sem_seg.data.flatten(), expected.pred_sem_seg.data.flatten())
    assert len(found.pred_sem_seg.data.unique()) > 1
    assert found.pred_sem_seg.shape == (70, 64) and found.img_path == 'image.png'
    assert found.seg_map_path == 'map.png'  # of the first sample
    # our class leaves mmseg's segmentor to mmseg's code
    (same,) = MODELS.build(dict(type='SegTTAModel', module=theirs)).test_step(copy.deepcopy(data))
    assert torch.equal(same.pred_sem_seg.data, expected.pred_sem_seg.data)


@torch.no_grad()
def test_augmented_binary_averages_probabilities(stack):
    """mmseg applies the sigmoid twice, so that no probability is below 0.5."""
    model, _ = ours_and_theirs('binary', mode='whole', return_logits=True)
    data = augmented(torch.randn(1, 3, 50, 60, dtype=torch.float64), (70, 64))
    (found,) = MODELS.build(dict(type='SegTTAModel', module=model)).test_step(copy.deepcopy(data))
    single = [
        model.predict(torch.stack(inputs), copy.deepcopy(s))[0].seg_logits.data
        for inputs, s in zip(data['inputs'], data['data_samples'], strict=True)
    ]
    assert torch.equal(found.pred_sem_seg.data, (sum(single) / len(single) > 0.45).double())
    assert len(found.pred_sem_seg.data.unique()) == 2


@torch.no_grad()
def test_augmented_keeps_no_logit_map(stack, monkeypatch):
    monkeypatch.setitem(logit_map._TILE_BYTES, 'cpu', 1_000_000)
    model, _ = ours_and_theirs('linear', mode='slide', crop_size=(32, 32), stride=(32, 32))
    data = augmented(torch.randn(1, 3, 160, 160, dtype=torch.float64), (160, 160))
    with LargestTensor() as largest:
        MODELS.build(dict(type='SegTTAModel', module=model)).test_step(data)
    assert largest.numel <= HEADS['linear']['num_classes'] * 160 * 160 / 8


# Labels, probabilities and confidence tile by tile


@torch.no_grad()
@pytest.mark.parametrize('num_maps', [1, 2])
@pytest.mark.parametrize('head', ['mask', 'linear', 'binary'])
def test_pixels_of_tiles_are_those_of_the_whole_image(head, num_maps, monkeypatch):
    monkeypatch.setitem(logit_map._TILE_BYTES, 'cpu', 50_000)
    model, _ = ours_and_theirs(head, mode='slide', crop_size=(32, 32), stride=(20, 20))
    images = torch.randn(num_maps, 3, 50, 60, dtype=torch.float64)
    maps = model.logit_maps(images, samples(*[meta((50, 60), (70, 64))] * num_maps))
    logits = [m.tile(slice(0, 70), slice(0, 64)).transpose(0, 1) for m in maps]
    if head == 'binary':
        foreground = sum(one.sigmoid() for one in logits) / num_maps
        probabilities = torch.cat([1 - foreground, foreground])
        labels = (foreground[0] > 0.45).long()
    else:
        probabilities = sum(one.softmax(dim=0) for one in logits) / num_maps
        labels = probabilities.argmax(dim=0)
    found = label_map(maps, threshold=0.45)
    assert found.dtype == (torch.int32 if head == 'linear' else torch.uint8)
    assert torch.equal(found.long(), labels)
    assert len(labels.unique()) > 1
    options = dict(dtype=torch.float64)
    torch.testing.assert_close(probability_map(maps, **options), probabilities, rtol=0, atol=1e-12)
    torch.testing.assert_close(confidence_map(maps, **options), probabilities.amax(dim=0), rtol=0, atol=1e-12)


# Logits that are not finite


def spoil(model, value):
    """Make logits of images that are brighter than 100 on average NaN or infinite."""
    forward = model.decode_head.forward

    def spoilt(feats):
        logits = forward(feats).clone()
        logits[bright[-1], -1, 1, 1] = value
        return logits

    bright = []
    model.backbone.register_forward_pre_hook(lambda module, args: bright.append(args[0].mean((1, 2, 3)) > 100))
    model.decode_head.forward = spoilt


@torch.no_grad()
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('head', ['mask', 'linear', 'binary'])
@pytest.mark.parametrize('test_cfg', MODES, ids=['whole', 'slide', 'oblong'])
def test_logits_that_are_not_finite_name_the_image(head, test_cfg, value):
    model, _ = ours_and_theirs(head, **test_cfg)
    spoil(model, value)
    image = torch.zeros(2, 3, 45, 50, dtype=torch.float64)
    metas = [meta((45, 50), img_path=f'images/{i}.png') for i in range(2)]
    model.predict(image, samples(*metas))
    image[1] = 200
    with pytest.raises(UserError, match=r'^images/1\.png: the logits of the model are not finite'):
        model.predict(image, samples(*metas))
    with pytest.raises(UserError, match=r'^image 1 of the batch: the logits of the model are not finite'):
        model.predict(image)


@torch.no_grad()
def test_augmented_logits_that_are_not_finite_name_the_image(stack):
    model, _ = ours_and_theirs(mode='slide', crop_size=(32, 32), stride=(20, 20))
    spoil(model, float('nan'))
    data = augmented(torch.zeros(1, 3, 50, 60, dtype=torch.float64), (70, 64))
    tta = MODELS.build(dict(type='SegTTAModel', module=model))
    tta.test_step(copy.deepcopy(data))
    data['inputs'][3][0] += 200  # one of the augmentations is enough
    with pytest.raises(UserError, match=r'^image\.png: the logits of the model are not finite'):
        tta.test_step(data)


# Official inference()

REFERENCE = dict(np.load(DATA / 'segm_sliding_window.npz'))
OFFICIAL = json.loads(bytes(REFERENCE['meta_json']))
CASES = sorted(key.removesuffix('/every5')[4:] for key in REFERENCE if key.endswith('/every5'))


@torch.no_grad()
@pytest.mark.parametrize('name', CASES)
def test_official_sliding_windows(name):
    decoder, case = name.split('/')
    case = OFFICIAL['cases'][case]
    window, stride = OFFICIAL['window_size'], case['stride']
    model = build(decoder, load(decoder))
    model.test_cfg = ConfigDict(
        mode='slide', crop_size=(window, window), stride=(stride, stride), size_divisor=16, upscale_small=True
    )
    maps = []
    for key, flip in zip(case['ims'], case['flips'], strict=True):
        image = torch.from_numpy(REFERENCE[f'in/{key}'])
        info = meta(tuple(image.shape[2:]), tuple(case['ori']), flip=flip, flip_direction='horizontal')
        maps += model.logit_maps(image.flip(3) if flip else image, samples(info))
    H, _, W = maps[0].shape
    found = logit_map.mean_probabilities(maps, slice(0, H), slice(0, W)).transpose(0, 1)
    expected = torch.from_numpy(REFERENCE[f'out/{name}/every5'])
    torch.testing.assert_close(found[:, ::5, ::5], expected, rtol=0, atol=2e-5)
    if f'out/{name}/argmax' in REFERENCE:
        best = found.topk(2, dim=0).values
        clear = best[0] - best[1] > 1e-4
        expected_labels = torch.from_numpy(REFERENCE[f'out/{name}/argmax']).long()
        assert torch.equal(logit_map.argmax_labels(maps)[clear], expected_labels[clear]) and clear.float().mean() > 0.99


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.parametrize('head', ['mask', 'linear', 'binary'])
def test_gpu_equals_cpu(head):
    model, _ = ours_and_theirs(head, **MODES[1])
    image, metas = torch.randn(2, 3, 90, 77, dtype=torch.float64), [meta((90, 77), (61, 101))] * 2
    on_cpu = model.predict(image, samples(*metas))
    on_gpu = model.cuda().predict(image.cuda(), samples(*metas))
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert torch.equal(one.pred_sem_seg.data, other.pred_sem_seg.data.cpu())
