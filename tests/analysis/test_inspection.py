"""Attention, features and classes of a model, and the figures of them."""

import math
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import official
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.models.backbones.vit import VisionTransformer
from PIL import Image
from torch.testing import assert_close

from mmseg_segmenter import SegmenterViT
from mmseg_segmenter.analysis.inspection import (
    attention_distance,
    attention_rollout,
    class_similarity,
    decoder_attention,
    encoder_attention,
    feature_colors,
    feature_similarity,
    figures,
    network_image,
    patch_features,
    uniform_distance,
)
from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.errors import UserError

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'attention_maps.py'
CLASSES = ('car', 'road', 'sky', 'tree', 'wall')


@pytest.fixture(scope='module', params=['linear', 'mask_transformer'])
def model(request):
    init_default_scope('mmseg')
    return official.build(request.param, official.load(request.param))


@pytest.fixture(scope='module')
def mask_model():
    init_default_scope('mmseg')
    return official.build('mask_transformer', official.load('mask_transformer'))


def expected_attention(block, tokens):
    """softmax(q k^T / sqrt(d)) of one block, head by head."""
    layer = block.attn.attn
    x = block.ln1(tokens)
    q, k, _ = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, dim=-1)
    d = q.shape[-1] // layer.num_heads
    heads = zip(q.split(d, dim=-1), k.split(d, dim=-1), strict=True)
    return torch.stack([(one @ other.mT / math.sqrt(d)).softmax(-1) for one, other in heads], dim=1)


def tokens_before(vit, image, layer):
    seen = []
    with vit.layers[layer].register_forward_pre_hook(lambda module, args: seen.append(args[0])), torch.no_grad():
        vit(image)
    return seen[0]


@pytest.mark.parametrize('size', [(64, 64), (80, 112), (50, 33)])
@pytest.mark.parametrize('layer', [0, -1])
def test_attention_of_the_encoder(model, size, layer):
    image = torch.randn(2, 3, *size)
    found = encoder_attention(model, image, layer)
    expected = expected_attention(model.backbone.layers[layer], tokens_before(model.backbone, image, layer))
    assert_close(found, expected, atol=1e-5, rtol=0)
    assert not found.requires_grad
    assert_close(encoder_attention(model, image, layer, query=0), expected[:, :, 0], atol=1e-5, rtol=0)
    assert_close(encoder_attention(model, image, layer, query=[2, -1]), expected[:, :, [2, -1]], atol=1e-5, rtol=0)


def test_attention_of_mmsegs_vit(mask_model):
    ours = mask_model.backbone
    theirs = VisionTransformer(
        img_size=64, patch_size=16, embed_dims=ours.embed_dims if hasattr(ours, 'embed_dims') else 48, num_layers=3,
        num_heads=3, final_norm=True, patch_bias=True, interpolate_mode='bilinear',
    )  # fmt: skip
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.eval()
    image = torch.randn(1, 3, 64, 64)

    class Model:
        backbone = theirs

    assert_close(encoder_attention(Model, image, 1), encoder_attention(mask_model, image, 1), atol=1e-5, rtol=0)


def test_attention_with_registers_and_rope():
    class Model:
        backbone = SegmenterViT(
            img_size=64, patch_size=16, embed_dims=24, num_layers=2, num_heads=3, num_registers=4, rope=dict(base=100)
        ).eval()

    Model.backbone.init_weights()
    image = torch.randn(1, 3, 48, 64)
    weights = encoder_attention(Model, image, 1)
    assert weights.shape == (1, 3, 17, 17)
    seen, layer = [], Model.backbone.layers[1].attn.attn
    with layer.out_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0])), torch.no_grad():
        Model.backbone(image)
    tokens = Model.backbone.layers[1].ln1(tokens_before(Model.backbone, image, 1))
    values = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)[2].unflatten(-1, (3, -1))
    assert_close(torch.einsum('bhnm,bmhd->bnhd', weights, values).flatten(2), seen[0], atol=1e-5, rtol=0)


def test_attention_of_the_decoder(mask_model):
    head, image = mask_model.decode_head, torch.randn(1, 3, 80, 64)
    found = decoder_attention(mask_model, image, 0)
    with torch.no_grad():
        x = head.dec_proj(mask_model.extract_feat(image)[0].flatten(2).mT)
        tokens = torch.cat((x, head.cls_emb), dim=1)
    assert_close(found, expected_attention(head.layers[0], tokens), atol=1e-5, rtol=0)
    K = head.num_classes
    assert found.shape == (1, 3, 20 + K, 20 + K)


def test_a_head_without_attention_is_refused():
    linear = official.build('linear', official.load('linear'))
    with pytest.raises(UserError, match=r'LinearHead has no self-attention; expected SegmenterMaskTransformerHead'):
        decoder_attention(linear, torch.randn(1, 3, 64, 64))
    with pytest.raises(UserError, match=r'layer=3; expected 0 to 2, or -1 for the last: the encoder has 3'):
        encoder_attention(linear, torch.randn(1, 3, 64, 64), 3)


def test_the_model_stays_as_it_is(model):
    """No hook is left, also after an error; the fused path computes the same."""
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model.backbone(image)[0]
    encoder_attention(model, image, 1)
    patch_features(model, image, 1)
    with pytest.raises(Exception, match='channels'):
        encoder_attention(model, torch.randn(1, 7, 64, 64), 1)
    parts = [*model.backbone.modules(), *model.decode_head.modules()]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    with torch.no_grad():
        assert torch.equal(model.backbone(image)[0], before)


def test_rollout_is_the_product_of_the_layers(model):
    image = torch.randn(1, 3, 64, 80)
    expected = torch.eye(21)
    for layer in range(2):
        mean = encoder_attention(model, image, layer)[0].mean(dim=0)
        expected = (mean + torch.eye(21)) / 2 @ expected
    assert_close(attention_rollout(model, image, 1)[0], expected, atol=1e-5, rtol=0)
    assert_close(attention_rollout(model, image, 1, query=5)[0], expected[5], atol=1e-5, rtol=0)
    assert_close(expected.sum(-1), torch.ones(21))


def test_features_similarity_and_colours(model):
    image = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        assert_close(patch_features(model, image), model.backbone(image)[0], atol=1e-6, rtol=0)
    features = patch_features(model, image, 0)
    assert_close(features.flatten(2).mT, tokens_before(model.backbone, image, 1)[:, 1:], atol=1e-6, rtol=0)
    similarity = feature_similarity(features, 1, 2)
    assert similarity.shape == (1, 4, 5) and similarity[0, 1, 2].item() == pytest.approx(1, abs=1e-5)
    other = F.cosine_similarity(features[0, :, 0, 0], features[0, :, 1, 2], dim=0)
    assert similarity[0, 0, 0].item() == pytest.approx(other.item(), abs=1e-5)
    # two kinds of patches get two colours
    halves = torch.zeros(1, 6, 4, 4)
    halves[:, 2, :, 2:] = 3.0
    colors = feature_colors(halves)
    assert colors.shape == (1, 4, 4, 3) and colors.min() >= 0 and colors.max() <= 1
    assert torch.equal(colors[0, :, :2, 0], torch.full((4, 2), colors[0, 0, 0, 0].item()))
    assert (colors[0, 0, 0, 0] - colors[0, 0, 3, 0]).abs() == 1


def test_distance_of_uniform_attention(mask_model):
    """A layer whose queries are 0 looks at all patches alike."""
    model = official.build('linear', official.load('linear'))
    layer = model.backbone.layers[1].attn.attn
    with torch.no_grad():
        C = layer.in_proj_weight.shape[1]
        layer.in_proj_weight[:C] = 0
        layer.in_proj_bias[:C] = 0
    distances = attention_distance(model, torch.randn(2, 3, 64, 80))
    assert distances.shape == (2, 3, 3)
    assert_close(distances[:, 1], torch.full((2, 3), uniform_distance((4, 5), 16)), atol=1e-3, rtol=0)


def test_class_similarity(mask_model):
    matrix = class_similarity(mask_model)
    K = mask_model.decode_head.num_classes
    assert matrix.shape == (K, K)
    assert_close(matrix.diagonal(), torch.ones(K))
    embeddings = mask_model.decode_head.cls_emb[0]
    assert matrix[0, 1].item() == pytest.approx(F.cosine_similarity(embeddings[0], embeddings[1], dim=0).item())


# Figures and the command


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config, a checkpoint and an image."""
    folder = tmp_path_factory.mktemp('model')
    init_default_scope('mmseg')
    transforms = [
        dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64), keep_ratio=True),
        dict(type='PackSegInputs'),
    ]  # fmt: skip
    model = dict(
        type='Segmenter',
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=dict(
            type='SegmenterViT', img_size=32, patch_size=16, embed_dims=24, num_layers=2, num_heads=3, final_norm=True
        ),
        decode_head=dict(
            type='SegmenterMaskTransformerHead', in_channels=24, embed_dims=24, num_heads=3, num_layers=1, num_classes=5
        ),
        test_cfg=dict(mode='whole'),
    )
    cfg = Config(dict(default_scope='mmseg', model=model, test_dataloader=dict(dataset=dict(pipeline=transforms))))
    cfg.custom_imports = dict(imports=['mmseg_segmenter'], allow_failed_imports=False)
    cfg.dump(folder / 'model.py')
    from mmseg.registry import MODELS

    built = MODELS.build(model)
    built.init_weights()
    meta = dict(dataset_meta=dict(classes=CLASSES, palette=[[i, i, i] for i in range(5)]))
    torch.save(dict(state_dict=built.state_dict(), meta=meta), folder / 'model.pth')
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (70, 120, 3), dtype=np.uint8)).save(folder / 'image.png')
    return folder


@pytest.fixture
def tool(folder, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(
            sys,
            'argv',
            ['attention_maps.py', str(folder / 'model.py'), str(folder / 'model.pth'), *map(str, arguments)],
        )
        runpy.run_path(str(TOOL), run_name='__main__')
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    'options',
    [
        ['--patch', '3,60', '--layer', '0', '--head', 'all'],
        ['--cls', '--head', '2'],
        ['--cls', '--rollout'],
        ['--class', 'sky'],
        ['--class', 'sky', '--rollout'],
        ['--similarity', '119,69', '--layer', '0'],
        ['--pca'],
    ],
)
def test_every_figure_is_drawn(folder, tool, tmp_path, options):
    tool(folder / 'image.png', '--out', tmp_path / 'new' / 'a.png', *options)
    with Image.open(tmp_path / 'new' / 'a.png') as picture:
        pixels = np.asarray(picture.convert('RGB'))
    assert picture.width > 500 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


def test_distances_and_classes_are_plotted(folder, tool, tmp_path):
    out = tool(folder / 'image.png', '--out', tmp_path / 'a.svg', '--distance')
    assert 'layer  1:' in out and (tmp_path / 'a.svg').read_text().startswith('<?xml')
    tool('--out', tmp_path / 'b.png', '--class-similarity')
    assert (tmp_path / 'b.png').stat().st_size > 5000


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--patch', '120,3'], 'pixel 120,3 is outside .*image.png; expected x from 0 to 119 and y from 0 to 69'),
        (['--cls', '--layer', '2'], 'layer=2; expected 0 to 1'),
        (['--cls', '--head', '3'], 'head=3; expected 0 to 2, mean or all'),
        (['--cls', '--head', '1', '--rollout'], 'head=1 with rollout'),
        (['--class', 'Sky '], "no class 'Sky '; expected 'sky'"),
        (['--class', 'xyz'], "no class 'xyz'; expected one of car, road, sky, tree, wall"),
    ],
)
def test_wrong_options_are_one_line(folder, tool, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message) as end:
        tool(folder / 'image.png', '--out', tmp_path / 'a.png', *options)
    assert '\n' not in end.value.code and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['x.png', '--out', 'a.png', '--cls'], 'x.png not found'),
        (['x.png', '--out', 'a.txt', '--cls'], 'out=a.txt; expected a name that ends in .png'),
    ],
)
def test_wrong_files_are_one_line(tool, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        tool(*arguments)


@pytest.mark.parametrize('arguments', [['--cls'], ['a.png', 'b.png', '--cls'], ['a.png', '--pca', '--rollout']])
def test_usage_errors(tool, arguments):
    with pytest.raises(SystemExit) as end:
        tool('--out', 'a.png', *arguments)
    assert end.value.code == 2


def test_help_has_examples():
    text = subprocess.run([sys.executable, TOOL, '--help'], capture_output=True, text=True, check=True).stdout
    assert 'attention_maps.py CONFIG CHECKPOINT street.jpg --out a.png --patch 300,220' in text


def test_pixels_and_patches_fit_together(folder):
    """Also where the network gets a resized and padded image."""
    predictor = Predictor(folder / 'model.py', folder / 'model.pth')
    seen = network_image(predictor, folder / 'image.png')  # 120x70 pixels, resized to 96x56: 4x6 patches
    assert seen.grid == (4, 6) and seen.inputs.shape[2:] == (56, 96)
    for x, y in ((0, 0), (119, 69), (61, 33)):
        box = seen.box_of(seen.patch_at(x, y))
        assert box.left <= x + 0.5 <= box.left + box.width and box.top <= y + 0.5 <= box.top + box.height
    maps = torch.zeros(1, 4, 6)
    maps[0, 1, 4] = 1
    y, x = divmod(int(seen.on_image(maps).argmax()), 120)
    assert seen.patch_at(x, y) == (1, 4)
    assert figures.class_number(CLASSES, 'tree') == 3
