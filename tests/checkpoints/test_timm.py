"""Against timm itself, where it can be imported.

timm is no test dependency, because it would install torchvision, of which not every torch has a build:
``pip install --no-deps timm huggingface_hub safetensors``. Elsewhere the forward passes in verify.py stand in for it.
"""

from pathlib import Path

import pytest
import torch
from fake_torchvision import fake_torchvision
from mmseg.registry import MODELS
from torch.testing import assert_close

from mmseg_segmenter import SegmenterViT
from mmseg_segmenter.checkpoints import convert
from mmseg_segmenter.checkpoints.formats import timm as layout

with fake_torchvision():
    timm = pytest.importorskip('timm', exc_type=ImportError)

NPZ = Path(__file__).parents[1] / 'data' / 'augreg_tiny_i21k.npz'
EPS = dict(norm_cfg=dict(type='LN', eps=1e-6))


def random(model):
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.2)
    return model.eval()


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'deit_tiny_distilled_patch16_224'])
def test_round_trip_gives_equal_tokens(tmp_path, name):
    theirs = random(timm.create_model(name, depth=3, img_size=64, num_classes=5))
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    result = convert.convert_encoder(str(tmp_path / 'timm.pth'), str(tmp_path / 'ours.pth'), verify=True)
    assert f'{type(theirs).__name__} of timm {timm.__version__}' in result.verified.reference
    distilled = 'distilled' in name
    ours = SegmenterViT(
        img_size=64, embed_dims=192, num_layers=3, num_heads=3, with_dist_token=distilled, final_norm=True,
        output_cls_token=True, **EPS, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'ours.pth')),
    )  # fmt: skip
    ours.init_weights()
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        tokens = theirs.double().forward_features(image)
        feature_map, cls_token = ours.double().eval()(image)[0]
    assert tokens.abs().max() > 1
    assert_close(cls_token, tokens[:, 0], atol=1e-12, rtol=0)
    patches = tokens[:, 2 if distilled else 1 :]
    assert_close(feature_map.flatten(2).transpose(1, 2), patches, atol=1e-12, rtol=0)
    again = layout.from_mmseg(torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict'])
    original = torch.load(tmp_path / 'timm.pth', weights_only=True)
    assert {key for key in original if not key.startswith('head')} == again.keys()
    assert all(torch.equal(again[key], original[key]) for key in again)


def test_npz_as_timms_own_loader_reads_it(tmp_path):
    theirs = random(
        timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0
        )
    )
    theirs.load_pretrained(str(NPZ))
    result = convert.convert_encoder(str(NPZ), str(tmp_path / 'ours.pth'), verify=True)
    assert 'VisionTransformer of timm' in result.verified.reference
    ours = layout.from_mmseg(result.conversion.state_dict)
    assert ours.keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours[key], value) for key, value in theirs.state_dict().items())


def test_absent_qkv_bias_gives_equal_tokens(tmp_path):
    """The written zeros make up for it in a SegmenterViT with default arguments."""
    theirs = random(timm.create_model('vit_tiny_patch16_224', depth=3, img_size=64, num_classes=0, qkv_bias=False))
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    result = convert.convert_encoder(str(tmp_path / 'timm.pth'), str(tmp_path / 'ours.pth'), verify=True)
    assert 'qkv bias absent: written as 0' in str(result) and 'of timm' in result.verified.reference
    ours = SegmenterViT(
        img_size=64, embed_dims=192, num_layers=3, num_heads=3, final_norm=True, **EPS,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'ours.pth')),
    )  # fmt: skip
    ours.init_weights()
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        tokens = theirs.double().forward_features(image)[:, 1:]
        feature_map = ours.double().eval()(image)[0]
    assert tokens.abs().max() > 1
    assert_close(feature_map.flatten(2).transpose(1, 2), tokens, atol=1e-12, rtol=0)


def test_position_embedding_without_a_row_for_the_class_token():
    """FlexiViT."""
    theirs = random(timm.create_model('flexivit_small', depth=2, img_size=64)).double()
    encoder = convert.to_encoder('timm', theirs.state_dict())
    assert encoder.backbone['cls_pos_embed'] is False
    ours = MODELS.build(encoder.backbone).double().eval()
    ours.load_state_dict(encoder.conversion.state_dict, strict=True)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        tokens = theirs.forward_features(image)[:, 1:]
        feature_map = ours(image)[0]
    assert tokens.abs().max() > 1
    assert_close(feature_map.flatten(2).transpose(1, 2), tokens, atol=1e-11, rtol=0)


@pytest.mark.parametrize(
    ('name', 'prefix', 'atol'),
    [
        ('vit_small_patch14_dinov2', 1, 1e-11),
        ('vit_small_patch14_reg4_dinov2', 5, 1e-11),
        ('deit3_small_patch16_224', 1, 1e-11),
        ('vit_small_patch16_dinov3', 5, 1e-4),  # timm computes the angles in float32
        ('vit_small_patch16_dinov3_qkvb', 5, 1e-4),
        ('vit_small_plus_patch16_dinov3', 5, 1e-4),
    ],
)
def test_newer_models(name, prefix, atol):
    """At the size of the position embedding; timm resizes others in its own way."""
    size = 70 if 'patch14' in name else 64
    options = {} if 'dinov3' in name else dict(img_size=size)
    theirs = random(timm.create_model(name, depth=2, **options)).double()
    encoder = convert.to_encoder('timm', theirs.state_dict())
    ours = MODELS.build(dict(encoder.backbone, output_cls_token=True)).double().eval()
    ours.load_state_dict(encoder.conversion.state_dict, strict=True)
    image = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        tokens = theirs.forward_features(image)
        feature_map, cls_token = ours(image)[0]
    assert tokens.abs().max() > 1
    assert_close(feature_map.flatten(2).transpose(1, 2), tokens[:, prefix:], atol=atol, rtol=0)
    assert_close(cls_token, tokens[:, 0], atol=atol, rtol=0)
