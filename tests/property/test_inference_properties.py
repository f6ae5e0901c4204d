"""Inference holds for any size of image, window, stride, patch and batch, and any number of classes."""

import copy
import warnings
from typing import Any, NamedTuple

import pytest
import torch
from mmengine.config import ConfigDict
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.testing import assert_close

from mmseg_segmenter.models.dense import probability_map

pytest.importorskip('hypothesis')
from hypothesis import given
from hypothesis import strategies as st

ATOL = 1e-9  # of logits, in float64


class Case(NamedTuple):
    """A model and the images that it is given.

    Attributes:
        patch_size: of the backbone.
        head: type of the decode head.
        num_classes: of the head.
        test_cfg: of the segmentor.
        batch: number of images.
        size: of the images.
        ori_shape: of the results.
        seed: of weights and images.
    """

    patch_size: int
    head: str
    num_classes: int
    test_cfg: dict[str, Any]
    batch: int
    size: tuple[int, int]
    ori_shape: tuple[int, int]
    seed: int

    def model(self, kind: str = 'Segmenter', **test_cfg: Any) -> Any:
        """Build the segmentor; equal arguments give equal weights."""
        head = dict(type=self.head, in_channels=8, num_classes=self.num_classes)
        if self.head == 'SegmenterMaskTransformerHead':
            head.update(embed_dims=8, num_heads=2, num_layers=1)
        backbone = dict(
            type='SegmenterViT', img_size=24, patch_size=self.patch_size, embed_dims=8, num_layers=1, num_heads=2
        )
        test_cfg = ConfigDict({**self.test_cfg, 'return_logits': True, **test_cfg})
        cfg = dict(type=kind, data_preprocessor=dict(type='SegDataPreProcessor'), backbone=backbone, decode_head=head)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            model = MODELS.build({**cfg, 'test_cfg': test_cfg}).double().eval()
        torch.manual_seed(self.seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return model

    def images(self) -> Tensor:
        """Return the images, (B, 3, H, W)."""
        torch.manual_seed(self.seed)
        return 3 * torch.randn(self.batch, 3, *self.size, dtype=torch.float64)


@st.composite
def cases(draw: st.DrawFn, published: bool = True) -> Case:
    """Draw a case.

    Args:
        draw: of Hypothesis.
        published: with the options of the official code, which mmseg does not have.
    """
    patch_size = draw(st.sampled_from((4, 6, 8)))
    test_cfg: dict[str, Any] = dict(mode=draw(st.sampled_from(('whole', 'slide', 'slide'))))
    if test_cfg['mode'] == 'slide':
        # A window need not be a multiple of the patch. Strides are limited, as are then the windows.
        test_cfg['crop_size'] = tuple(draw(st.integers(patch_size, 40)) for _ in range(2))
        test_cfg['stride'] = tuple(draw(st.integers(max(side // 3, 1), side)) for side in test_cfg['crop_size'])
        test_cfg['window_batch_size'] = draw(st.integers(1, 5))
    if published and draw(st.booleans()):
        test_cfg['size_divisor'] = patch_size
        test_cfg['upscale_small'] = draw(st.booleans())
    return Case(
        patch_size,
        draw(st.sampled_from(('SegmenterMaskTransformerHead', 'LinearHead'))),
        draw(st.sampled_from((2, 3, 7, 300))),
        test_cfg,
        batch=draw(st.integers(1, 3)),
        size=(draw(st.integers(1, 64)), draw(st.integers(1, 64))),
        ori_shape=(draw(st.integers(1, 80)), draw(st.integers(1, 80))),
        seed=draw(st.integers(0, 1000)),
    )


@torch.no_grad()
def predict(model: Any, images: Tensor, ori_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return logits (B, K, H, W) and labels (B, H, W)."""
    meta = dict(img_shape=images.shape[2:], pad_shape=images.shape[2:], ori_shape=ori_shape)
    results = model.predict(images, [SegDataSample(metainfo=copy.deepcopy(meta)) for _ in images])
    logits = torch.stack([result.seg_logits.data for result in results])
    return logits, torch.cat([result.pred_sem_seg.data for result in results])


@given(case=cases())
def test_shapes_and_values(case: Case) -> None:
    logits, labels = predict(case.model(), case.images(), case.ori_shape)
    assert logits.shape == (case.batch, case.num_classes, *case.ori_shape)
    assert labels.shape == (case.batch, *case.ori_shape)
    assert logits.isfinite().all() and labels.min() >= 0 and labels.max() < case.num_classes
    # The label is a class with the highest logit, but for rounding.
    chosen = logits.gather(1, labels[:, None].long())
    assert (logits.amax(dim=1, keepdim=True) - chosen).max() < ATOL


@given(case=cases(), data=st.data())
def test_batches(case: Case, data: st.DataObject) -> None:
    """Images do not depend on one another, on their order, or on the number of windows in a forward pass."""
    model, images = case.model(), case.images()
    logits, _ = predict(model, images, case.ori_shape)
    for i in range(case.batch):
        alone, _ = predict(model, images[i : i + 1], case.ori_shape)
        assert_close(alone, logits[i : i + 1], rtol=0, atol=ATOL)
    order = data.draw(st.permutations(range(case.batch)))
    permuted, _ = predict(model, images[order], case.ori_shape)
    assert_close(permuted, logits[order], rtol=0, atol=ATOL)
    model.test_cfg.window_batch_size = data.draw(st.integers(1, 9))
    again, _ = predict(model, images, case.ori_shape)
    assert_close(again, logits, rtol=0, atol=ATOL)


@given(case=cases(published=False))
def test_agrees_with_mmseg(case: Case) -> None:
    """Where both are defined: mmseg has neither ``size_divisor`` nor ``upscale_small``."""
    ours, ours_labels = predict(case.model(), case.images(), case.ori_shape)
    theirs, labels = predict(case.model('EncoderDecoder'), case.images(), case.ori_shape)
    assert_close(ours, theirs, rtol=0, atol=ATOL)
    assert_close(ours.gather(1, labels[:, None]), ours.gather(1, ours_labels[:, None].long()), rtol=0, atol=ATOL)


@given(case=cases(), more=st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_window_as_large_as_the_image_equals_whole_mode(case: Case, more: tuple[int, int]) -> None:
    window = tuple(side + extra for side, extra in zip(case.size, more, strict=True))
    slide = case.model(mode='slide', crop_size=window, stride=window, upscale_small=False)
    whole = case.model(mode='whole', upscale_small=False)
    found, expected = (predict(model, case.images(), case.ori_shape)[0] for model in (slide, whole))
    assert_close(found, expected, rtol=0, atol=ATOL)


@given(case=cases(), direction=st.sampled_from(('horizontal', 'vertical', 'diagonal')))
def test_average_over_flips_is_equivariant(case: Case, direction: str) -> None:
    """The mean over an image and its mirror image, for the mirror image, is the mirror image of the mean."""
    axes = dict(horizontal=(3,), vertical=(2,), diagonal=(2, 3))[direction]
    model = MODELS.build(dict(type='SegTTAModel', module=case.model().float())).eval()
    image = case.images()[:1].float()  # mmseg's data preprocessor makes it so

    def mean(images: tuple[Tensor, Tensor]) -> Tensor:
        meta = dict(img_shape=case.size, pad_shape=case.size, ori_shape=case.ori_shape, flip_direction=direction)
        samples = [[SegDataSample(metainfo=dict(meta, flip=flip))] for flip in (False, True)]
        data = dict(inputs=[list(one) for one in images], data_samples=samples)
        with torch.no_grad():
            (maps,) = model.logit_maps(data)
        return probability_map(maps, dtype=torch.float32)[None]

    found = mean((image.flip(axes), image))
    assert_close(found, mean((image, image.flip(axes))).flip(axes), rtol=0, atol=1e-5)
    assert_close(found.sum(dim=1), torch.ones_like(found[:, 0]), rtol=0, atol=1e-5)
