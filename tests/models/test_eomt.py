"""EoMT: predictions of every block against the authors' code, and inference against a plain computation."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from allocations import LargestTensor
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from tiny_eomt import official, official_model, tiny_eomt
from torch.testing import assert_close

from mmseg_segmenter.errors import UserError
from mmseg_segmenter.models.dense import argmax_labels, logit_map, probability_map, window_starts
from mmseg_segmenter.models.layers import QueryFeatures, Rope

SIZES = [('dinov2', '64x64'), ('dinov3', '64x64'), ('dinov3', '64x96')]


def angles_of_transformers(grid, head_dims):
    """Its coordinates and periods are float32, also in a float64 model."""
    frequencies = 1 / 100.0 ** torch.arange(0, 1, 4 / head_dims)
    coordinates = torch.cartesian_prod(*(torch.arange(0.5, side) / side for side in grid)) * 2 - 1
    angles = ((2 * math.pi * coordinates[:, :, None]) * frequencies.double()).flatten(1)
    return Rope(angles.sin(), angles.cos())


@pytest.mark.parametrize(('name', 'tag'), SIZES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_predictions_equal_the_authors_code(monkeypatch, name, tag, dtype):
    arrays, meta, weights = official(name)
    model = official_model(name).to(dtype).train()
    rope = model.backbone.rope_embed
    if rope is not None:
        rope.rescale = None
        if dtype == torch.float64:
            head_dims = meta['hidden_size'] // meta['num_attention_heads']
            monkeypatch.setattr(rope, 'forward', lambda grid: angles_of_transformers(grid, head_dims))
    mean, std = (weights[f'encoder.pixel_{key}'].to(dtype) for key in ('mean', 'std'))
    images = (torch.from_numpy(arrays[f'in/{tag}']).to(dtype) - mean) / std
    with torch.no_grad():
        masked, plain = model.predictions(images), [model(images)]
    assert len(masked) == 3
    for kind, predictions in (('masked', masked), ('plain', plain)):
        for i, prediction in enumerate(predictions):
            for found, key in zip(prediction, ('mask', 'class'), strict=True):
                expected = torch.from_numpy(arrays[f'{kind}/{key}_logits_f64/{tag}/{i}'])
                # Mask logits reach 56, so float32 is compared relative to the largest.
                scale = expected.abs().max().item() / 10 if key == 'mask' else 1
                atol = 1e-9 if dtype == torch.float64 else 1e-4 * scale
                assert_close(found, expected.to(dtype), atol=atol, rtol=0)


# Masks of attention


def test_each_query_is_limited_with_the_probability_of_its_block():
    torch.manual_seed(0)
    head = tiny_eomt(head=dict(num_queries=400)).decode_head
    logits = torch.full((2, 400, 8, 8), -1.0)
    logits[..., :4] = 1.0  # the left half
    head.mask_probabilities[0] = 0.7
    mask = head.attention_mask(0, logits, (4, 4), 400 + 1 + 16)
    assert mask.shape == (2, 1, 400, 417) and mask.dtype == torch.bool
    assert mask[..., :401].all()
    to_patches = mask[:, 0, :, 401:].unflatten(2, (4, 4))
    assert to_patches[..., :2].all()
    limited = ~to_patches[..., 2:].flatten(2).any(2)
    assert torch.equal(~limited, to_patches[..., 2:].flatten(2).all(2))
    assert 0.65 < limited.float().mean() < 0.75
    head.mask_probabilities[0] = 0
    assert head.attention_mask(0, logits, (4, 4), 417) is None


def test_probabilities_are_in_checkpoints():
    model = tiny_eomt()
    model.decode_head.mask_probabilities[0] = 0.25
    other = tiny_eomt()
    other.load_state_dict(model.state_dict())
    assert other.decode_head.mask_probabilities.tolist() == [0.25]


def test_masks_are_given_for_the_queries_and_not_per_head(monkeypatch):
    model = tiny_eomt().train()
    given = []
    attention = F.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None, **kwargs):
        given.append(attn_mask)
        return attention(q, k, v, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(F, 'scaled_dot_product_attention', spy)
    model.predictions(torch.randn(2, 3, 32, 32))
    none, limited, others = given  # of the patches before the queries join, of the queries, and of the other tokens
    assert none is others is None and limited.shape == (2, 1, 5, 22) and limited.dtype == torch.bool


@pytest.mark.parametrize('recompute', [False, True])
def test_upscaling_in_training(recompute):
    """It and its gradients are those of the transposed convolution, also if it is computed again."""
    head = tiny_eomt().double().decode_head
    block = head.upscale[0]
    feature_map = torch.randn(2, 4, 5, 16, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
    x = block.norm(block.conv2(block.act(block.conv1(feature_map))).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    queries = torch.randn(2, 5, 16, dtype=torch.float64)
    expected = torch.einsum('bqc,bchw->bqhw', head.mask_embed(queries), x)
    found = head(QueryFeatures(queries, feature_map), recompute).masks
    assert_close(found, expected, atol=1e-12, rtol=0)
    weights, leaves = torch.randn_like(found), [feature_map, *head.upscale.parameters()]
    gradients = (torch.autograd.grad((masks * weights).sum(), leaves) for masks in (found, expected))
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, atol=1e-10, rtol=0)


def test_all_predictions_but_the_last_are_upscaled_again():
    model = tiny_eomt(head=dict(num_blocks=2, with_cp=True)).train()
    calls = []
    model.decode_head.upscale.register_forward_pre_hook(lambda *_: calls.append(1))
    predictions = model.predictions(torch.randn(1, 3, 32, 32))
    assert len(calls) == 3
    sum(masks.sum() for masks, _ in predictions).backward()
    assert len(calls) == 5


def test_loss_is_given_all_predictions():
    model = tiny_eomt(head=dict(num_blocks=2)).train()
    calls = []

    class Loss(torch.nn.Module):
        def forward(self, *args):
            calls.append(args)
            return dict(loss_mask=torch.zeros(()))

    model.decode_head.loss_decode = Loss()
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.ones(1, 32, 32, dtype=torch.long)))
    losses = model.loss(torch.randn(1, 3, 32, 32), [sample])
    assert list(losses) == ['decode.loss_mask']
    ((masks, classes, labels, ignored),) = calls
    assert [m.shape for m in masks] == [(1, 5, 8, 8)] * 3 and [c.shape for c in classes] == [(1, 5, 5)] * 3
    assert labels.shape == (1, 32, 32) and ignored == 255


# Inference


def plain_scores(model, image, starts, window, image_size):
    """Score at full size, as the authors' code does: masks at pixels, sigmoid, mean over windows, resize."""
    (ys, xs), (height, width) = starts, window
    total, count = torch.zeros(4, *image.shape[1:]), torch.zeros(image.shape[1:])
    for y in ys:
        for x in xs:
            masks, classes = model(image[None, :, y : y + height, x : x + width])
            masks = F.interpolate(masks, window, mode='bilinear').sigmoid()
            scores = torch.einsum('bqhw,bqk->bkhw', masks, classes.softmax(-1)[..., :-1])[0]
            total[:, y : y + height, x : x + width] += scores
            count[y : y + height, x : x + width] += 1
    return F.interpolate((total / count)[None], image_size, mode='bilinear')[0]


def sample(size, ori_size, **meta):
    return SegDataSample(metainfo=dict(img_shape=size, pad_shape=size, ori_shape=ori_size, **meta))


SLIDE = dict(mode='slide', crop_size=(32, 32), stride=(24, 20))


@pytest.mark.parametrize(
    ('test_cfg', 'size', 'starts'),
    [
        (dict(mode='whole'), (40, 56), ([0], [0])),
        (SLIDE, (45, 70), ([0, 13], [0, 20, 38])),
        (dict(mode='slide', crop_size=(32, 32), stride=(32, 32), even_windows=True), (32, 77), ([0], [0, 22, 45])),
    ],
    ids=['whole', 'slide', 'published'],
)
@pytest.mark.parametrize('ori_size', [None, (61, 50)])
def test_scores_equal_a_plain_computation(monkeypatch, test_cfg, size, starts, ori_size):
    monkeypatch.setitem(logit_map._TILE_BYTES, 'cpu', 9 * 4 * 300)
    model = tiny_eomt(test_cfg | dict(return_logits=True))
    ori_size = ori_size or size
    torch.manual_seed(1)
    image = 3 * torch.randn(3, *size)
    window = size if test_cfg['mode'] == 'whole' else (32, 32)
    with torch.no_grad():
        expected = plain_scores(model, image, starts, window, ori_size)
        (result,) = model.predict(image[None], [sample(size, ori_size)])
    assert_close(result.seg_logits.data, expected, atol=1e-5, rtol=0)
    labels = result.pred_sem_seg.data[0]
    assert torch.equal(labels, expected.argmax(0)) and len(labels.unique()) > 1


def test_flips_and_padding_are_undone():
    model = tiny_eomt(dict(mode='whole', return_logits=True))
    image = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        (whole,) = model.logit_maps(image)
        meta = dict(flip=True, flip_direction='horizontal', img_padding_size=(0, 8, 4, 0))
        (cut,) = model.logit_maps(image, [sample((32, 48), (28, 40), **meta)])
    assert_close(cut.full(), whole.full()[:, 4:, :40].flip(2), atol=1e-6, rtol=0)


def test_padding_to_the_patch_size_is_cropped():
    model = tiny_eomt(dict(mode='whole', size_divisor=8))
    image = torch.randn(1, 3, 29, 44)
    with torch.no_grad():
        (found,) = model.logit_maps(image)
        (padded,) = model.logit_maps(F.pad(image, (0, 4, 0, 3)))
    assert_close(found.full(), padded.full()[:, :29, :44], atol=1e-6, rtol=0)


def test_probabilities_add_up_to_one():
    model = tiny_eomt()
    with torch.no_grad():
        (scores_map,) = model.logit_maps(torch.randn(1, 3, 32, 32))
    probabilities, scores = probability_map([scores_map], torch.float32), scores_map.full()
    assert_close(probabilities, scores / scores.sum(0), atol=1e-6, rtol=0)


def test_test_time_augmentation():
    from mmseg_segmenter.models import SegTTAModel

    model = tiny_eomt(SLIDE)
    images = [torch.randint(0, 255, (3, *size)).float() for size in ((40, 48), (52, 60))]
    data = dict(
        inputs=[[image] for image in images],
        data_samples=[[sample(image.shape[1:], (40, 48), flip=False)] for image in images],
    )
    with torch.no_grad():
        (result,) = SegTTAModel(module=model).test_step(data)
        maps = [model.logit_maps(image[None], [sample(image.shape[1:], (40, 48))])[0].full() for image in images]
    expected = sum(scores / scores.sum(0) for scores in maps).argmax(0)
    assert torch.equal(result.pred_sem_seg.data[0], expected)


@pytest.mark.parametrize('length', [512, 513, 683, 1024, 1025, 2000, 2048])
def test_published_windows(length):
    """The formula of ``window_imgs_semantic``."""
    num_crops = math.ceil(length / 512)
    overlap = num_crops * 512 - length
    overlap_per_crop = (overlap / (num_crops - 1)) if overlap > 0 else 0
    starts = [int(j * (512 - overlap_per_crop)) for j in range(num_crops)]
    assert window_starts(length, 512, 512, even=True) == starts
    assert all(right - left <= 512 for left, right in pairwise(starts)) and starts[-1] + 512 == length


def test_scores_that_are_not_finite_are_refused():
    model = tiny_eomt()
    with torch.no_grad():
        model.decode_head.cls_embed.bias[0] = torch.nan
        with pytest.raises(UserError, match='image 0 of the batch: the logits of the model are not finite'):
            model.predict(torch.randn(1, 3, 32, 32))


# Parts that do not fit


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(head=dict(num_blocks=3)), 'decode_head.num_blocks=3: the backbone has num_layers=2'),
        (dict(head=dict(num_blocks=0)), 'num_blocks=0, expected at least 1'),
        (dict(head=dict(patch_size=4)), 'patch_size=4, expected 8, 16 or another power of two'),
        (dict(head=dict(patch_size=14)), 'patch_size=14, expected 8, 16 or another power of two'),
        (dict(head=dict(patch_size=16)), 'decode_head.patch_size=16, backbone.patch_size=8; expected the same'),
        (dict(head=dict(in_channels=32)), 'decode_head.in_channels=32, backbone.embed_dims=16; expected the same'),
        (dict(backbone=dict(final_norm=False)), 'EoMT needs final_norm=True'),
    ],
)
def test_parts_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        tiny_eomt(**options)


def test_other_heads_are_refused():
    backbone = dict(type='SegmenterViT', img_size=32, patch_size=8, embed_dims=16, num_layers=2, num_heads=2)
    with pytest.raises(UserError, match=r'decode_head.type=LinearHead, expected EoMTHead'):
        MODELS.build(
            dict(type='EoMT', backbone=backbone, decode_head=dict(type='LinearHead', in_channels=16, num_classes=4))
        )


def test_masks_of_all_queries_exist_for_a_tile_only():
    model = tiny_eomt(SLIDE, head=dict(num_queries=20, num_classes=30))
    image = torch.randn(1, 3, 256, 512)
    with torch.no_grad(), LargestTensor() as largest:
        (logit_map_of_image,) = model.logit_maps(image)
        argmax_labels([logit_map_of_image])
    assert largest.numel < 30 * 256 * 512 / 4
