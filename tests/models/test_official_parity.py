"""Against the authors' own code; the tolerances are the reference's."""

import official
import pytest
import torch
from torch.testing import assert_close

HEADS = ['linear', 'mask_transformer']


@pytest.fixture(scope='module', params=HEADS)
def case(request):
    reference = official.load(request.param)
    return reference, official.build(request.param, reference)


def predict(model, image):
    metas = [dict(ori_shape=image.shape[2:], img_shape=image.shape[2:])] * len(image)
    with torch.no_grad():
        return model.inference(image, metas)


@pytest.mark.parametrize('tag', ['a_2x64x64', 'b_1x80x112', 'c_1x72x100'])
def test_logits(case, tag):
    reference, model = case
    image = torch.from_numpy(reference[f'in/{tag}'])
    assert_close(predict(model, image), torch.from_numpy(reference[f'logits/{tag}']), atol=1e-4, rtol=0)


@pytest.mark.parametrize('tag', ['a_2x64x64', 'b_1x80x112'])
def test_encoder_tokens(case, tag):
    reference, model = case
    tokens = torch.from_numpy(reference[f'enc_tokens/{tag}'])
    model.backbone.output_cls_token = True
    with torch.no_grad():
        feature_map, cls_token = model.backbone(torch.from_numpy(reference[f'in/{tag}']))[0]
    model.backbone.output_cls_token = False
    assert_close(cls_token, tokens[:, 0], atol=2e-5, rtol=0)
    assert_close(feature_map.flatten(2).transpose(1, 2), tokens[:, 1:], atol=2e-5, rtol=0)


@pytest.mark.parametrize('tag', ['a_2x64x64', 'b_1x80x112'])
def test_lowres_logits_in_float64(case, tag):
    reference, model = case
    model.double()
    with torch.no_grad():
        lowres = model(torch.from_numpy(reference[f'in/{tag}']).double())
    model.float()
    assert_close(lowres, torch.from_numpy(reference[f'lowres_f64/{tag}']), atol=1e-9, rtol=0)


def test_we_differ_where_the_official_code_forgets_to_resize():
    reference = official.load('linear')
    model = official.build('linear', reference)
    ours = predict(model, torch.from_numpy(reference['in/q_1x32x128']))
    theirs = torch.from_numpy(reference['logits/q_1x32x128'])
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() > 1e-2
    # Same image with the embedding used row by row, as there: theirs.
    model.backbone.grid = (2, 8)
    assert_close(predict(model, torch.from_numpy(reference['in/q_1x32x128'])), theirs, atol=1e-4, rtol=0)
