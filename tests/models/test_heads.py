import inspect
import logging

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.models.decode_heads import FCNHead
from mmseg.models.decode_heads.segmenter_mask_head import SegmenterMaskTransformerHead as MMSegMaskHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch.testing import assert_close

from mmseg_segmenter import LinearHead, SegmenterMaskTransformerHead
from mmseg_segmenter.errors import UserError
from mmseg_segmenter.models.decode_heads import mask_transformer_head

MASK = dict(in_channels=24, embed_dims=16, num_heads=2, num_layers=2, num_classes=5)


def samples(count, size, num_classes):
    out = []
    for _ in range(count):
        labels = torch.randint(0, num_classes, (1, *size))
        labels[:, :3] = 255
        out.append(SegDataSample(gt_sem_seg=PixelData(data=labels)))
    return out


@pytest.mark.parametrize('kwargs', [dict(), dict(num_layers=1, qkv_bias=False, norm_cfg=dict(type='LN', eps=1e-6))])
@pytest.mark.parametrize('grid', [(4, 4), (3, 7)])
def test_mask_head_equals_mmseg(kwargs, grid):
    theirs = MMSegMaskHead(channels=16, **{**MASK, **kwargs})
    ours = SegmenterMaskTransformerHead(channels=16, **{**MASK, **kwargs})
    for param in theirs.parameters():
        torch.nn.init.normal_(param, std=0.3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ours.double().eval()
    theirs.double().eval()
    feats = [(torch.randn(2, 24, *grid, dtype=torch.float64),)]
    feats.append(tuple(f.clone().requires_grad_() for f in feats[0]))
    feats[0][0].requires_grad_()
    data = samples(2, (16 * grid[0], 16 * grid[1]), 5)
    assert_close(ours(feats[0]), theirs(feats[1]), atol=1e-10, rtol=0)
    losses = [head.loss(f, data, {}) for head, f in ((ours, feats[0]), (theirs, feats[1]))]
    assert losses[0].keys() == losses[1].keys()
    for key in losses[0]:
        assert_close(losses[0][key], losses[1][key], atol=1e-10, rtol=0)
    for loss in losses:
        loss['loss_ce'].backward()
    assert_close(feats[0][0].grad, feats[1][0].grad, atol=1e-10, rtol=1e-9)
    reference = dict(theirs.named_parameters())
    for name, param in ours.named_parameters():
        assert_close(param.grad, reference[name].grad, atol=1e-10, rtol=1e-9)


def test_mask_head_float32_equals_mmseg():
    ours, theirs = SegmenterMaskTransformerHead(**MASK), MMSegMaskHead(channels=16, **MASK)
    ours.init_weights()
    theirs.load_state_dict(ours.state_dict())
    ours.eval()
    theirs.eval()
    feats = (torch.randn(2, 24, 5, 7),)
    one, other = ours(feats), theirs(feats)
    assert_close(one, other, atol=1e-5, rtol=0)
    one.square().mean().backward()
    other.square().mean().backward()
    reference = dict(theirs.named_parameters())
    for name, param in ours.named_parameters():
        assert_close(param.grad, reference[name].grad, atol=1e-5, rtol=0)


def test_linear_head_equals_fcn_head_without_convs():
    theirs = FCNHead(in_channels=24, channels=24, num_convs=0, concat_input=False, dropout_ratio=0.0, num_classes=5)
    ours = LinearHead(in_channels=24, num_classes=5)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    feats = (torch.randn(2, 24, 3, 4),)
    assert_close(ours(feats), theirs(feats), atol=1e-6, rtol=0)


@pytest.mark.parametrize('training', [True, False])
def test_linear_head_of_dinov2_and_dinov3(training):
    """Concatenated maps, Dropout2d, batch norm, 1x1 convolution: against the formula, with the same dropout mask."""
    head = LinearHead(
        in_channels=[3, 3],
        in_index=[0, 2],
        input_transform='resize_concat',
        num_classes=5,
        dropout_ratio=0.4,
        norm_cfg=dict(type='BN'),
    ).double()
    for tensor in (*head.parameters(), *head.buffers()):
        if tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.5, 2)
    maps = [torch.randn(4, 3, 2, 5, dtype=torch.float64) for _ in range(3)]
    mean, var = head.bn.running_mean.clone(), head.bn.running_var.clone()
    torch.manual_seed(3)
    logits = head.train(training)(tuple(maps))

    x = torch.cat((maps[0], maps[2]), dim=1)  # (B, C, h, w)
    if training:
        torch.manual_seed(3)
        kept = torch.empty(4, 6, 1, 1, dtype=torch.float64).bernoulli_(0.6)  # whole channels
        assert 0 < kept.mean() < 1
        x = x * kept / 0.6
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    gain = head.bn.weight / (var + 1e-5).sqrt()
    x = (x - mean[:, None, None]) * gain[:, None, None] + head.bn.bias[:, None, None]
    expected = torch.einsum('kc,bchw->bkhw', head.conv_seg.weight[..., 0, 0], x) + head.conv_seg.bias[:, None, None]
    assert_close(logits, expected, atol=1e-12, rtol=0)
    # the keys of DINOv2's released heads
    assert {'conv_seg.weight', 'conv_seg.bias', 'bn.weight', 'bn.bias', 'bn.running_mean'} < head.state_dict().keys()


@pytest.mark.parametrize('kwargs', [dict(in_channels=[3, 3]), dict(in_channels=6, input_transform='resize_concat')])
def test_linear_head_of_several_maps_needs_their_concatenation(kwargs):
    with pytest.raises(UserError, match=r"in_channels=.* input_transform=.*expected .* a list with 'resize_concat'"):
        LinearHead(num_classes=5, **kwargs)


def test_official_initialisation():
    head = SegmenterMaskTransformerHead(in_channels=64, embed_dims=256, num_heads=4, num_layers=1, num_classes=150)
    head.init_weights()
    for weight in (head.patch_proj.weight, head.classes_proj.weight):
        assert weight.std().item() == pytest.approx(256**-0.5, rel=0.03)
    for weight in (head.cls_emb, head.dec_proj.weight, head.layers[0].attn.attn.in_proj_weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    linear = LinearHead(in_channels=256, num_classes=150)
    linear.init_weights()
    assert linear.conv_seg.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not linear.conv_seg.bias.any()


def test_arguments_reach_the_modules():
    """Each at a value other than the default."""
    head = SegmenterMaskTransformerHead(
        **{**MASK, 'num_layers': 3}, mlp_ratio=2, drop_rate=0.1, attn_drop_rate=0.2, drop_path_rate=0.3, num_fcs=3,
        act_cfg=dict(type='ReLU'), norm_cfg=dict(type='LN', eps=1e-3), init_std=0.5,
    )  # fmt: skip
    assert [getattr(layer.drop_path, 'drop_prob', 0.0) for layer in head.layers] == pytest.approx([0.0, 0.15, 0.3])
    for layer in head.layers:
        assert layer.attn.attn.attn_drop_rate == 0.2 and layer.attn.proj_drop.p == 0.1
        assert [m.p for m in layer.ffn.modules() if isinstance(m, torch.nn.Dropout)] == [0.1] * 3
        assert [m.out_features for m in layer.ffn.modules() if isinstance(m, torch.nn.Linear)] == [32, 32, 16]
        assert any(isinstance(m, torch.nn.ReLU) for m in layer.ffn.modules())
        assert layer.ln1.eps == head.decoder_norm.eps == head.mask_norm.eps == 1e-3
    head.init_weights()
    assert head.dec_proj.weight.std().item() == pytest.approx(0.5, rel=0.15)
    given = SegmenterMaskTransformerHead(**MASK, init_cfg=dict(type='Constant', layer='Linear', val=0.5))
    given.init_weights()
    assert (given.dec_proj.weight == 0.5).all()
    assert LinearHead(in_channels=24, num_classes=5, dropout_ratio=0.3).dropout.p == 0.3


@pytest.mark.parametrize('build', [lambda **k: SegmenterMaskTransformerHead(**{**MASK, **k}),
                                   lambda **k: LinearHead(**{'in_channels': 24, 'num_classes': 5, **k})])  # fmt: skip
@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(num_classes=1), 'num_classes=1, expected at least 2; for binary segmentation set num_classes=2'),
        (dict(num_classes=2, out_channels=1), 'out_channels=1 differs from num_classes=2; leave out_channels out'),
        (dict(num_classes=None), 'num_classes is not set'),
    ],
)
def test_wrong_class_counts(build, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_linear_head_refuses_other_channels():
    with pytest.raises(ValueError, match='channels=48 differs from in_channels=24'):
        LinearHead(in_channels=24, channels=48, num_classes=5)


def test_two_classes_do_not_recommend_what_is_refused(recwarn):
    SegmenterMaskTransformerHead(**{**MASK, 'num_classes': 2})
    assert not [w for w in recwarn if 'out_channels = 1' in str(w.message)]


def test_replaces_mmsegs_class_and_keeps_its_defaults():
    assert MODELS.get('SegmenterMaskTransformerHead') is SegmenterMaskTransformerHead
    ours, theirs = (inspect.signature(c.__init__).parameters for c in (SegmenterMaskTransformerHead, MMSegMaskHead))
    for name, param in theirs.items():
        if name not in ('self', 'kwargs', 'act_cfg', 'norm_cfg'):  # None there means mmseg's default
            assert ours[name].default == param.default, name


def test_says_once_what_it_replaces(capture_log):
    mask_transformer_head._say_what_is_replaced.cache_clear()
    for _ in range(2):
        SegmenterMaskTransformerHead(**MASK)
    said = [r.getMessage() for r in capture_log if r.levelno == logging.INFO]
    assert len(said) == 1 and "in place of mmseg's" in said[0]


def test_mask_head_exports_and_compiles():
    head = SegmenterMaskTransformerHead(**MASK).eval()
    feats = (torch.randn(1, 24, 4, 5),)
    with torch.no_grad():
        expected = head(feats)
        assert_close(torch.compile(head, backend='aot_eager', fullgraph=True)(feats), expected, atol=1e-5, rtol=0)
        assert_close(torch.export.export(head, (feats,), strict=False).module()(feats), expected, atol=1e-5, rtol=0)
