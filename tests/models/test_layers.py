import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmseg_segmenter.models.layers import (
    PackedSelfAttention,
    TransformerBlock,
    drop_path_rates,
    init_transformer_weights,
    resize_pos_embed,
    square_grid,
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


def test_stochastic_depth_acts_on_both_branches():
    block = TransformerBlock(8, 2, 16, drop_path_rate=0.5)
    x = torch.randn(2000, 3, 8)
    with torch.no_grad():
        attn, out = block.attn(block.ln1(x)), block(x)
        for p, expected in ((0.25, x), (0.25, x + 2 * attn)):  # kept branches are scaled by 1 / (1 - rate)
            share = torch.isclose(out, expected, atol=1e-5).all(dim=(1, 2)).float().mean().item()
            assert abs(share - p) < 0.05
    assert isinstance(TransformerBlock(8, 2, 16).drop_path, nn.Identity)


def test_drop_path_rates_rise_linearly():
    assert drop_path_rates(0.1, 3) == pytest.approx([0.0, 0.05, 0.1])


def test_checkpointing_keeps_value_and_gradient():
    plain = TransformerBlock(8, 2, 16, drop_rate=0.3, attn_drop_rate=0.3).double()
    recomputing = TransformerBlock(8, 2, 16, drop_rate=0.3, attn_drop_rate=0.3, with_cp=True).double()
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
    block = TransformerBlock(256, 4, 1024)
    block.apply(init_transformer_weights)
    for weight in (block.attn.attn.in_proj_weight, block.attn.attn.out_proj.weight, block.ffn.layers[0][0].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    for bias in (block.attn.attn.in_proj_bias, block.attn.attn.out_proj.bias, block.ffn.layers[1].bias):
        assert not bias.any()


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
