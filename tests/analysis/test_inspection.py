"""Attention, features and class embeddings of a model against plain computations and the official code."""

import math
import threading
from typing import Any

import numpy as np
import official
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from tiny_run import save_run, tiny_config, write_image
from torch import Tensor, nn
from torch.testing import assert_close

from mmseg_segmenter.analysis import inspection
from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.errors import UserError
from mmseg_segmenter.models.backbones.vit import SegmenterViT


def segmentor(backbone: dict[str, Any] | None = None, head: dict[str, Any] | None = None) -> Any:
    """Build a small model with random weights, three layers and patches of 8 pixels."""
    init_default_scope('mmseg')
    cfg = tiny_config(mode='whole', model__backbone__num_layers=3, model__decode_head__num_layers=2)
    cfg.model.backbone.update(backbone or {})
    if head is not None:
        cfg.model.decode_head = head
    model = MODELS.build(cfg.model)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
    return model.eval()


LINEAR = dict(type='LinearHead', in_channels=16, num_classes=5)


def plain_attention(layer: Any, tokens: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) head by head, from the packed weights."""
    q, k, _ = (tokens @ layer.in_proj_weight.T + layer.in_proj_bias).chunk(3, dim=-1)
    d = tokens.shape[-1] // layer.num_heads
    heads = [slice(i * d, (i + 1) * d) for i in range(layer.num_heads)]
    return torch.stack([(q[..., h] @ k[..., h].transpose(1, 2) / math.sqrt(d)).softmax(-1) for h in heads], dim=1)


@torch.no_grad()
def plain_encoder(model: Any, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Attention weights and outputs of each block, by a loop over the blocks."""
    backbone = model.backbone
    patches, grid = backbone.patch_embed(inputs)
    x, attention, outputs = backbone._add_tokens(patches, grid), [], []
    for block in backbone.layers:
        attention.append(plain_attention(block.attn.attn, block.ln1(x)))
        x = block(x)
        outputs.append(x)
    outputs[-1] = backbone.ln1(x)
    return attention, outputs


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


SIZES = [(32, 32), (40, 64), (45, 83), (8, 8), (100, 37)]


@pytest.mark.parametrize('part', ['enc', 'dec'])
def test_attention_of_the_official_code(part: str) -> None:
    reference = official.load('mask_transformer')
    model = official.build('mask_transformer', reference)
    inputs = torch.from_numpy(reference['in/b_1x80x112'])
    function = inspection.encoder_attention if part == 'enc' else inspection.decoder_attention
    with np.load(official.DATA / 'segm_attention.npz') as file:
        expected = {name: torch.from_numpy(file[name]) for name in file if name.startswith(f'attn_{part}')}
    assert len(expected) == {'enc': 3, 'dec': 2}[part]
    for name, value in expected.items():
        found = function(model, inputs, int(name[-1]), query=slice(0, None, 3))
        assert_close(found, value, atol=1e-5, rtol=0)


@pytest.mark.parametrize('size', SIZES)
def test_encoder_attention(size: tuple[int, int]) -> None:
    model, inputs = segmentor(), torch.randn(2, 3, *size)
    expected, _ = plain_encoder(model, inputs)
    h, w = inspection.patch_grid(model, inputs)
    assert (h, w) == (math.ceil(size[0] / 8), math.ceil(size[1] / 8))
    for layer in range(3):
        assert_close(inspection.encoder_attention(model, inputs, layer), expected[layer], atol=1e-6, rtol=0)
    last = inspection.encoder_attention(model, inputs)
    assert not last.requires_grad
    assert last.shape == (2, 2, 1 + h * w, 1 + h * w)
    assert_close(last, expected[2], atol=1e-6, rtol=0)
    assert_close(inspection.encoder_attention(model, inputs, query=0), last[:, :, 0])
    assert_close(inspection.encoder_attention(model, inputs, query=[-1, 0]), last[:, :, [-1, 0]])


@pytest.mark.parametrize('size', SIZES)
def test_decoder_attention(size: tuple[int, int]) -> None:
    model, inputs = segmentor(), torch.randn(2, 3, *size)
    head = model.decode_head
    _, outputs = plain_encoder(model, inputs)
    with torch.no_grad():
        x = torch.cat((head.dec_proj(outputs[-1][:, 1:]), head.cls_emb.expand(2, -1, -1)), dim=1)
        for layer, block in enumerate(head.layers):
            expected = plain_attention(block.attn.attn, block.ln1(x))
            found = inspection.decoder_attention(model, inputs, layer)
            assert_close(found, expected, atol=1e-6, rtol=0)
            assert_close(
                inspection.decoder_attention(model, inputs, layer, query=-2), expected[:, :, -2], atol=1e-6, rtol=0
            )
            x = block(x)


@pytest.mark.parametrize('backbone', [dict(with_dist_token=True), dict(with_cls_token=False), dict(patch_size=16)])
def test_other_prefix_tokens_and_patch_sizes(backbone: dict[str, Any]) -> None:
    model, inputs = segmentor(backbone), torch.randn(1, 3, 40, 50)
    expected, _ = plain_encoder(model, inputs)
    assert_close(inspection.encoder_attention(model, inputs, 1), expected[1], atol=1e-6, rtol=0)
    assert inspection.patch_features(model, inputs).shape[2:] == inspection.patch_grid(model, inputs)


class _WithQueries(SegmenterViT):
    """Queries join in front of the last block, and do not attend to the last patch."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.query = nn.Parameter(torch.randn(1, 3, 16))

    def _run_block(self, i: int, x_BNC: Tensor, grid: Any, rope: Any, attn_mask: Any = None) -> Tensor:
        if i == 2:
            x_BNC = torch.cat((self.query.expand(len(x_BNC), -1, -1), x_BNC), dim=1)
            attn_mask = torch.ones(3, x_BNC.shape[1], dtype=torch.bool)  # other tokens attend to all
            attn_mask[:, -1] = False
        return super()._run_block(i, x_BNC, grid, rope, attn_mask)

    def _output(self, x_BNC: Tensor, grid: tuple[int, int]) -> Any:
        return super()._output(x_BNC[:, 3:], grid)  # without the queries


def test_inserted_tokens_and_masks() -> None:
    model = segmentor()
    model.backbone = _WithQueries(
        img_size=32, patch_size=8, embed_dims=16, num_layers=3, num_heads=2, num_registers=4, rope=dict(base=100)
    ).eval()
    inputs, layer = torch.randn(1, 3, 32, 40), model.backbone.layers[2].attn.attn
    attention = inspection.encoder_attention(model, inputs)  # 3 queries, 5 prefix tokens, 20 patches
    assert attention.shape == (1, 2, 28, 28)
    assert (attention[:, :, :3, -1] == 0).all() and (attention[:, :, 3:] > 0).all()
    seen = {}
    handle = layer.register_forward_hook(lambda _, args, output: seen.update(args=args, output=output))
    with torch.no_grad():
        model.backbone(inputs)
    handle.remove()
    values = layer.heads(*seen['args'][:2])[2]
    output = layer.out_proj((attention @ values).transpose(1, 2).flatten(2))
    assert_close(output, seen['output'], atol=1e-6, rtol=0)  # the weights explain what the fused kernel computed
    assert inspection.patch_features(model, inputs).shape == (1, 16, 4, 5)
    assert inspection.attention_distance(model, inputs).shape == (1, 3, 2)
    assert_close(inspection.encoder_attention(model, inputs, query=[1, -1]), attention[:, :, [1, -1]])


def test_registers_and_rope_of_segmenter_vit() -> None:
    model = segmentor(dict(num_registers=4, rope=dict(base=100)))
    inputs, (h, w) = torch.randn(1, 3, 24, 32), (3, 4)
    attention = inspection.encoder_attention(model, inputs, 1)
    assert attention.shape == (1, 2, 5 + h * w, 5 + h * w)
    layer, seen = model.backbone.layers[1].attn.attn, {}
    with layer.register_forward_hook(lambda _, args, output: seen.update(args=args, output=output)), torch.no_grad():
        model.backbone(inputs)
    assert seen['args'][1] is not None
    values = (seen['args'][0] @ layer.in_proj_weight.T + layer.in_proj_bias).chunk(3, -1)[2].unflatten(-1, (2, -1))
    output = layer.out_proj(torch.einsum('bhnm,bmhd->bnhd', attention, values).flatten(2))
    assert_close(output, seen['output'], atol=1e-6, rtol=0)


def test_mmsegs_own_vit() -> None:
    ours = segmentor(head=LINEAR)
    theirs = segmentor(dict(type='mmseg.VisionTransformer', patch_bias=True), LINEAR)
    theirs.backbone.load_state_dict(ours.backbone.state_dict())
    inputs = torch.randn(1, 3, 32, 48)
    for layer in range(3):
        for function in (inspection.encoder_attention, inspection.patch_features):
            assert_close(function(theirs, inputs, layer), function(ours, inputs, layer), atol=1e-5, rtol=0)
    assert_close(inspection.attention_distance(theirs, inputs), inspection.attention_distance(ours, inputs))


def test_bfloat16_autocast_is_close() -> None:
    model, inputs = segmentor(), torch.randn(1, 3, 40, 40)
    with torch.autocast('cpu', torch.bfloat16):
        half = inspection.encoder_attention(model, inputs)
        inspection.attention_rollout(model, inputs)
        inspection.attention_distance(model, inputs)
        inspection.feature_colors(inspection.patch_features(model, inputs))
    assert half.dtype == torch.float32
    assert_close(half.sum(-1), torch.ones(1, 2, 26), atol=1e-6, rtol=0)
    assert_close(half, inspection.encoder_attention(model, inputs), atol=0.02, rtol=0)


@pytest.mark.parametrize('decoder', [False, True])
def test_rollout(decoder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = segmentor(), torch.randn(2, 3, 40, 24)
    function = inspection.decoder_attention if decoder else inspection.encoder_attention
    layers = [function(model, inputs, i).mean(1) for i in range(2)]
    identity = torch.eye(layers[0].shape[-1])
    expected = (layers[1] + identity) / 2 @ ((layers[0] + identity) / 2)
    monkeypatch.setattr('mmseg_segmenter.analysis.inspection.layers._CHUNK', 2 * 2 * len(identity) * 4)  # four rows
    rollout = inspection.attention_rollout(model, inputs, 1, decoder=decoder)
    assert_close(rollout, expected, atol=1e-6, rtol=0)
    assert_close(rollout.sum(-1), torch.ones(2, len(identity)), atol=1e-6, rtol=0)
    assert_close(inspection.attention_rollout(model, inputs, 1, 3, decoder), expected[:, 3], atol=1e-6, rtol=0)
    assert_close(
        inspection.attention_rollout(model, inputs, 1, [2, -1], decoder), expected[:, [2, -1]], atol=1e-6, rtol=0
    )


def test_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = segmentor(), torch.randn(2, 3, 24, 40)
    weights = inspection.encoder_attention(model, inputs, 1)[:, :, 1:, 1:]
    weights = weights / weights.sum(-1, keepdim=True)
    centres = [(8 * row, 8 * column) for row in range(3) for column in range(5)]
    apart = torch.tensor([[math.dist(a, b) for b in centres] for a in centres])
    for chunk in (1 << 20, 2 * 2 * 16 * 4):  # all rows, and four
        monkeypatch.setattr('mmseg_segmenter.analysis.inspection.layers._CHUNK', chunk)
        distance = inspection.attention_distance(model, inputs)
        assert distance.shape == (2, 3, 2)
        assert_close(distance[:, 1], (weights * apart).sum(-1).mean(-1))
    assert inspection.uniform_distance((3, 5), 8) == pytest.approx(apart.mean().item())
    for layer in model.backbone.layers:  # uniform attention
        layer.attn.attn.in_proj_weight.data.zero_()
    assert_close(inspection.attention_distance(model, inputs), apart.mean().expand(2, 3, 2))


@pytest.mark.parametrize('size', SIZES)
def test_features(size: tuple[int, int]) -> None:
    model, inputs = segmentor(), torch.randn(2, 3, *size)
    _, outputs = plain_encoder(model, inputs)
    for layer in range(3):
        features = inspection.patch_features(model, inputs, layer)
        assert_close(features.flatten(2).transpose(1, 2), outputs[layer][:, 1:], atol=1e-6, rtol=0)
    with torch.no_grad():
        assert torch.equal(features, model.backbone(inputs)[0])


def test_feature_similarity() -> None:
    features = torch.randn(2, 7, 3, 4)
    similarity = inspection.feature_similarity(features, 2, 1)
    expected = torch.cosine_similarity(features, features[:, :, 2:3, 1:2], dim=1)
    assert_close(similarity, expected)
    assert_close(similarity[:, 2, 1], torch.ones(2))


def test_feature_colors() -> None:
    features = torch.randn(2, 7, 6, 5) * torch.tensor([9, 5, 3, 1, 1, 1, 1.0]).view(1, 7, 1, 1)
    colors = inspection.feature_colors(features)
    assert colors.shape == (2, 6, 5, 3) and colors.min() == 0 and colors.max() == 1
    for axis in range(3):  # nearly the axes of the features, in the order of their variance
        plain = features[:, axis].flatten()
        assert torch.corrcoef(torch.stack((plain, colors[..., axis].flatten())))[0, 1] > 0.9
    rotation, _ = torch.linalg.qr(torch.randn(7, 7))
    rotated = inspection.feature_colors(torch.einsum('bchw,dc->bdhw', features, rotation))
    assert_close(
        torch.minimum((rotated - colors).abs(), (1 - rotated - colors).abs()),
        torch.zeros(2, 6, 5, 3),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize('features', [torch.ones(1, 5, 2, 3), torch.randn(1, 2, 4, 4), torch.randn(1, 4, 1, 1)])
def test_feature_colors_of_few_dimensions(features: Tensor) -> None:
    colors = inspection.feature_colors(features)
    assert colors.shape[-1] == 3 and colors.isfinite().all()


def test_two_kinds_of_patches_get_two_colors() -> None:
    features = torch.zeros(1, 6, 4, 4)
    features[:, 2, :, 2:] = 3
    colors = inspection.feature_colors(features)[0]
    assert (colors[:, :2] == colors[0, 0]).all() and (colors[:, 2:] == colors[0, 3]).all()
    assert (colors[0, 0, 0] - colors[0, 3, 0]).abs() == 1


def test_class_similarity() -> None:
    for model in (segmentor(), segmentor(head=LINEAR)):
        weights = getattr(model.decode_head, 'cls_emb', None)
        weights = model.decode_head.conv_seg.weight.flatten(1) if weights is None else weights[0]
        similarity = inspection.class_similarity(model)
        assert not similarity.requires_grad
        assert_close(similarity, torch.cosine_similarity(weights[:, None], weights[None], dim=-1).detach())


def test_the_model_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = segmentor(), torch.randn(1, 3, 32, 32)
    before, number = model(inputs).detach(), hooks(model)
    inspection.encoder_attention(model, inputs, 1)
    inspection.decoder_attention(model, inputs, 1)
    inspection.attention_rollout(model, inputs)
    inspection.attention_distance(model, inputs)
    inspection.patch_features(model, inputs, 0)
    assert hooks(model) == number and torch.equal(model(inputs), before)
    with pytest.raises(RuntimeError):
        inspection.encoder_attention(model, torch.randn(1, 4, 32, 32))
    monkeypatch.setattr(SegmenterViT, '_run_block', lambda *_: 1 / 0)
    for function in (inspection.encoder_attention, inspection.decoder_attention, inspection.attention_rollout):
        with pytest.raises(ZeroDivisionError):
            function(model, inputs)
    assert hooks(model) == number


def test_the_model_keeps_the_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, calls = segmentor(), torch.randn(1, 3, 32, 32), []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, 'scaled_dot_product_attention', lambda *a, **k: (calls.append(1), fused(*a, **k))[1]
    )
    inspection.encoder_attention(model, inputs, 2)
    assert len(calls) == 2  # the blocks in front of the last one; nothing behind runs
    calls.clear()
    model(inputs)
    assert len(calls) == 5


def test_other_threads_are_not_disturbed() -> None:
    model, inputs = segmentor(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(inputs)
    errors: list[Any] = []

    def predict() -> None:
        with torch.no_grad():
            for _ in range(30):
                try:
                    assert torch.equal(model(inputs), expected)
                except BaseException as error:  # the exception that stops a recording is one too
                    errors.append(error)

    thread = threading.Thread(target=predict)
    thread.start()
    while thread.is_alive():
        inspection.encoder_attention(model, inputs, 1, query=0)
    assert not errors


def test_compiled_parts_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks are not called in what torch.compile made, so that is not run."""
    model, inputs = segmentor(), torch.randn(1, 3, 32, 32)
    expected = inspection.decoder_attention(model, inputs), inspection.encoder_attention(model, inputs)
    monkeypatch.setattr(model.decode_head, 'forward', lambda *_: pytest.fail('compiled'))  # as compile_parts does
    assert_close(inspection.decoder_attention(model, inputs), expected[0])
    monkeypatch.setattr(model.backbone, '_compiled_call_impl', lambda *_: pytest.fail('compiled'))  # Module.compile()
    assert_close(inspection.encoder_attention(model, inputs), expected[1])


def test_errors() -> None:
    model, inputs = segmentor(), torch.randn(1, 3, 16, 16)
    for function, part, count in (
        (inspection.encoder_attention, 'encoder', 3),
        (inspection.patch_features, 'encoder', 3),
        (inspection.attention_rollout, 'encoder', 3),
        (inspection.decoder_attention, 'decoder', 2),
    ):
        for layer in (count, -count - 1):
            with pytest.raises(
                UserError, match=f'layer={layer}; expected 0 to {count - 1}, .*: the {part} has {count}'
            ):
                function(model, inputs, layer)
    with pytest.raises(UserError, match='LinearHead has no self-attention; expected SegmenterMaskTransformerHead'):
        inspection.decoder_attention(segmentor(head=LINEAR), inputs)
    model.backbone = nn.Identity()
    with pytest.raises(UserError, match='backbone Identity has no self-attention; expected SegmenterViT'):
        inspection.encoder_attention(model, inputs)


PIPELINE = 'test_dataloader__dataset__pipeline'


def with_resize(**resize: Any) -> dict[str, Any]:
    return {PIPELINE: [dict(type='LoadImageFromFile'), dict(type='Resize', **resize), dict(type='PackSegInputs')]}


@pytest.mark.parametrize(
    ('changes', 'area'),
    [
        ({}, (0, 0, 7, 5)),
        (dict(mode='whole', model__backbone__patch_size=16), (0, 0, 3.5, 2.5)),
        (with_resize(scale=(112, 96), keep_ratio=True), (0, 0, 14, 10)),
        (with_resize(scale=(60, 60), keep_ratio=False), (0, 0, 7.5, 7.5)),
        (dict(model__data_preprocessor__test_cfg=dict(size_divisor=32)), (0, 0, 7, 5)),
    ],
)
def test_network_image(changes: dict[str, Any], area: tuple[float, ...], tmp_path: Any) -> None:
    predictor = Predictor(save_run(tmp_path / 'run', tiny_config(**changes)), device='cpu')
    image = inspection.network_image(predictor, write_image(tmp_path / 'image.png', (40, 56)))
    assert image.area == area
    assert image.grid == inspection.patch_grid(predictor.model, image.inputs)
    seen = []
    predictor.model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    predictor.model.test_cfg.mode = 'whole'
    predictor.predict(str(tmp_path / 'image.png'))
    assert torch.equal(image.inputs, seen[0])  # what the network gets in a prediction
    patches = {image.patch_at(x, y) for x in range(56) for y in range(40)}
    assert max(patches) == (math.ceil(area[3]) - 1, math.ceil(area[2]) - 1) and min(patches) == (0, 0)
    for x, y in ((0, 0), (55, 39), (20, 31)):
        left, top, width, height = image.box_of(image.patch_at(x, y))
        assert left <= x + 0.5 <= left + width and top <= y + 0.5 <= top + height
    for x, y in ((56, 0), (0, 40), (-1, 0)):
        with pytest.raises(UserError, match=f'pixel {x},{y} is outside .*; expected x from 0 to 55 and y from 0 to 39'):
            image.patch_at(x, y)


def test_maps_lie_on_the_image(tmp_path: Any) -> None:
    """A map whose values are the coordinates of the patches gives the coordinates of the pixels."""
    changes = {
        'model__data_preprocessor__test_cfg': dict(size_divisor=32),
        **with_resize(scale=(60, 60), keep_ratio=False),
    }
    predictor = Predictor(save_run(tmp_path / 'run', tiny_config(**changes)), device='cpu')
    image = inspection.network_image(predictor, write_image(tmp_path / 'image.png', (40, 56)))
    assert image.grid == (8, 8) and image.area == (0, 0, 7.5, 7.5)
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing='ij')
    y, x = image.on_image(torch.stack((rows, columns)))
    assert_close(y[:, 30], ((torch.arange(40) + 0.5) / 40 * 7.5 - 0.5).clamp(0, 7), atol=1e-5, rtol=0)
    assert_close(x[20], ((torch.arange(56) + 0.5) / 56 * 7.5 - 0.5).clamp(0, 7), atol=1e-5, rtol=0)
    assert image.on_image(rows[None], (20, 28)).shape == (1, 20, 28)


def test_augmenting_predictors_are_refused(tmp_path: Any) -> None:
    predictor = Predictor(save_run(tmp_path / 'run', tiny_config()), device='cpu', tta=True)
    with pytest.raises(UserError, match='tta=True; expected one without'):
        inspection.network_image(predictor, write_image(tmp_path / 'image.png'))


def test_other_backbones_are_refused(tmp_path: Any) -> None:
    predictor = Predictor(save_run(tmp_path / 'run', tiny_config()), device='cpu')
    predictor.model.backbone = nn.Identity()
    with pytest.raises(UserError, match='backbone Identity: expected SegmenterViT or VisionTransformer'):
        inspection.network_image(predictor, write_image(tmp_path / 'image.png'))
