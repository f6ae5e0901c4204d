"""Each tool with a tiny EoMT: it works, or says in one line that it does not."""

import os

import cv2
import numpy as np
import pytest
import torch
from tiny_eomt import LOSS
from tiny_run import save_run, tiny_config

from mmseg_segmenter.analysis.inspection import (
    attention_distance,
    attention_rollout,
    encoder_attention,
    figures,
    network_image,
)
from mmseg_segmenter.apis import InputImage, Predictor
from mmseg_segmenter.apis.export import ExportOptions, export
from mmseg_segmenter.apis.strips import segment_strips
from mmseg_segmenter.app import Models, Results
from mmseg_segmenter.app.answers import Answers
from mmseg_segmenter.app.uploads import Limits
from mmseg_segmenter.deployment.files import SUFFIXES, load_file
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
    with pytest.raises(UserError, match=r"runtime='onnxruntime' computes logits, and model\.type=EoMT has masks"):
        load_network(predictor.model, 'onnxruntime', 'fp32')
    with pytest.raises(UserError, match=r'model\.type=EoMT: images larger than memory need a Segmenter'):
        next(segment_strips(predictor.model, (64, 64), lambda top, bottom: None))
    with pytest.raises(UserError, match='EoMT cannot be trained on cached features'):
        predictor.model.extract_feat((torch.zeros(1, 16, 4, 4),))


@pytest.mark.parametrize(
    ('format', 'dynamic'),
    [
        ('torchscript', False),
        pytest.param('pt2', False, marks=pytest.mark.slow),
        *(pytest.param(f, d, marks=pytest.mark.slow) for f in ('onnx', 'openvino') for d in (False, True)),
        pytest.param('pt2', True, marks=pytest.mark.slow),
    ],
)
def test_export(tmp_path, predictor, picture, monkeypatch, format, dynamic):
    """A file returns the scores of the model for a whole image; one of labels agrees with them."""
    for package in dict(onnx=('onnxscript', 'onnxruntime'), openvino=('openvino',)).get(format, ()):
        pytest.importorskip(package)
    image, size = picture[:37, :45], None if dynamic else (37, 45)
    path = str(tmp_path / f'model{SUFFIXES[format]}')
    result = export(predictor, path, ExportOptions(format, size=size, dynamic=dynamic, argmax=False))
    assert '-> logits' in result.signature
    found = load_file(path, format, 'fp32')(image[None])
    monkeypatch.setitem(predictor.model.test_cfg, 'mode', 'whole')
    inputs = (torch.from_numpy(image).permute(2, 0, 1)[None].float() - 127.5) / 127.5
    with torch.no_grad():
        expected = predictor.model.inference(inputs, [dict(img_shape=(37, 45))]).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.01
    if format == 'torchscript':
        photo = str(tmp_path / 'photo.png')
        cv2.imwrite(photo, picture)
        for precision in ('fp32', 'bf16'):
            path = str(tmp_path / f'{precision}.pt')
            agreement = export(predictor, path, ExportOptions(format, precision, size=size), [photo]).agreement
            assert agreement.equal > 0.95
            assert load_file(path, format, precision)(image[None]).shape == (1, 37, 45)


def test_int8_is_refused(tmp_path, predictor):
    pytest.importorskip('nncf')
    with pytest.raises(UserError, match='--precision int8 does not take an EoMT; expected fp32, fp16 or bf16'):
        export(predictor, str(tmp_path / 'model.xml'), ExportOptions('openvino', 'int8'))
    assert not list(tmp_path.iterdir())


def test_page(tmp_path, predictor, picture):
    """The page segments an image, and shows attention and features of a patch in every layer."""
    photo = str(tmp_path / 'photo.png')
    cv2.imwrite(photo, picture)
    answers = Answers(Models([predictor]), Results(), str(tmp_path), [], Limits(megabytes=1, megapixels=0.5))
    answer = answers.segment('page', dict(number=1, path=photo, name='photo.png'))
    shares = [[entry.label, entry.share] for entry in predictor.predict(picture).legend()]
    assert answer['kind'] == 'result' and answer['shares'] == [shares]
    request = dict(number=2, token=answer['token'], x=0.3, y=0.7, head=-1)
    inputs = network_image(predictor, InputImage(picture, 'photo')).inputs
    for layer in (0, 1):  # queries join in layer 1; the map has the patches only
        (heat,) = answers.look(dict(request, view='attention', layer=layer))['maps']
        assert heat['grid'] == (5, 7)
        weights = encoder_attention(predictor.model, inputs, layer)[0].mean(0)[3 * 7 + 1 - 35, -35:].numpy()
        expected = np.clip(weights / heat['high'], 0, 1) * 255
        assert np.abs(np.array(heat['values']) - expected).max() <= 1
        (heat,) = answers.look(dict(request, view='similarity', layer=layer))['maps']
        assert heat['values'][3 * 7 + 1] == 255  # the patch itself
