"""Segmenting by strips gives the labels of the whole image, in memory that does not grow with the height."""

import numpy as np
import pytest
import torch
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS

from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.apis.strips import segment_strips
from mmseg_segmenter.errors import UserError

FCN = dict(
    _delete_=True, type='FCNHead', in_channels=16, channels=8, num_convs=1, concat_input=False, num_classes=5,
    norm_cfg=dict(type='BN'),
)  # fmt: skip


@MODELS.register_module()
class HeadWithPredict(FCNHead):
    """A head that upsamples its logits itself, in a way of its own."""

    def predict(self, inputs, batch_img_metas, test_cfg):
        size = [side + 4 for side in batch_img_metas[0]['img_shape']]
        logits = torch.nn.functional.interpolate(self.forward(inputs), size, mode='bicubic')
        return logits[..., 2:-2, 2:-2]


def image(size, seed=0):
    """Large random blobs (H, W, 3) BGR, with noise that the model sees."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[0] // 9 + 1, size[1] // 7 + 1, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(9, 0).repeat(7, 1)[: size[0], : size[1]])


def strips(predictor, bgr):
    found = list(segment_strips(predictor.model, bgr.shape[:2], lambda top, bottom: bgr[top:bottom]))
    assert [strip.top for strip in found] == np.cumsum([0, *(len(strip.labels) for strip in found)])[:-1].tolist()
    return np.concatenate([strip.labels for strip in found])


TWO = dict(classes=('a', 'b'), palette=[[0, 0, 0], [255, 255, 255]])
MODELS_ = {
    'overlap': {},
    'no overlap': dict(model__test_cfg__stride=(32, 32)),
    'dense': dict(model__test_cfg__stride=(9, 13)),
    'oblong': dict(model__test_cfg__crop_size=(24, 40), model__test_cfg__stride=(16, 33)),
    'padding': dict(model__test_cfg__crop_size=(30, 29), model__test_cfg__stride=(20, 25),
                    model__test_cfg__size_divisor=8),
    'stretched': dict(model__test_cfg__crop_size=(30, 29), model__test_cfg__stride=(20, 25)),
    'one by one': dict(model__test_cfg__window_batch_size=1),
    'fcn': dict(model__decode_head=FCN),
    'own predict': dict(model__decode_head={**FCN, 'type': 'HeadWithPredict'}),
    'align corners': dict(model__decode_head={**FCN, 'align_corners': True}),
    'sigmoid': dict(model__decode_head={**FCN, 'num_classes': 2, 'out_channels': 1, 'threshold': 0.45,
                                        'loss_decode': dict(type='CrossEntropyLoss', use_sigmoid=True)}),
}  # fmt: skip


@pytest.mark.parametrize('kind', MODELS_)
def test_labels_are_those_of_the_whole_image(make_run, kind):
    predictor = Predictor(make_run(meta=TWO if kind == 'sigmoid' else None, **MODELS_[kind]), device='cpu')
    for size in ((40, 56), (32, 40), (131, 47), (100, 100), (57, 160)):
        bgr = image(size)
        wanted = predictor.predict(bgr).labels
        assert np.array_equal(strips(predictor, bgr), wanted)
        assert len(np.unique(wanted)) > 1


def test_more_classes_than_256(make_run):
    meta = dict(classes=[str(i) for i in range(300)], palette=[[i % 256, i // 256, 0] for i in range(300)])
    predictor = Predictor(make_run(num_classes=300, meta=meta), device='cpu')
    bgr = image((90, 70))
    wanted = predictor.predict(bgr).labels
    assert np.array_equal(strips(predictor, bgr), wanted) and wanted.max() > 255


def test_windows_without_data_are_not_segmented(run_folder, monkeypatch):
    """The labels of pixels with data are those of an image with black in place of the others."""
    predictor = Predictor(run_folder, device='cpu')
    bgr = image((140, 150))
    mask = np.zeros((140, 150, 1), np.uint8)
    mask[20:70, 60:150] = 255
    bgr = bgr * (mask > 0)
    windows, run = [], predictor.model.window_logits
    monkeypatch.setattr(
        predictor.model, 'window_logits', lambda crops, metas: windows.append(len(crops)) or run(crops, metas)
    )
    wanted = predictor.predict(bgr).labels
    everything = sum(windows)
    windows.clear()
    labels = strips(predictor, np.concatenate((bgr, mask), axis=2))
    assert sum(windows) <= everything / 2
    data = mask[..., 0] > 0
    assert np.array_equal(labels[data], wanted[data])


def test_rows_are_read_once_and_from_top_to_bottom(run_folder):
    predictor = Predictor(run_folder, device='cpu')
    bgr, calls = image((140, 50)), []

    def read(top, bottom):
        calls.append((top, bottom))
        return bgr[top:bottom]

    list(segment_strips(predictor.model, (140, 50), read))
    assert calls == [(0, 32), (24, 56), (48, 80), (72, 104), (96, 128), (108, 140)]


def test_what_cannot_be_segmented(make_run, run_folder):
    whole = Predictor(make_run(mode='whole'), device='cpu')
    with pytest.raises(UserError, match=r"test_cfg\.mode='whole'; expected 'slide'"):
        strips(whole, image((40, 40)))
    predictor = Predictor(run_folder, device='cpu')
    with pytest.raises(UserError, match='image of 31x50 pixels; expected at least one window of 32x32'):
        strips(predictor, image((31, 50)))
    with torch.no_grad():
        next(predictor.model.backbone.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match=r'^rows 0 to 32: the logits of the model are not finite'):
        strips(predictor, image((40, 40)))
