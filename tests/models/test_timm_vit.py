"""Heads on ViTs of timm; skipped where timm cannot be imported (see checkpoints/test_timm.py)."""

import sys

import pytest
import torch
from evil import Evil
from fake_torchvision import fake_torchvision
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch.testing import assert_close

from mmseg_segmenter import SegmenterViT, TimmViT
from mmseg_segmenter.errors import MissingPackageError, UserError

with fake_torchvision():
    try:
        import timm
    except ImportError:
        timm = None
needs_timm = pytest.mark.skipif(timm is None, reason='no timm')
SMALL = dict(embed_dim=32, depth=3, num_heads=2)
NAMES = {
    'vit_tiny_patch16_224': 1,
    'eva02_tiny_patch14_224': 1,
    'beit_base_patch16_224': 1,
    'vit_base_patch16_siglip_224': 0,
    'vit_small_patch16_dinov3': 5,
}


def build(name='vit_tiny_patch16_224', **kwargs):
    return TimmViT(name, **{'img_size': 64, **SMALL, **kwargs})


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(MissingPackageError, match=r"^TimmViT needs timm .*pip install 'mmseg_segmenter\[timm\]'$"):
        TimmViT('vit_tiny_patch16_224')


@needs_timm
@pytest.mark.parametrize('name', NAMES)
def test_outputs_are_timms(name):
    model = build(name, out_indices=(0, 2)).eval()
    size = (64, 64) if 'beit' in name else (50, 70)
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        first, last = model(image)
        patch = model.patch_size
        padded = torch.zeros(2, 3, *(-(-side // patch) * patch for side in size))
        padded[:, :, : size[0], : size[1]] = image
        tokens = model.vit.forward_features(padded)[:, NAMES[name] :]
    assert model.num_prefix_tokens == NAMES[name] and model.embed_dims == 32 and model.num_layers == 3
    assert first.shape == last.shape == (2, 32, *(side // patch for side in padded.shape[2:]))
    assert_close(last.flatten(2).transpose(1, 2), tokens) and last.is_contiguous()
    assert not torch.equal(first, last)


@needs_timm
def test_outputs_are_those_of_our_vit():
    """With the weights of a ViT that both can compute, norms and class tokens too."""
    theirs = build(out_indices=(1, 2), norm_outputs=True, output_cls_token=True).eval()
    from mmseg_segmenter.checkpoints.formats import timm as layout

    ours = SegmenterViT(
        img_size=64, embed_dims=32, num_layers=3, num_heads=2, final_norm=True, norm_cfg=dict(type='LN', eps=1e-6),
        out_indices=(1, 2), norm_outputs=True, output_cls_token=True,
    ).eval()  # fmt: skip
    ours.load_state_dict(layout.to_mmseg(theirs.vit.state_dict()).state_dict)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_close(theirs(image), tuple(ours(image)), atol=1e-5, rtol=0)


@needs_timm
@pytest.mark.parametrize('head', ['LinearHead', 'SegmenterMaskTransformerHead'])
@pytest.mark.parametrize('name', ['eva02_tiny_patch14_224', 'beit_base_patch16_224'])
def test_segmenter(name, head):
    """A step with layer-wise decay changes every parameter; windows are the only way for BEiT."""
    parts = dict(num_layers=1, num_heads=2, embed_dims=32) if head != 'LinearHead' else {}
    model = MODELS.build(
        dict(
            type='Segmenter',
            data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
            backbone=dict(type='TimmViT', model_name=name, img_size=64, **SMALL),
            decode_head=dict(type=head, in_channels=32, num_classes=4, **parts),
            test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(48, 48), upscale_small=True),
        )
    )
    before = {key: value.detach().clone() for key, value in model.backbone.named_parameters()}
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.named_parameters())
    wrapper = build_optim_wrapper(
        model,
        ConfigDict(
            dict(
                optimizer=dict(type='AdamW', lr=0.1, weight_decay=0),
                constructor='ViTLayerDecayOptimWrapperConstructor',
                paramwise_cfg=dict(decay_rate=0.5),
            )
        ),
    )
    rates = {id(group['params'][0]): group['lr'] for group in wrapper.param_groups}
    rate = {name: rates[id(value)] for name, value in model.backbone.named_parameters()}
    assert rate['vit.patch_embed.proj.weight'] == 0.1 * 0.5**4 and rate['vit.blocks.2.attn.proj.weight'] == 0.1 * 0.5
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 4, (1, 64, 64))))
    sample.set_metainfo(dict(ori_shape=(64, 64), img_shape=(64, 64), pad_shape=(64, 64)))
    data = dict(inputs=[torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)] * 2, data_samples=[sample] * 2)
    assert torch.isfinite(model.train_step(data, wrapper)['loss'])
    same = [key for key, value in model.backbone.named_parameters() if torch.equal(value, before[key])]
    assert not [key for key in same if 'cls_token' not in key]
    model.eval()
    image = torch.randint(0, 256, (3, 50, 120), dtype=torch.uint8)
    sample.set_metainfo(dict(ori_shape=(50, 120), img_shape=(50, 120), pad_shape=(50, 120)))
    (result,) = model.test_step(dict(inputs=[image], data_samples=[sample]))
    assert result.pred_sem_seg.data.shape == (1, 50, 120)


@needs_timm
def test_frozen():
    model = build(drop_path_rate=0.5, frozen_exclude=[]).train()
    assert not model.vit.training and not model(torch.randn(1, 3, 64, 64))[0].requires_grad


@needs_timm
def test_file(tmp_path):
    """Of another grid; timm resizes its position embedding."""
    source = build(img_size=96)
    torch.save(source.vit.state_dict(), tmp_path / 'vit.pth')
    model = build(checkpoint_path=str(tmp_path / 'vit.pth'))
    assert torch.equal(model.vit.blocks[1].attn.qkv.weight, source.vit.blocks[1].attn.qkv.weight)
    assert model.vit.pos_embed.shape == (1, 17, 32)
    torch.save(Evil(tmp_path / 'canary'), tmp_path / 'evil.pth')
    with pytest.raises(UserError, match='timm cannot make vit_tiny_patch16_224: '):
        build(checkpoint_path=str(tmp_path / 'evil.pth'))
    assert not (tmp_path / 'canary').exists()


@needs_timm
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            dict(model_name='vit_tyni_patch16_224'),
            "no model 'vit_tyni_patch16_224'; nearest: vit_tiny_patch16_224,",
        ),
        (dict(model_name='resnet18', img_size=None), r'resnet18 \(ResNet\) is not a plain ViT'),
        (dict(model_name='hiera_tiny_224'), r'hiera_tiny_224 \(Hiera\) is not a plain ViT'),
        (dict(embed_dims=32), "timm cannot make vit_tiny_patch16_224: .*'embed_dims'"),
        (dict(checkpoint_path='none.pth'), r'^none.pth not found \(working directory: '),
        (dict(out_indices=3), 'no layer 3'),
        (dict(pretrained='vit.pth'), r"pretrained='vit.pth'; expected True or False \(a file: checkpoint_path\)"),
        (dict(model_name='vit_base_patch16_siglip_224', output_cls_token=True), 'has no class token'),
    ],
)
def test_wrong_arguments(arguments, message):
    small = {} if arguments.get('model_name', 'vit')[:3] in ('res', 'hie') else SMALL
    with pytest.raises(UserError, match=message) as error:
        TimmViT(**{'model_name': 'vit_tiny_patch16_224', 'img_size': 64, **small, **arguments})
    assert '\n' not in str(error.value)


@needs_timm
def test_size_that_beit_cannot_take():
    with pytest.raises(
        UserError, match=r'Beit takes images of \(64, 64\) pixels only, found \(64, 80\); set img_size, '
    ):
        build('beit_base_patch16_224')(torch.randn(1, 3, 64, 80))
