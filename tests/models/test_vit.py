import io
import logging
from collections import OrderedDict

import pytest
import torch
from mmseg.models.backbones.vit import VisionTransformer
from torch.testing import assert_close

from mmseg_segmenter import SegmenterViT
from mmseg_segmenter.errors import UserError
from mmseg_segmenter.models.layers import Rope, apply_rope

TINY = dict(img_size=64, patch_size=16, embed_dims=24, num_layers=3, num_heads=3)


def pair(**kwargs):
    """Our ViT and mmseg's with the same arguments and random weights."""
    ours, theirs = SegmenterViT(**TINY, **kwargs), VisionTransformer(**TINY, **{'patch_bias': True, **kwargs})
    for param in theirs.parameters():
        torch.nn.init.normal_(param, std=0.3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.eval()  # mmseg's train() returns None
    return ours.double().eval(), theirs.double()


def flatten(outputs):
    return [t for out in outputs for t in (out if isinstance(out, list) else [out])]


@pytest.mark.parametrize('size', [(64, 64), (80, 112), (72, 100), (32, 48)])
@pytest.mark.parametrize(
    'kwargs',
    [
        dict(final_norm=True),
        dict(out_indices=(0, 1, 2), norm_cfg=dict(type='LN', eps=1e-6)),
        dict(out_indices=[0, 2], final_norm=True, output_cls_token=True, interpolate_mode='bilinear'),
        dict(with_cls_token=False, qkv_bias=False, num_fcs=3, mlp_ratio=2),
        dict(out_origin=True, pre_norm=True, patch_norm=True, act_cfg=dict(type='ReLU')),
    ],
)
def test_forward_and_gradients_equal_mmseg(size, kwargs):
    ours, theirs = pair(**kwargs)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    outputs = [flatten(model(image)) for model in (ours, theirs)]
    for one, other in zip(*outputs, strict=True):
        assert one.shape == other.shape and one.is_contiguous() == other.is_contiguous()
        assert_close(one, other, atol=1e-10, rtol=0)
    for outs in outputs:
        sum(
            (out * torch.linspace(-1, 1, out.shape[1]).view(-1, *[1] * (out.ndim - 2))).sum() for out in outs
        ).backward()
    reference = dict(theirs.named_parameters())
    for name, param in ours.named_parameters():
        assert_close(param.grad, reference[name].grad, atol=1e-9, rtol=1e-9, msg=lambda m, name=name: f'{name}: {m}')


def test_float32_forward_and_gradients_equal_mmseg():
    ours, theirs = pair(final_norm=True)
    ours.init_weights()
    theirs.load_state_dict(ours.state_dict())
    ours.float()
    theirs.float()
    image = torch.randn(2, 3, 80, 96)
    (one,), (other,) = ours(image), theirs(image)
    assert_close(one, other, atol=1e-5, rtol=0)
    one.square().mean().backward()
    other.square().mean().backward()
    reference = dict(theirs.named_parameters())
    for name, param in ours.named_parameters():
        assert_close(param.grad, reference[name].grad, atol=1e-5, rtol=0)


def test_negative_out_indices_count_from_the_end():
    model = SegmenterViT(**TINY, out_indices=(-3, -1))
    assert model.out_indices == [0, 2]


def test_image_of_any_size_is_padded_at_the_corner():
    model = SegmenterViT(**TINY).eval()
    model.init_weights()
    image = torch.randn(1, 3, 50, 33)
    padded = torch.zeros(1, 3, 64, 48)
    padded[..., :50, :33] = image
    assert model(image)[0].shape == (1, 24, 4, 3)
    assert torch.equal(model(image)[0], model(padded)[0])


@pytest.mark.parametrize(
    ('size', 'padding'), [((28, 42), (0, 0, 0, 0)), ((32, 39), (1, 2, 5, 5)), ((1, 17), (5, 6, 6, 7))]
)
def test_padding_on_all_sides_is_dinov2s(size, padding):
    """DINOv2's CenterPadding to a multiple of the patch size, the larger half behind the image."""
    vit = SegmenterViT(img_size=28, patch_size=14, patch_pad='same', embed_dims=16, num_layers=1, num_heads=2).eval()
    image = torch.randn(2, 3, *size)
    (output,) = vit(image)
    (padded,) = vit(torch.nn.functional.pad(image, padding))
    assert output.shape[2:] == (-(-size[0] // 14), -(-size[1] // 14)) and torch.equal(output, padded)


def test_equal_counts_on_another_grid_are_resized():
    model = SegmenterViT(**TINY).eval()
    model.init_weights()
    wide = model(torch.zeros(1, 3, 32, 128))[0]
    square = model(torch.zeros(1, 3, 64, 64))[0]
    assert not torch.allclose(wide.flatten(2), square.flatten(2), atol=1e-4)


def test_dist_token():
    model = SegmenterViT(**TINY, with_dist_token=True, final_norm=True, output_cls_token=True)
    assert model.dist_token.shape == (1, 1, 24) and model.pos_embed.shape == (1, 18, 24)
    model.init_weights()
    feature_map, cls_token = model(torch.randn(2, 3, 80, 64))[0]
    assert feature_map.shape == (2, 24, 5, 4) and cls_token.shape == (2, 24)
    keys = set(model.state_dict()) - set(SegmenterViT(**TINY, final_norm=True).state_dict())
    assert keys == {'dist_token'}


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(img_size=100), r'img_size=\(100, 100\) is not a multiple of patch_size=16'),
        (dict(img_size=(64, 70)), r'\(64, 70\) is not a multiple'),
        (dict(img_size=(64, 64, 64)), 'expected one or two numbers'),
        (dict(out_indices=3), 'out_indices=3 with num_layers=3'),
        (dict(interpolate_mode='bicubicc'), "interpolate_mode='bicubicc'; expected 'bicubic' or 'bilinear'"),
        (dict(drop_path_rate=-0.5), 'drop_path_rate=-0.5; expected at least 0'),
        (dict(output_cls_token=True, with_cls_token=False), 'need with_cls_token=True'),
        (dict(pretrained='a.pth', init_cfg=dict(type='Pretrained', checkpoint='b.pth')), 'not both'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SegmenterViT(**{**TINY, **kwargs})


def test_arguments_of_a_wrong_type():
    with pytest.raises(TypeError, match="frozen_exclude='pos_embed'; expected a list"):
        SegmenterViT(**TINY, frozen_exclude='pos_embed')


def test_unknown_argument_is_a_type_error():
    with pytest.raises(TypeError, match='patch_sise'):
        SegmenterViT(patch_sise=16)


def test_official_initialisation():
    model = SegmenterViT(img_size=64, patch_size=8, embed_dims=128, num_layers=1, num_heads=2, with_dist_token=True)
    conv = model.patch_embed.projection.weight.clone()
    model.init_weights()
    for param in (model.pos_embed, model.cls_token, model.dist_token, model.layers[0].attn.attn.in_proj_weight):
        assert param.std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(conv, model.patch_embed.projection.weight)  # torch's default, as official


def test_arguments_reach_the_modules():
    """Each at a value other than the default."""
    model = SegmenterViT(
        **TINY, mlp_ratio=2.5, drop_rate=0.1, attn_drop_rate=0.2, drop_path_rate=0.3, num_fcs=3, with_cp=True,
        patch_pad='same', patch_bias=False, norm_cfg=dict(type='LN', eps=1e-3), act_cfg=dict(type='ReLU'),
        final_norm=True,
    )  # fmt: skip
    assert model.patch_embed.projection.bias is None
    assert model.patch_embed.adap_padding.padding == 'same'
    assert model.drop_after_pos.p == 0.1
    assert model.ln1.eps == 1e-3
    assert [getattr(layer.drop_path, 'drop_prob', 0.0) for layer in model.layers] == pytest.approx([0.0, 0.15, 0.3])
    for layer in model.layers:
        assert layer.with_cp
        assert layer.attn.attn.attn_drop_rate == 0.2 and layer.attn.proj_drop.p == 0.1
        assert [m.p for m in layer.ffn.modules() if isinstance(m, torch.nn.Dropout)] == [0.1] * 3
        assert [m.out_features for m in layer.ffn.modules() if isinstance(m, torch.nn.Linear)] == [60, 60, 24]
        assert any(isinstance(m, torch.nn.ReLU) for m in layer.ffn.modules())
        assert layer.ln1.eps == layer.ln2.eps == 1e-3


def test_with_cp_runs_each_block_twice():
    for with_cp, calls in ((False, 1), (True, 2)):
        model = SegmenterViT(**TINY, with_cp=with_cp)
        seen = []
        model.layers[1].attn.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        model(torch.randn(1, 3, 64, 64))[0].sum().backward()
        assert len(seen) == calls


def test_frozen_exclude():
    model = SegmenterViT(**TINY, frozen_exclude=['pos_embed'])
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ['pos_embed']


@pytest.mark.parametrize('training', [True, False])
def test_a_frozen_backbone_is_a_fixed_function(training):
    """No graph, no saved activation, no dropout, no stochastic depth, no random rescale of the rotary embedding."""
    vit = SegmenterViT(
        **{**TINY, 'num_heads': 2, 'embed_dims': 16}, frozen_exclude=[], out_indices=(0, 2),
        drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5, rope=dict(rescale=2), with_cp=True,
    )  # fmt: skip
    vit.init_weights()
    vit.train(training)
    images = torch.randn(2, 3, 64, 64)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        maps = vit(images)
    assert not saved and all(x.grad_fn is None and not x.requires_grad for x in maps)
    with torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(maps, vit.eval()(images), strict=True))


def test_a_frozen_backbone_passes_on_gradients_of_images():
    vit = SegmenterViT(**TINY, frozen_exclude=[])
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    vit(images)[0].sum().backward()
    assert images.grad.abs().sum() > 0


def test_frozen_blocks_in_front_cost_no_gradient_and_have_no_dropout():
    vit = SegmenterViT(**TINY, frozen_exclude=['layers.2'], drop_path_rate=0.5, attn_drop_rate=0.5).train()
    assert [block.training for block in vit.layers] == [False, False, True] and vit.training
    inputs = []
    vit.layers[2].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    (output,) = vit(torch.randn(1, 3, 64, 64))
    assert not inputs[0].requires_grad and output.requires_grad
    output.sum().backward()
    assert [block.attn.attn.in_proj_weight.grad is None for block in vit.layers] == [True, True, False]
    vit.requires_grad_(True).train()
    assert all(block.training for block in vit.layers)


def test_norm_eval():
    def batch_norm(**kwargs):
        model = SegmenterViT(**TINY, **kwargs)
        model.patch_embed.norm = torch.nn.BatchNorm1d(24)
        return model.train().patch_embed.norm

    assert batch_norm().training and not batch_norm(norm_eval=True).training


def test_other_init_cfg_comes_after_the_official_one():
    model = SegmenterViT(**TINY, init_cfg=dict(type='Constant', layer='Linear', val=0.5, bias=0.25))
    model.init_weights()
    assert (model.layers[0].ffn.layers[1].weight == 0.5).all() and (model.layers[0].ffn.layers[1].bias == 0.25).all()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)


# Checkpoints


def test_checkpoint_without_patch_bias_loads_as_zero():
    theirs = VisionTransformer(**TINY)
    theirs.init_weights()
    ours = SegmenterViT(**TINY)
    torch.nn.init.ones_(ours.patch_embed.projection.bias)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert not ours.patch_embed.projection.bias.any()
    ours.eval()
    theirs.eval()
    assert_close(ours(torch.ones(1, 3, 64, 64)), theirs(torch.ones(1, 3, 64, 64)))


def test_three_channels_load_into_one(capture_log):
    """The model of a grey image is the model of its three equal channels."""
    colour, grey = SegmenterViT(**TINY).double().eval(), SegmenterViT(**TINY, in_channels=1).double().eval()
    colour.init_weights()
    source = colour.state_dict()
    grey.load_state_dict(source)
    image = torch.randn(2, 1, 64, 80, dtype=torch.float64)
    assert_close(grey(image)[0], colour(image.expand(-1, 3, -1, -1))[0], atol=1e-12, rtol=0)
    assert any('has 3 input channels, the model 1' in r.getMessage() for r in capture_log)
    assert source['patch_embed.projection.weight'].shape[1] == 3  # the source is left as it was
    two = SegmenterViT(**TINY, in_channels=2)
    with pytest.raises(RuntimeError, match=r'patch_embed\.projection\.weight.*\[24, 3, 16, 16\].*\[24, 2, 16, 16\]'):
        two.load_state_dict(source)


def test_pos_embed_is_resized_by_every_loader():
    small, large = SegmenterViT(**TINY), SegmenterViT(**{**TINY, 'img_size': (96, 80)})
    small.init_weights()
    large.load_state_dict(small.state_dict(), strict=True)
    assert large.pos_embed.shape == (1, 31, 24)
    assert torch.equal(large.pos_embed[:, 0], small.pos_embed[:, 0])


def test_grid_survives_saving_so_equal_counts_are_not_confused():
    wide, square = SegmenterViT(**{**TINY, 'img_size': (32, 128)}), SegmenterViT(**TINY)
    wide.init_weights()
    file = io.BytesIO()
    torch.save(wide.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = SegmenterViT(**{**TINY, 'img_size': (32, 128)})
    again.load_state_dict(state)
    assert torch.equal(again.pos_embed, wide.pos_embed)
    square.load_state_dict(state)
    assert not torch.equal(square.pos_embed, wide.pos_embed)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_pretrained_keeps_the_grid_that_the_file_records(tmp_path, prefix):
    wide = SegmenterViT(**{**TINY, 'img_size': (32, 128)})
    wide.init_weights()
    source = torch.nn.ModuleDict(dict(backbone=wide)) if prefix else wide
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'vit.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'vit.pth'), prefix=prefix)
    again = SegmenterViT(**{**TINY, 'img_size': (32, 128)}, init_cfg=init_cfg)
    again.init_weights()
    assert torch.equal(again.pos_embed, wide.pos_embed)


def test_patch_bias_moves_to_mmseg_too():
    ours, theirs = SegmenterViT(**TINY), VisionTransformer(**TINY, patch_bias=True)
    ours.init_weights()
    torch.nn.init.normal_(ours.patch_embed.projection.bias)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.eval()
    theirs.eval()
    image = torch.randn(1, 3, 64, 64)
    assert_close(ours(image), theirs(image), atol=1e-5, rtol=0)


def test_pretrained_on_squares_is_resized_to_an_equal_count(tmp_path):
    square = SegmenterViT(**TINY)
    square.init_weights()
    torch.save(OrderedDict(square.state_dict().items()), tmp_path / 'vit.pth')
    wide = SegmenterViT(**{**TINY, 'img_size': (32, 128)}, pretrained=str(tmp_path / 'vit.pth'))
    wide.init_weights()
    assert torch.equal(wide.pos_embed[:, :1], square.pos_embed[:, :1])
    assert not torch.equal(wide.pos_embed, square.pos_embed)


def test_pos_embed_of_no_known_grid():
    state = SegmenterViT(**TINY).state_dict()
    del state._metadata
    state['pos_embed'] = torch.zeros(1, 1 + 14, 24)
    with pytest.raises(ValueError, match='pos_embed has 14 patch rows; expected those of the 4x4 grid'):
        SegmenterViT(**TINY).load_state_dict(state)


def test_pos_embed_without_a_row_for_the_class_token():
    """FlexiViT's 15x15 rows are not the 14x16 grid and a class token of this model."""
    model = SegmenterViT(**{**TINY, 'img_size': (48, 80)})  # 3x5 patches and a class token: 16 rows
    state = dict(model.state_dict())  # without metadata, as other projects save it
    with pytest.raises(UserError, match=r'pos_embed has 16 rows: 16 for the patches, and none for .* cls_pos_embed=F'):
        model.load_state_dict(state)
    with pytest.raises(UserError, match='pos_embed has 16 rows'):
        SegmenterViT(**TINY).load_state_dict(state)
    model.load_state_dict(model.state_dict())  # the metadata tells the grid
    square = SegmenterViT(**TINY, cls_pos_embed=False)  # what the message advises
    square.load_state_dict(state)
    assert torch.equal(square.pos_embed, state['pos_embed'])


@pytest.mark.parametrize('keys', [['in_proj_bias'], ['in_proj_bias', 'out_proj.bias']])
def test_checkpoint_without_attention_bias_loads_as_zero(keys, capture_log):
    model = SegmenterViT(**TINY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    state = model.state_dict()
    for key in [key for key in state if key.endswith(tuple(keys))]:
        del state[key]
    model.load_state_dict(state)
    for layer in model.layers:
        assert not layer.attn.attn.in_proj_bias.any()
        assert layer.attn.attn.out_proj.bias.any() == ('out_proj.bias' not in keys)
    warnings = [r.getMessage() for r in capture_log if r.levelno == logging.WARNING]
    assert len(warnings) == len(keys)
    assert 'has no layers.0.attn.attn.in_proj_bias (nor those of the other 2 blocks): using 0' in warnings[0]


def test_missing_attention_bias_of_one_block_is_an_error():
    state = SegmenterViT(**TINY).state_dict()
    del state['layers.1.attn.attn.in_proj_bias']
    with pytest.raises(RuntimeError, match=r'Missing key.*layers\.1\.attn\.attn\.in_proj_bias'):
        SegmenterViT(**TINY).load_state_dict(state)


@pytest.mark.parametrize(('ours', 'theirs', 'message'), [(True, False, 'has no dist_token'), (False, True, 'has a')])
def test_dist_token_mismatch(ours, theirs, message):
    state = SegmenterViT(**TINY, with_dist_token=theirs).state_dict()
    with pytest.raises(ValueError, match=f'{message}.*set with_dist_token={theirs}'):
        SegmenterViT(**TINY, with_dist_token=ours).load_state_dict(state)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize('wrapped', [True, False])
def test_pretrained(tmp_path, prefix, wrapped):
    source = SegmenterViT(**TINY)
    source.init_weights()
    state = {prefix + k: v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=state, meta={}) if wrapped else state, tmp_path / 'vit.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'vit.pth'), prefix=prefix or None)
    model = SegmenterViT(**TINY, init_cfg=init_cfg)
    model.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_pretrained_reports_missing_and_unexpected_keys(tmp_path, capture_log):
    state = SegmenterViT(**TINY).state_dict()
    del state['layers.1.ln2.weight']
    state['head.weight'] = torch.zeros(10, 24)
    torch.save(state, tmp_path / 'vit.pth')
    SegmenterViT(**TINY, pretrained=str(tmp_path / 'vit.pth')).init_weights()
    warnings = [r.getMessage() for r in capture_log if r.levelno == logging.WARNING]
    assert any('layers.1.ln2.weight' in w and 'not in the checkpoint' in w for w in warnings)
    assert any('head.weight' in w and 'not used' in w for w in warnings)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: {'blocks.0.norm1.weight': torch.zeros(2)}, 'Convert it'),
        (lambda s: {f'backbone.{k}': v for k, v in s.items()}, r"Add prefix='backbone\.'"),
        (lambda s: {f'_orig_mod.{k}': v for k, v in s.items()}, r"Add prefix='_orig_mod\.'"),
        (lambda s: [1, 2], 'holds a list; expected tensors by name'),
        (lambda s: torch.zeros(2), 'holds a Tensor; expected tensors by name'),
        (lambda s: {**s, 'cls_token': torch.zeros(1, 1, 48)}, r'vit.pth does not fit.*cls_token'),
    ],
)
def test_pretrained_of_another_model(tmp_path, change, message):
    torch.save(change(dict(SegmenterViT(**TINY).state_dict())), tmp_path / 'vit.pth')
    model = SegmenterViT(**TINY, pretrained=str(tmp_path / 'vit.pth'))
    with pytest.raises(ValueError, match=f'(?s){message}'):
        model.init_weights()


def test_pretrained_part_is_sans_image_encoder(tmp_path):
    source = SegmenterViT(**TINY)
    source.init_weights()
    state = {f'image_encoder.{k}': v for k, v in source.state_dict().items()}
    torch.save({**state, 'text_encoder.weight': torch.zeros(2)}, tmp_path / 'clip.pth')
    model = SegmenterViT(**TINY, init_cfg=dict(type='Pretrained_Part', checkpoint=str(tmp_path / 'clip.pth')))
    model.init_weights()
    assert torch.equal(model.pos_embed, source.pos_embed)


def test_checkpoint_argument_of_a_wrong_type():
    with pytest.raises(ValueError, match=r'init_cfg\.checkpoint=None'):
        SegmenterViT(**TINY, init_cfg=dict(type='Pretrained', checkpoint=None)).init_weights()


def test_pos_embed_of_a_wrong_shape_is_reported_by_torch():
    with pytest.raises(RuntimeError, match='size mismatch for pos_embed'):
        SegmenterViT(**TINY).load_state_dict({'pos_embed': torch.zeros(5)}, strict=False)


def test_pretrained_file_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no\.pth not found'):
        SegmenterViT(**TINY, pretrained=str(tmp_path / 'no.pth')).init_weights()


# DINOv2, DINOv3, DeiT-III


def test_prefix_tokens_without_position_come_after_those_with_one():
    model = SegmenterViT(**TINY, num_registers=4, output_cls_token=True).double().eval()
    model.init_weights()
    assert model.num_prefix_tokens == 5 and model.num_pos_prefix_tokens == 1
    assert model.pos_embed.shape == (1, 17, 24) and model.register_tokens.any()
    seen = []
    model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    feature_map, cls_token = model(image)[0]
    tokens = seen[0]
    assert tokens.shape == (2, 21, 24) and feature_map.shape == (2, 24, 4, 4) and cls_token.shape == (2, 24)
    assert_close(tokens[:, :1], (model.cls_token + model.pos_embed[:, :1]).expand(2, -1, -1))
    assert_close(tokens[:, 1:5], model.register_tokens.expand(2, -1, -1))
    assert_close(tokens[:, 5:], model.patch_embed(image)[0] + model.pos_embed[:, 1:])
    larger = SegmenterViT(**{**TINY, 'img_size': 96}, num_registers=4)
    larger.load_state_dict(model.state_dict())  # the grid is resized, the registers are not part of it
    assert larger.pos_embed.shape == (1, 37, 24)


def test_class_token_without_position_embedding():
    """As DeiT-III: the class token joins after the position embedding."""
    with_row = SegmenterViT(**TINY, final_norm=True).double().eval()
    without = SegmenterViT(**TINY, final_norm=True, cls_pos_embed=False).double().eval()
    with_row.init_weights()
    state = with_row.state_dict()
    assert without.pos_embed.shape == (1, 16, 24)
    image = torch.randn(1, 3, 80, 64, dtype=torch.float64)
    for source in (state, dict(state)):  # with the grid in its metadata, and without
        without.load_state_dict(source)  # adds the row to the token
        assert_close(without(image)[0], with_row(image)[0], atol=1e-12, rtol=0)
    token = without.cls_token.clone()
    without.load_state_dict(without.state_dict())
    assert torch.equal(without.cls_token, token)  # there is no row to be added again
    with pytest.raises(UserError, match='Set cls_pos_embed=False'):
        with_row.load_state_dict(without.state_dict(), strict=False)


ROPE = dict(base=100, rescale=2)


def test_rope_replaces_the_position_embedding():
    model, with_rows = SegmenterViT(**TINY, rope=ROPE).eval(), SegmenterViT(**TINY).eval()
    model.init_weights()
    assert 'pos_embed' not in model.state_dict() and 'pos_embed_grid' not in model.state_dict()._metadata['']
    assert model.state_dict()['rope_embed.periods'].shape == (2,)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*pos_embed'):
        model.load_state_dict({**model.state_dict(), 'pos_embed': with_rows.pos_embed})
    feature_map = model(torch.randn(1, 3, 80, 100))[0]
    assert feature_map.shape == (1, 24, 5, 7)


def test_rope_reaches_the_attention_of_all_blocks():
    model = SegmenterViT(**TINY, rope=ROPE).eval()
    model.init_weights()
    image = torch.randn(1, 3, 64, 80)
    everywhere = model(image)[0]
    for layer in model.layers:  # only one block without it makes a difference
        hook = layer.register_forward_pre_hook(lambda module, args: (args[0], None, None))
        assert not torch.allclose(model(image)[0], everywhere, atol=1e-6)
        hook.remove()


def test_rope_makes_attention_depend_on_the_distance_only():
    """Shifting query and key by the same number of patches keeps their score."""
    model = SegmenterViT(**TINY, rope=ROPE).double().eval()
    sin, cos = model.rope_embed((6, 6))
    q, k = torch.randn(2, 1, 8, dtype=torch.float64)
    rotated_q, rotated_k = (apply_rope(t.expand(36, 8), Rope(sin, cos)) for t in (q, k))
    scores = (rotated_q @ rotated_k.T).view(6, 6, 6, 6)
    assert_close(scores[1:, 2:, 1:, 2:], scores[:-1, :-2, :-1, :-2], atol=1e-12, rtol=0)


def test_layer_scale_multiplies_the_branches():
    model = SegmenterViT(**TINY, layer_scale=1e-5).eval()
    model.init_weights()
    assert_close(model.layers[1].ls2.weight, torch.full((24,), 1e-5))
    plain = SegmenterViT(**TINY).eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for i in range(3):
        for scale, layer in (('ls1', 'attn.attn.out_proj'), ('ls2', 'ffn.layers.1')):
            factor = torch.randn(24)
            model.state_dict()[f'layers.{i}.{scale}.weight'].copy_(factor)
            del state[f'layers.{i}.{scale}.weight']
            state[f'layers.{i}.{layer}.weight'] *= factor[:, None]
            state[f'layers.{i}.{layer}.bias'] *= factor
    plain.load_state_dict(state)
    image = torch.randn(1, 3, 64, 64)
    assert_close(model(image)[0], plain(image)[0], atol=1e-5, rtol=0)


def test_swiglu_of_any_width():
    model = SegmenterViT(**TINY, ffn='swiglu', feedforward_channels=40)
    assert model.layers[0].ffn.w12.weight.shape == (80, 24) and model.layers[0].ffn.w3.weight.shape == (24, 40)
    assert SegmenterViT(**TINY, feedforward_channels=40).layers[0].ffn.layers[0][0].weight.shape == (40, 24)
    with pytest.raises(UserError, match=r"ffn='glu'; expected 'mlp' or 'swiglu'"):
        SegmenterViT(**TINY, ffn='glu')


def test_final_norm_of_every_output():
    plain = SegmenterViT(**TINY, final_norm=True, out_indices=(0, 1, 2)).eval()
    normed = SegmenterViT(**TINY, final_norm=True, out_indices=(0, 1, 2), norm_outputs=True).eval()
    plain.init_weights()
    torch.nn.init.normal_(plain.ln1.weight)
    normed.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    first, second, last = plain(image)
    expected = [plain.ln1(out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for out in (first, second)] + [last]
    for one, other in zip(normed(image), expected, strict=True):
        assert_close(one, other, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match=r'norm_outputs=True needs final_norm=True'):
        SegmenterViT(**TINY, norm_outputs=True)


# What a subclass can change


class WithQueries(SegmenterViT):
    """As EoMT: queries in front of all tokens before the last block, and masked attention in it."""

    patches_see_queries = True

    def _run_block(self, i, x_BNC, grid, rope, attn_mask=None):
        if i == self.num_layers - 1:
            x_BNC = torch.cat((self.queries.expand(len(x_BNC), -1, -1), x_BNC), dim=1)
            attn_mask = torch.ones(x_BNC.shape[1], x_BNC.shape[1], dtype=torch.bool)
            attn_mask[3:, :3] = self.patches_see_queries
        return super()._run_block(i, x_BNC, grid, rope, attn_mask)

    def _output(self, x_BNC, grid):
        return super()._output(x_BNC[:, 3:], grid)


def test_tokens_can_be_inserted_before_a_block_and_masked_in_it():
    plain, model = SegmenterViT(**TINY, final_norm=True).eval(), WithQueries(**TINY, final_norm=True).eval()
    plain.init_weights()
    model.load_state_dict(plain.state_dict())
    model.queries = torch.nn.Parameter(torch.randn(1, 3, 24))
    image = torch.randn(2, 3, 64, 80)
    assert not torch.allclose(model(image)[0], plain(image)[0], atol=1e-3)
    model.patches_see_queries = False
    assert_close(model(image)[0], plain(image)[0], atol=1e-5, rtol=0)


# Other ways to run it


DINOV3 = dict(rope=ROPE, num_registers=4, layer_scale=1.0, ffn='swiglu')


@pytest.mark.parametrize('kwargs', [{}, DINOV3])
def test_autocast(kwargs):
    model = SegmenterViT(**TINY, final_norm=True, **kwargs).eval()
    model.init_weights()
    image = torch.randn(1, 3, 80, 64)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        low = model(image)[0]
    with torch.no_grad():
        assert_close(low.float(), model(image)[0], atol=0.1, rtol=0.1)


@pytest.mark.parametrize('kwargs', [{}, DINOV3, dict(interpolate_offset=0.1, interpolate_antialias=True)])
def test_compile(kwargs):
    model = SegmenterViT(**TINY, out_indices=(0, 2), final_norm=True, **kwargs).eval()
    model.init_weights()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    with torch.no_grad():
        for size in ((64, 64), (80, 100)):
            image = torch.randn(1, 3, *size)
            for one, other in zip(compiled(image), model(image), strict=True):
                assert_close(one, other, atol=1e-5, rtol=0)


def test_export_with_dynamic_batch_and_size():
    model = SegmenterViT(**TINY, final_norm=True).eval()
    model.init_weights()
    h, w = torch.export.Dim('h', min=2, max=64), torch.export.Dim('w', min=2, max=64)
    batch = torch.export.Dim('batch', min=1, max=64)
    program = torch.export.export(
        model, (torch.randn(2, 3, 80, 96),), dynamic_shapes=({0: batch, 2: 16 * h, 3: 16 * w},), strict=False
    ).module()
    for shape in ((1, 3, 96, 48), (3, 3, 64, 64)):
        image = torch.randn(*shape)
        assert_close(program(image)[0], model(image)[0], atol=1e-5, rtol=0)


@pytest.mark.gpu
def test_gpu_equals_cpu():
    model = SegmenterViT(**TINY, final_norm=True).eval()
    model.init_weights()
    image = torch.randn(2, 3, 80, 96)
    with torch.no_grad():
        expected = model(image)[0]
        assert_close(model.cuda()(image.cuda())[0].cpu(), expected, atol=1e-3, rtol=1e-3)
