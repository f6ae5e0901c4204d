import copy
import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

CONFIG = dict(
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True, size=(32, 32), seg_pad_val=255
    ),
    backbone=dict(type='SegmenterViT', img_size=32, patch_size=8, embed_dims=16, num_layers=2, num_heads=2),
    decode_head=dict(
        type='SegmenterMaskTransformerHead', in_channels=16, embed_dims=16, num_heads=2, num_layers=1, num_classes=4
    ),
)


def build(kind='Segmenter', **test_cfg):
    return MODELS.build(dict(type=kind, **copy.deepcopy(CONFIG), test_cfg=test_cfg or dict(mode='whole')))


def batch(height=32, width=32, label=None, count=2):
    inputs, samples = [], []
    for i in range(count):
        inputs.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))
        labels = torch.randint(0, 4, (1, height, width))
        labels[:, 0] = 255
        if label is not None:
            labels[0, 5, 5] = label
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
        shape = (height, width)
        sample.set_metainfo(dict(ori_shape=shape, img_shape=shape, pad_shape=shape, seg_map_path=f'maps/{i}.png'))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def ours_and_theirs(**test_cfg):
    from mmengine.config import ConfigDict

    ours, theirs = build(**test_cfg), build('EncoderDecoder', **ConfigDict(test_cfg))
    ours.init_weights()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    theirs.test_cfg = ConfigDict(test_cfg)
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize('size', [(45, 50), (48, 56), (7, 9)])
def test_size_divisor_pads_upsamples_and_crops(size):
    model = build(mode='whole', size_divisor=8).eval()
    model.init_weights()
    image = torch.randn(2, 3, *size)
    metas = [dict(ori_shape=size, img_shape=size, pad_shape=size)] * 2
    padded = F.pad(image, (0, -size[1] % 8, 0, -size[0] % 8))
    with torch.no_grad():
        expected = F.interpolate(model(padded), padded.shape[2:], mode='bilinear')[..., : size[0], : size[1]]
        assert torch.equal(model.encode_decode(image, metas), expected)
        assert 'img_shape' in metas[0] and metas[0]['img_shape'] == size  # the caller's dicts are untouched


def test_size_divisor_matters_only_off_the_grid():
    ours, theirs = ours_and_theirs(mode='whole', size_divisor=8)
    for size, same in (((48, 56), True), ((45, 50), False)):
        image, metas = torch.randn(1, 3, *size), [dict(ori_shape=size, img_shape=size)]
        with torch.no_grad():
            one, other = ours.encode_decode(image, metas), theirs.encode_decode(image, metas)
        assert torch.equal(one, other) is same


@pytest.mark.parametrize(
    ('test_cfg', 'message'),
    [
        (dict(size_divisor=0), r'size_divisor=0; expected a positive multiple of the patch size 8'),
        (dict(size_divisor=12), r'size_divisor=12; expected a positive multiple of the patch size 8'),
        (dict(size_divisor=8.0), r'size_divisor=8\.0'),
        (dict(window_batch_size=0), r'window_batch_size=0; expected a positive number'),
        (dict(mode='slides'), r"mode='slides'; expected 'slide' or 'whole'"),
        (dict(mode='slide'), r'crop_size=None, stride=None; sliding windows need both'),
        (dict(mode='slide', crop_size=(32, 32), stride=(32, 40)), r'stride=\(32, 40\).*from 1 to the window size'),
    ],
)
def test_wrong_test_cfg(test_cfg, message):
    with pytest.raises(ValueError, match=message):
        build(**test_cfg)


def test_mode_defaults_to_whole():
    assert build(size_divisor=8).test_cfg.mode == 'whole'


def test_heads_with_different_classes():
    auxiliary = dict(type='LinearHead', in_channels=16, num_classes=3)
    with pytest.raises(ValueError, match='num_classes of decode_head is 4, of auxiliary_head 3'):
        MODELS.build(dict(type='Segmenter', **copy.deepcopy(CONFIG), auxiliary_head=auxiliary))


def test_padding_of_annotations_must_be_ignored():
    config = copy.deepcopy(CONFIG)
    config['decode_head']['ignore_index'] = 0
    with pytest.raises(ValueError, match='seg_pad_val=255 is neither a class nor ignore_index=0'):
        MODELS.build(dict(type='Segmenter', **config))


@pytest.mark.parametrize('num_classes', [1, 2])
def test_mmsegs_binary_mode(num_classes):
    """One sigmoid map, labels 0 and 1, with mmseg's head."""
    config = copy.deepcopy(CONFIG)
    config['decode_head'] = dict(
        type='FCNHead', in_channels=16, channels=16, num_convs=0, concat_input=False, dropout_ratio=0,
        num_classes=num_classes, out_channels=1, threshold=0.5,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
    )  # fmt: skip
    losses = []
    for kind in ('Segmenter', 'EncoderDecoder'):
        torch.manual_seed(0)
        model = MODELS.build(dict(type=kind, **copy.deepcopy(config)))
        data = batch()
        for sample in data['data_samples']:
            sample.gt_sem_seg.data[sample.gt_sem_seg.data < 4] %= 2
        losses.append(model.train_step(data, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1)))['loss'])
    assert torch.equal(*losses)


def test_training_step_learns():
    model = build()
    model.init_weights()
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2))
    data = batch()
    losses = [model.train_step(copy.deepcopy(data), optimizer)['loss'].item() for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize('label', [4, 150, -1])
@pytest.mark.parametrize('step', ['train', 'val'])
def test_label_outside_the_classes_is_named(label, step):
    model = build()
    data = batch(label=label)
    with pytest.raises(
        ValueError, match=rf'maps/0\.png: found label {label}, expected 0 to 3 \(num_classes=4\) or 255'
    ):
        if step == 'train':
            model.train_step(data, OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0)))
        else:
            model.val_step(data)


def test_pixels_without_annotation_are_fine():
    model = build().eval()
    data = batch()
    for sample in data['data_samples']:
        del sample.gt_sem_seg
    assert len(model.test_step(data)) == 2


def test_inference_on_an_image(tmp_path):
    """What a user calls: mmseg's init_model and inference_model."""
    from mmengine.config import Config
    from mmseg.apis import inference_model, init_model

    cfg = Config(
        dict(
            default_scope='mmseg',
            model=dict(type='Segmenter', **copy.deepcopy(CONFIG), test_cfg=dict(mode='whole', size_divisor=8)),
            test_pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')],
            test_dataloader=dict(dataset=dict(type='BaseSegDataset', pipeline=[])),
        )
    )
    cfg.test_dataloader.dataset.pipeline = cfg.test_pipeline
    model = init_model(cfg, device='cpu')
    result = inference_model(model, np.zeros((45, 50, 3), np.uint8))
    assert result.pred_sem_seg.data.shape == (1, 45, 50)


@pytest.mark.gpu
def test_training_step_on_gpu():
    model = build().cuda()
    model.init_weights()
    loss = model.train_step(batch(), OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-2)))['loss']
    assert torch.isfinite(loss)
    with pytest.raises(ValueError, match=r'maps/0\.png: found label 9'):
        model.train_step(batch(label=9), OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-2)))


def test_a_model_that_nobody_holds_is_freed():
    gc.collect()
    gc.disable()
    try:
        model = weakref.ref(build())
        assert model() is None
    finally:
        gc.enable()


def test_auxiliary_heads_with_targets_of_their_own_may_have_other_classes():
    """As mmseg's STDC, whose boundaries are two classes."""
    config = copy.deepcopy(CONFIG)
    common = dict(in_channels=16, channels=8, in_index=0)
    boundary = dict(type='STDCHead', num_classes=2, boundary_threshold=0.1, loss_decode=dict(type='DiceLoss'), **common)
    plain = dict(type='FCNHead', num_classes=5, num_convs=1, **common)
    MODELS.build(dict(type='Segmenter', **config, auxiliary_head=[boundary]))
    with pytest.raises(ValueError, match='of auxiliary_head 5; expected the same'):
        MODELS.build(dict(type='Segmenter', **config, auxiliary_head=[boundary, plain]))


def test_channels_last():
    config = copy.deepcopy(CONFIG) | dict(
        decode_head=dict(
            type='SETRUPHead', in_channels=16, channels=8, in_index=0, num_classes=4, kernel_size=3, dropout_ratio=0
        )
    )
    plain, ours = (MODELS.build(dict(type='Segmenter', channels_last=on, **config)) for on in (False, True))
    plain.init_weights()
    ours.init_weights()
    ours.load_state_dict(plain.state_dict())
    formats = []
    ours.decode_head.up_convs[0][0].conv.register_forward_hook(
        lambda module, args, output: formats.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    data = batch()
    steps = [
        model.train_step(copy.deepcopy(data), OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1)))['loss']
        for model in (plain, ours)
    ]
    assert formats == [True]
    torch.testing.assert_close(*steps, rtol=1e-5, atol=0)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_wrong_flip_direction():
    sample = SegDataSample(metainfo=dict(ori_shape=(16, 16), img_shape=(16, 16), flip=True, flip_direction='left'))
    with pytest.raises(ValueError, match=r"flip_direction='left'; expected horizontal"):
        build().eval().predict(torch.randn(1, 3, 16, 16), [sample])
