import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from mmseg_segmenter.models.layers import (
    PackedSelfAttention,
    Rope,
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


def test_rope_rotates_pairs_of_dimensions_of_the_last_tokens():
    """As multiplying the complex number of dimensions i and i + d / 2 by exp(i * angle)."""
    angles = torch.randn(5, 4, dtype=torch.float64)
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    found = apply_rope(x, Rope(angles.sin().tile(2), angles.cos().tile(2)))
    rotated = torch.complex(x[:, :, 2:, :4], x[:, :, 2:, 4:]) * torch.polar(torch.ones_like(angles), angles)
    assert torch.equal(found[:, :, :2], x[:, :, :2])
    assert_close(found[:, :, 2:], torch.cat((rotated.real, rotated.imag), dim=-1), atol=1e-12, rtol=0)


def test_rope_computes_in_its_own_precision_and_keeps_the_dtype():
    angles = torch.randn(5, 4).tile(2)
    x = torch.randn(1, 2, 6, 8).bfloat16()
    rope = Rope(angles.sin(), angles.cos())
    found = apply_rope(x, rope)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, apply_rope(x.float(), rope).bfloat16())


def test_rope_acts_on_queries_and_keys_only():
    attention = PackedSelfAttention(8, 2).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    same = torch.full((5, 4), 0.7, dtype=torch.float64)
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
