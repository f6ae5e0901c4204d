"""Requests of a page are answered with what the model and the inspection functions compute, or with a message."""

import io
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import CLASSES, save_run, tiny_config, write_image

from mmseg_segmenter.analysis.inspection import encoder_attention, feature_similarity, network_image, patch_features
from mmseg_segmenter.apis import InputImage, Predictor, read_image
from mmseg_segmenter.app import Models, Results
from mmseg_segmenter.app.answers import Answers
from mmseg_segmenter.app.pictures import MAX_SIDE, download, picture, shown_pixels, shown_size, thumbnail
from mmseg_segmenter.app.results import Opinion, Result
from mmseg_segmenter.app.uploads import Limits
from mmseg_segmenter.errors import UserError


class Page:
    """A page that was opened, without a browser."""

    def __init__(self, models: Models, folder: Path) -> None:
        self.results, self.folder = Results(), folder
        self.example = write_image(folder / 'example.png', (40, 56))
        self.uploads = folder / 'uploads'
        self.uploads.mkdir()
        limits = Limits(megabytes=1, megapixels=0.5)
        self.answers = Answers(models, self.results, str(self.uploads), [str(self.example)], limits)

    def upload(self, content: bytes, name: str = 'photo.png') -> dict:
        path = self.uploads / 'sha' / 'random'
        path.parent.mkdir()
        path.write_bytes(content)
        answer = self.answers.segment('page', dict(number=1, path=str(path), name=name))
        assert not list(self.uploads.iterdir())  # whatever it was
        return json.loads(json.dumps(answer))

    def look(self, answer: dict, **changes) -> dict:
        request = dict(number=2, token=answer['token'], view='attention', x=0.3, y=0.7, layer=1, head=-1)
        return json.loads(json.dumps(self.answers.look({**request, **changes})))


@pytest.fixture
def page(models: Models, tmp_path: Path) -> Page:
    return Page(models, tmp_path)


@pytest.fixture(scope='module')
def predictor(run_folder: Path) -> Predictor:
    return Predictor(run_folder)


def test_an_upload_is_segmented(page, predictor):
    answer = page.upload(page.example.read_bytes(), 'Straße 1.png')
    expected = predictor.predict(page.example)
    assert (answer['kind'], answer['number'], answer['name']) == ('result', 1, 'Straße 1.png')
    assert answer['size'] == answer['shown'] == [40, 56]
    shares = [[entry.label, entry.share] for entry in expected.legend()]
    assert len(shares) > 1 and answer['shares'] == [shares, shares]
    opinion = page.results.get(answer['token']).opinions[1]
    np.testing.assert_array_equal(opinion.prediction.labels, expected.labels)
    assert abs(opinion.confidence / 255 - expected.confidence).max() < 0.5 / 255 + 1e-3


def test_an_example_is_segmented(page):
    answer = page.answers.segment('page', dict(number=7, example=0))
    assert (answer['kind'], answer['number'], answer['name']) == ('result', 7, 'example.png')


def test_models_are_described(models, run_folder):
    first, second = models.describe()
    assert first == second
    assert (first['name'], first['layers'], first['heads']) == ('model.pth', 2, 2)
    assert tuple(first['classes']) == CLASSES
    assert Models([Predictor(run_folder)]).describe()[0]['name'] == 'config'


def test_models_of_two_runs_have_different_names(run_folder, tmp_path):
    """Runs of one config name their checkpoints alike."""
    runs = [tmp_path / name for name in ('first', 'second')]
    for run in runs:
        shutil.copytree(run_folder, run)
    names = [one['name'] for one in Models([Predictor(run) for run in runs]).describe()]
    assert names == ['first/model.pth', 'second/model.pth']


def test_results_keep_the_confidence_once(models, page):
    """As uint8; the float16 that the Predictor caches is not counted in the limit of the results."""
    opinion = models.segment(read_image(str(page.example))).opinions[0]
    arrays = [value for value in vars(opinion.prediction).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == opinion.prediction.labels.nbytes


@pytest.mark.parametrize('head', [-1, 1])
def test_attention_of_a_patch(page, predictor, head):
    answer = page.look(page.upload(page.example.read_bytes()), head=head)
    inputs = network_image(predictor, page.example).inputs  # 5 x 7 patches
    weights = encoder_attention(predictor.model, inputs, 1, 1 + 3 * 7 + 2)[0, :, 1:].view(2, 5, 7)
    weights = (weights.mean(0) if head < 0 else weights[head]).detach().numpy()
    first, second = answer['maps']
    assert first == second and first['grid'] == [5, 7]
    assert first['low'] == 0 and first['high'] == pytest.approx(np.quantile(weights, 0.995))
    shown = np.array(first['values']).reshape(5, 7) / 255 * first['high']
    assert abs(shown - weights.clip(max=first['high'])).max() <= 0.51 / 255 * first['high']
    assert first['area'] == [0, 0, 1, 1]
    assert first['patch'] == pytest.approx([2 / 7, 3 / 5, 1 / 7, 1 / 5])


def test_similarity_to_a_patch(page, predictor):
    result = page.upload(page.example.read_bytes())
    for layer in (0, 1):
        (map, _) = page.look(result, view='similarity', layer=layer)['maps']
        features = patch_features(predictor.model, network_image(predictor, page.example).inputs, layer)
        expected = feature_similarity(features, 3, 2)[0].detach().numpy()
        assert (map['low'], map['high']) == (pytest.approx(expected.min()), 1)
        shown = map['low'] + np.array(map['values']).reshape(5, 7) / 255 * (1 - map['low'])
        assert abs(shown - expected).max() < 0.01


def test_padding_is_outside_of_the_image(tmp_path):
    """An image whose size is not a multiple of the patches: the patches reach beyond it."""
    models = Models([Predictor(save_run(tmp_path, tiny_config(mode='whole')))])
    result = models.segment(read_image(write_image(tmp_path / 'odd.png', (30, 44))))
    heat = models.attention(result, 0, 1, 1, 0, None)
    assert heat.values.shape == (4, 6)
    assert heat.area == pytest.approx((0, 0, 48 / 44, 32 / 30))
    assert heat.patch == pytest.approx((40 / 44, 24 / 30, 8 / 44, 8 / 30))


def test_large_images_are_looked_into_at_a_smaller_size(models, predictor, monkeypatch):
    monkeypatch.setattr('mmseg_segmenter.app.models.MAX_PATCHES', 20)
    image = InputImage(np.zeros((80, 160, 3), np.uint8), 'large')  # 10 x 20 patches
    result = models.segment(image)
    assert models.attention(result, 0, 0.5, 0.5, 0, None).values.size <= 30
    assert result.opinions[0].prediction.labels.shape == (80, 160)


def test_an_encoder_without_attention(tmp_path):
    backbone = dict(_delete_=True, type='ResNetV1c', depth=18, num_stages=1, out_indices=(0,), strides=(1,),
                    dilations=(1,), norm_cfg=dict(type='BN'), style='pytorch')  # fmt: skip
    head = dict(_delete_=True, type='FCNHead', in_channels=64, channels=8, num_convs=1, concat_input=False,
                num_classes=5, norm_cfg=dict(type='BN'))  # fmt: skip
    cfg = tiny_config(mode='whole')
    cfg.merge_from_dict({'model.backbone': backbone, 'model.decode_head': head})
    models = Models([Predictor(save_run(tmp_path / 'run', cfg))])
    page = Page(models, tmp_path)
    assert models.describe()[0]['layers'] == 0
    answer = page.upload(page.example.read_bytes())
    assert page.look(answer)['maps'] == [None]
    with pytest.raises(UserError, match='ViT'):
        models.similarity(page.results.get(answer['token']), 0, 0, 0, 0)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(token='another'), 'no longer in memory'),
        (dict(layer=2), 'layer=2; expected 0 to 1'),
        (dict(head=2), 'head=2; expected 0 to 1'),
        (dict(x=float('nan')), 'pixel nan'),
        (dict(layer='first'), 'the server failed'),
        (dict(layer=None), 'the server failed'),
    ],
)
def test_bad_requests_are_answered(page, changes, message, capsys):
    answer = page.look(page.upload(page.example.read_bytes()), **changes)
    assert answer['kind'] == 'error' and answer['number'] == 2
    assert message in answer['message']
    assert ('Traceback' in capsys.readouterr().err) == ('failed' in message)


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new('L', (width, height)).save(out, 'PNG')
    return out.getvalue()


SVG = (
    b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
)
JPEG = cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[1].tobytes()
EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (SVG, 'is not an image of a known format'),
        (EPS, 'is not an image of a known format'),
        (b'', 'is not an image of a known format'),
        (b'some text\n', 'is not an image of a known format'),
        (JPEG[: len(JPEG) // 2], 'is not a readable image'),
        (png(20_000, 20_000), r'20000 x 20000 pixels \(400 megapixels\); expected at most 0.5 megapixels'),
        (b'\0' * 1_000_001, 'expected at most 1 MB'),
    ],
    ids=['svg', 'eps', 'empty', 'text', 'cut', 'bomb', 'size'],
)
def test_garbage_is_answered_in_one_line(page, content, message):
    answer = page.upload(content, 'a\nb\x1b.png')
    assert answer['kind'] == 'error'
    assert 'a b .png' in answer['message'] and '\n' not in answer['message']
    assert re.search(message, answer['message'])


def test_only_uploads_can_be_read(page):
    outside = write_image(page.folder / 'private.png')
    link = page.uploads / 'link'
    link.symlink_to(outside)
    for path in (outside, link, page.uploads / '..' / 'private.png', page.uploads, page.uploads / 'missing'):
        answer = page.answers.segment('page', dict(number=1, path=str(path), name='x'))
        assert answer['kind'] == 'error' and 'no longer here' in answer['message'], path
    assert outside.exists()


def result(pixels: int, models: int = 1) -> Result:
    image = InputImage(np.zeros((1, pixels, 3), np.uint8), 'x')
    predictions = [type('P', (), dict(labels=np.zeros((1, pixels), np.uint8)))() for _ in range(models)]
    return Result(image, [Opinion(prediction, np.zeros((1, pixels), np.uint8)) for prediction in predictions])


def test_results_take_bounded_memory():
    results = Results(max_bytes=1000)
    first, second, third = result(80), result(80), result(80)  # 400 bytes each
    assert first.nbytes == 400
    results.put('a', first)
    results.put('b', second)
    assert results.get(first.token) is first  # b is now the least recently used
    results.put('c', third)
    assert len(results) == 2
    with pytest.raises(UserError, match='no longer in memory'):
        results.get(second.token)
    third.opinions[0].features = 0, torch.zeros(100)
    assert results.get(third.token) is third and len(results) == 1
    huge = result(8000)
    results.put('d', huge)
    assert len(results) == 1 and results.get(huge.token) is huge


def test_a_page_keeps_its_last_result():
    results = Results()
    first, second = result(8), result(8)
    results.put('page', first)
    results.put('page', second)
    assert len(results) == 1 and results.get(second.token) is second
    results.forget('page')
    results.forget('page')
    assert len(results) == 0
    results.put('page', first)  # was being computed when the page was closed
    assert len(results) == 0


def test_what_the_page_shows(models):
    rng = np.random.default_rng(0)
    image = InputImage(rng.integers(0, 256, (9, 3 * MAX_SIDE, 3), np.uint8), 'wide')
    assert shown_size(image) == (3, MAX_SIDE)
    opinion = models.segment(image).opinions[0]
    content = shown_pixels(opinion).data
    count = 3 * MAX_SIDE
    labels = np.frombuffer(content[: 2 * count], '<u2').reshape(3, MAX_SIDE)
    confidence = np.frombuffer(content[2 * count :], np.uint8).reshape(3, MAX_SIDE)
    np.testing.assert_array_equal(labels, opinion.prediction.labels[1::3, 1::3])
    np.testing.assert_array_equal(confidence, opinion.confidence[1::3, 1::3])
    assert Image.open(io.BytesIO(picture(image).data)).size == (MAX_SIDE, 3)
    assert min(Image.open(io.BytesIO(thumbnail(InputImage(np.zeros((700, 900, 3), np.uint8), 'x')).data)).size) == 176


def test_downloads(predictor, tmp_path):
    prediction = predictor.predict(write_image(tmp_path / 'x.png'))
    shown, gone = (entry.label for entry in prediction.legend()[:2])
    mask = Image.open(io.BytesIO(download(prediction, 'mask', 0.5, []).data))
    assert mask.mode == 'P'
    np.testing.assert_array_equal(np.asarray(mask), prediction.labels)
    raw = cv2.imdecode(np.frombuffer(download(prediction, 'labels', 0.5, []).data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(raw, prediction.labels)
    overlay = np.asarray(Image.open(io.BytesIO(download(prediction, 'overlay', 0.7, [gone, 999]).data)))
    at = prediction.labels == shown
    np.testing.assert_array_equal(overlay[at], prediction.overlay(0.7)[at])
    at = prediction.labels == gone
    np.testing.assert_array_equal(overlay[at], prediction.image.rgb[at])
