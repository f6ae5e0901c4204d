"""Each tool with a tiny EoMT: it works, or says in one line that it does not."""

import os

import cv2
import numpy as np
import pytest
import torch
from tiny_eomt import LOSS
from tiny_run import save_run, tiny_config

from mmseg_segmenter.analysis.inspection import attention_distance, attention_rollout, encoder_attention, figures
from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.apis.strips import segment_strips
from mmseg_segmenter.deployment.runtimes import load_network
from mmseg_segmenter.errors import UserError


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    head = dict(
        _delete_=True,
        type='EoMTHead',
        in_channels=16,
        num_queries=7,
        num_blocks=1,
        patch_size=8,
        num_classes=5,
        loss_decode=LOSS,
    )
    config = tiny_config(model__type='EoMT', model__backbone__num_layers=2)
    config.merge_from_dict(dict(model=dict(decode_head=head)))
    return save_run(tmp_path_factory.mktemp('eomt'), config)


@pytest.fixture(scope='module')
def predictor(run):
    return Predictor(run, device='cpu')


@pytest.fixture(scope='module')
def picture():
    return np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)


def test_predict(run, predictor, picture):
    (one,) = predictor([picture])
    (augmented,) = Predictor(run, device='cpu', tta=True)([picture])
    for prediction in (one, augmented):
        assert prediction.labels.shape == (40, 50) and prediction.labels.max() < 5
        probabilities = prediction.probabilities.astype(np.float32)
        assert np.abs(probabilities.sum(0) - 1).max() < 5e-3
        assert np.array_equal(probabilities.max(0), prediction.confidence.astype(np.float32))


def test_attention_of_queries(tmp_path, predictor, picture):
    inputs = torch.randn(1, 3, 32, 48)
    model = predictor.model
    assert encoder_attention(model, inputs, 0).shape[-1] == 1 + 24
    assert encoder_attention(model, inputs, 1).shape[-1] == 7 + 1 + 24
    assert attention_distance(model, inputs).shape == (1, 2, 2)
    path = str(tmp_path / 'a.png')
    figures.save_attention(path, predictor, picture, figures.Subject(query=6))
    assert cv2.imread(path) is not None
    os.remove(path)
    for query, layer in ((7, -1), (0, 0)):
        with pytest.raises(UserError, match=f'query={query} in layer {layer}; expected a number below'):
            figures.save_attention(path, predictor, picture, figures.Subject(query=query), layer)
    with pytest.raises(UserError, match='no rollout through the last blocks of an EoMT'):
        attention_rollout(model, inputs)
    with pytest.raises(UserError, match='decode_head EoMTHead has no self-attention'):
        figures.save_attention(path, predictor, picture, figures.Subject(class_name='road'))
    assert not os.path.exists(path)


def test_what_is_refused(predictor):
    with pytest.raises(UserError, match=r'model\.type=EoMT: its masks and classes cannot be exported'):
        load_network(predictor.model, 'torch', 'fp32')
    with pytest.raises(UserError, match=r'model\.type=EoMT: images larger than memory need a Segmenter'):
        next(segment_strips(predictor.model, (64, 64), lambda top, bottom: None))
    with pytest.raises(UserError, match='EoMT cannot be trained on cached features'):
        predictor.model.extract_feat((torch.zeros(1, 16, 4, 4),))
