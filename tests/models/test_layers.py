import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from mmseg_segmenter.errors import UserError
from mmseg_segmenter.models.layers import (
    PackedSelfAttention,
    Rope,
    RotaryEmbedding,
    SwiGLU,
    TransformerBlock,
    apply_rope,
    cpu_linear,
    drop_path_rates,
    init_transformer_weights,
    resize_pos_embed,
    square_grid,
    transformer_block,
)


@pytest.mark.parametrize('bias', [True, False])
def test_attention_equals_torch_multihead_attention(bias):
    theirs = nn.MultiheadAttention(24, 3, bias=bias, batch_first=True).double()
    ours = PackedSelfAttention(24, 3, bias=bias).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    assert_close(ours(x), theirs(x, x, x)[0], atol=1e-12, rtol=0)


def test_attention_refuses_uneven_heads():
    with pytest.raises(ValueError, match=r'embed_dims=10 .* num_heads=3'):
        PackedSelfAttention(10, 3)


def test_attention_dropout_is_for_training_only():
    attention = PackedSelfAttention(8, 2, attn_drop_rate=0.5)
    x = torch.randn(1, 5, 8)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_attention_mask_equals_torch():
    theirs = nn.MultiheadAttention(24, 3, batch_first=True).double()
    ours = PackedSelfAttention(24, 3).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    mask = torch.rand(7, 7) < 0.5
    mask.fill_diagonal_(True)
    assert_close(ours(x, attn_mask=mask), theirs(x, x, x, attn_mask=~mask)[0], atol=1e-12, rtol=0)
    mask[3:] = True
    assert_close(ours(x, attn_mask=mask[:3]), theirs(x, x, x, attn_mask=~mask)[0], atol=1e-12, rtol=0)


def test_rope_rotates_pairs_of_dimensions_of_the_last_tokens():
    """As multiplying the complex number of dimensions i and i + d / 2 by exp(i * angle)."""
    angles = torch.randn(5, 4, dtype=torch.float64)
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    found = apply_rope(x, Rope(angles.sin(), angles.cos()))
    rotated = torch.complex(x[:, :, 2:, :4], x[:, :, 2:, 4:]) * torch.polar(torch.ones_like(angles), angles)
    assert torch.equal(found[:, :, :2], x[:, :, :2])
    assert_close(found[:, :, 2:], torch.cat((rotated.real, rotated.imag), dim=-1), atol=1e-12, rtol=0)


def test_rope_computes_in_its_own_precision_and_keeps_the_dtype():
    angles = torch.randn(5, 4)
    x = torch.randn(1, 2, 6, 8).bfloat16()
    rope = Rope(angles.sin(), angles.cos())
    found = apply_rope(x, rope)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, apply_rope(x.float(), rope).bfloat16())


def test_rope_has_exact_gradients():
    angles = torch.randn(5, 2, dtype=torch.float64)
    x = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)
    rope = Rope(angles.sin(), angles.cos())
    assert torch.autograd.gradcheck(lambda x: apply_rope(x, rope), x)
    assert torch.autograd.gradgradcheck(lambda x: apply_rope(x, rope), x)


def test_rope_compiled_equals_eager():
    angles = torch.randn(5, 4)
    x, rope = torch.randn(2, 3, 7, 8), Rope(angles.sin(), angles.cos())
    compiled = torch.compile(apply_rope, backend='aot_eager', fullgraph=True)
    for t in (x, x.bfloat16()):
        assert_close(compiled(t, rope), apply_rope(t, rope), atol=1e-6, rtol=0)


def rope_angles(rope):
    return torch.atan2(rope.sin, rope.cos)


def test_rotary_embedding_angles():
    """2 pi coordinate / period, rows first, for patch centres mapped to [-1, 1]."""
    module = RotaryEmbedding(16, base=100).double().eval()
    rope = module((3, 5))
    assert rope.sin.shape == rope.cos.shape == (15, 8)
    periods = 100 ** (torch.arange(4, dtype=torch.float64) / 4)
    for token, (row, column) in {0: (-2 / 3, -4 / 5), 7: (0, 0), 13: (2 / 3, 2 / 5)}.items():
        angles = torch.cat((2 * torch.pi * row / periods, 2 * torch.pi * column / periods))
        # the periods of a module that was made in float32 are rounded to it
        assert_close(rope.sin[token], angles.sin(), atol=1e-6, rtol=0)
        assert_close(rope.cos[token], angles.cos(), atol=1e-6, rtol=0)


def test_rotary_embedding_rescales_in_training_only():
    module = RotaryEmbedding(16, rescale=2.0)
    fixed = module.eval()((4, 4))
    assert torch.equal(module((4, 4)).sin, fixed.sin)
    module.train()
    slowest = 3  # its angles stay below pi, so the angle can be read off
    ratios = torch.stack([rope_angles(module((4, 4)))[0, slowest] / rope_angles(fixed)[0, slowest] for _ in range(50)])
    assert 0.5 <= ratios.min() < 0.7 and 1.4 < ratios.max() <= 2.0
    assert torch.equal(RotaryEmbedding(16, rescale=None).train()((4, 4)).sin, fixed.sin)


def test_rotary_embedding_follows_its_periods():
    """The angles are cached; a loaded checkpoint and another dtype replace them."""
    module, other = RotaryEmbedding(16).eval(), RotaryEmbedding(16, base=10.0).eval()
    with torch.inference_mode():
        before = module((4, 4))
    assert module((4, 4)).sin is before.sin and not before.sin.is_inference()
    module.load_state_dict(other.state_dict())
    assert torch.equal(module((4, 4)).sin, other((4, 4)).sin)
    assert module.double()((4, 4)).sin.dtype == torch.float64
    module.load_state_dict({'periods': torch.full((4,), 2.0)}, assign=True)
    assert module((4, 4)).sin.dtype == torch.float32 and len(module._cache) == 1
    for side in range(1, 20):
        module((side, side))
    assert len(module._cache) <= 8


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(head_dims=6), 'width 6 .* multiple of 4'),
        (dict(head_dims=8, base=0), 'base=0; expected a positive'),
        (dict(head_dims=8, rescale=0.5), 'rescale=0.5; expected None or'),
    ],
)
def test_rotary_embedding_refuses(kwargs, message):
    with pytest.raises(UserError, match=message):
        RotaryEmbedding(**kwargs)


def test_swiglu():
    module = SwiGLU(6, 10).double()
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == {
        'w12.weight': (20, 6),
        'w12.bias': (20,),
        'w3.weight': (6, 10),
        'w3.bias': (6,),
    }
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    a, b = module.w12(x)[..., :10], module.w12(x)[..., 10:]
    assert_close(module(x), module.w3(a * a.sigmoid() * b), atol=1e-12, rtol=0)


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('size', [(6, 8), (3, 2)])
def test_resize_pos_embed_offset_and_antialias(size, antialias):
    """As torch does for a scale instead of a size; an offset changes the values, not the size."""
    pos_embed = torch.randn(1, 1 + 16, 5)
    found = resize_pos_embed(pos_embed, (4, 4), size, offset=0.1, antialias=antialias)
    grid = pos_embed[:, 1:].reshape(1, 4, 4, 5).permute(0, 3, 1, 2)
    scales = ((size[0] + 0.1) / 4, (size[1] + 0.1) / 4)
    expected = F.interpolate(grid, scale_factor=scales, mode='bicubic', antialias=antialias)
    assert torch.equal(found[:, 1:].view(1, *size, 5), expected.permute(0, 2, 3, 1))
    assert not torch.allclose(found, resize_pos_embed(pos_embed, (4, 4), size, antialias=antialias), atol=1e-4)


def test_rope_acts_on_queries_and_keys_only():
    attention = PackedSelfAttention(8, 2).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    same = torch.full((5, 2), 0.7, dtype=torch.float64)
    # All tokens rotated alike: scores, and with them the result, stay.
    assert_close(attention(x, Rope(same.sin(), same.cos())), attention(x), atol=1e-12, rtol=0)
    other = same * torch.arange(5)[:, None]
    assert not torch.allclose(attention(x, Rope(other.sin(), other.cos())), attention(x), atol=1e-3)


class _Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.gamma = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return self.gamma * x


def test_block_is_handed_its_parts():
    plain = transformer_block(8, 2, 16)
    assert {key.split('.')[0] for key in plain.state_dict()} == {'ln1', 'attn', 'ln2', 'ffn'}
    block = TransformerBlock(plain.ln1, plain.attn, plain.ln2, plain.ffn, ls1=_Scale(0.5), ls2=_Scale(0.25))
    assert block.state_dict().keys() - plain.state_dict().keys() == {'ls1.gamma', 'ls2.gamma'}
    x = torch.randn(2, 5, 8)
    after_attention = x + 0.5 * plain.attn(plain.ln1(x))
    assert_close(block(x), after_attention + 0.25 * plain.ffn(plain.ln2(after_attention)))


@pytest.mark.parametrize(
    ('vendor', 'mkl', 'onednn', 'expected'),
    [
        ('vendor_id\t: AuthenticAMD', True, True, True),
        ('AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD', True, True, True),
        ('vendor_id\t: GenuineIntel', True, True, False),
        ('', True, True, False),
        ('vendor_id\t: AuthenticAMD', False, True, False),
        ('vendor_id\t: AuthenticAMD', True, False, False),
    ],
)
def test_onednn_is_used_on_amd_only(vendor, mkl, onednn, expected, monkeypatch):
    monkeypatch.setattr(cpu_linear, '_cpu_vendor', lambda: vendor)
    monkeypatch.setattr(torch.backends.mkl, 'is_available', lambda: mkl)
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: onednn)
    assert cpu_linear.prefers_onednn.__wrapped__() is expected


@pytest.mark.parametrize('onednn', [True, False])
@pytest.mark.parametrize('bias', [True, False])
def test_linear_on_either_library_equals_torch(onednn, bias, monkeypatch):
    monkeypatch.setattr(cpu_linear, 'prefers_onednn', lambda: onednn)
    layer = cpu_linear.Linear(24, 40, bias=bias)
    x = torch.randn(2, 7, 24)
    calls = []
    onednn_convolution = torch.mkldnn_convolution
    monkeypatch.setattr(torch, 'mkldnn_convolution', lambda *args: calls.append(1) or onednn_convolution(*args))
    with torch.no_grad():
        assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=0)
    assert len(calls) == onednn
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        layer(x)
    layer(x).sum().backward()  # with gradients always F.linear
    assert len(calls) == onednn


def test_stochastic_depth_acts_on_both_branches():
    block = transformer_block(8, 2, 16, drop_path_rate=0.5)
    x = torch.randn(2000, 3, 8)
    with torch.no_grad():
        attn, out = block.attn(block.ln1(x)), block(x)
        for p, expected in ((0.25, x), (0.25, x + 2 * attn)):  # kept branches are scaled by 1 / (1 - rate)
            share = torch.isclose(out, expected, atol=1e-5).all(dim=(1, 2)).float().mean().item()
            assert abs(share - p) < 0.05
    assert isinstance(transformer_block(8, 2, 16).drop_path, nn.Identity)


def test_drop_path_rates_rise_linearly():
    assert drop_path_rates(0.1, 3) == pytest.approx([0.0, 0.05, 0.1])


def test_checkpointing_keeps_value_and_gradient():
    plain = transformer_block(8, 2, 16, drop_rate=0.3, attn_drop_rate=0.3).double()
    recomputing = transformer_block(8, 2, 16, drop_rate=0.3, attn_drop_rate=0.3, with_cp=True).double()
    recomputing.load_state_dict(plain.state_dict())
    grads = []
    for block in (plain, recomputing):
        torch.manual_seed(1)
        x = torch.ones(2, 5, 8, dtype=torch.float64, requires_grad=True)
        block(x).square().sum().backward()
        grads.append([x.grad, *(p.grad for p in block.parameters())])
    for one, other in zip(*grads, strict=False):
        assert_close(one, other, atol=1e-12, rtol=0)


def test_official_initialisation():
    block = transformer_block(256, 4, 1024)
    for parameter in block.parameters():
        nn.init.constant_(parameter, 3.0)
    block.apply(init_transformer_weights)
    for weight in (block.attn.attn.in_proj_weight, block.attn.attn.out_proj.weight, block.ffn.layers[0][0].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    for bias in (block.attn.attn.in_proj_bias, block.attn.attn.out_proj.bias, block.ffn.layers[1].bias):
        assert not bias.any()
    for norm in (block.ln1, block.ln2):
        assert (norm.weight == 1).all() and not norm.bias.any()


@pytest.mark.parametrize(
    'layer',
    [PackedSelfAttention(8, 2, bias=False), nn.Linear(8, 8, bias=False), nn.LayerNorm(8, bias=False)],
    ids=['attention', 'linear', 'norm'],
)
def test_official_initialisation_without_bias(layer):
    layer.apply(init_transformer_weights)


@pytest.mark.parametrize('mode', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('extra', [1, 2])
def test_resize_pos_embed(mode, extra):
    pos = torch.randn(1, extra + 16, 6)
    resized = resize_pos_embed(pos, (4, 4), (2, 8), mode, extra)
    assert torch.equal(resized[:, :extra], pos[:, :extra])
    grid = pos[:, extra:].reshape(1, 4, 4, 6).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, (2, 8), mode=mode)
    assert_close(resized[:, extra:], expected.flatten(2).transpose(1, 2))
    assert resize_pos_embed(pos, (4, 4), (4, 4), mode, extra) is pos


def test_resize_pos_embed_in_float32_whatever_the_dtype():
    pos = torch.randn(1, 17, 6)
    low = resize_pos_embed(pos.bfloat16(), (4, 4), (5, 7))
    assert low.dtype == torch.bfloat16
    assert_close(low, resize_pos_embed(pos.bfloat16().float(), (4, 4), (5, 7)).bfloat16())


def test_resize_pos_embed_names_the_mismatch():
    with pytest.raises(ValueError, match=r'\(1, 17, 6\); expected \(1, 21, C\) for a grid of 4x5'):
        resize_pos_embed(torch.zeros(1, 17, 6), (4, 5), (4, 4))


def test_square_grid():
    assert [square_grid(n) for n in (0, 1, 15, 576)] == [None, (1, 1), None, (24, 24)]
