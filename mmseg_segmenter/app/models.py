"""The models of a page: segment an image, and look at the attention and features of a patch."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ..analysis.inspection import (
    Box,
    NetworkImage,
    Patch,
    encoder_attention,
    feature_similarity,
    network_image,
    patch_features,
)
from ..apis import InputImage, Predictor
from ..errors import UserError
from .results import Opinion, Result

MAX_PATCHES = 64 * 64  # of an image that is looked into; its attention grows with the square of the number


class Heat(NamedTuple):
    """A value for each patch of an image.

    Attributes:
        values: (h, w).
        area: where these patches are, as parts of the width and height of the image; they may
            reach beyond it.
        patch: where the patch is that was clicked, also as parts of the image.
    """

    values: np.ndarray
    area: Box
    patch: Box


class Models:
    """One or several trained models that segment the same images.

    Args:
        predictors: the models.
    """

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self._predictors = predictors

    def describe(self) -> list[dict[str, Any]]:
        """Return what a page must know of each model, as JSON: its names, and the sizes of its encoder.

        ``layers`` and ``heads`` are 0 if the encoder is not a ViT, so that attention cannot be shown.
        """
        checkpoints = [str(predictor.checkpoint) for predictor in self._predictors]
        choices = (
            [os.path.basename(str(predictor.cfg.filename)).removesuffix('.py') for predictor in self._predictors],
            [os.path.basename(checkpoint) for checkpoint in checkpoints],  # of one config
            ['/'.join(checkpoint.split('/')[-2:]) for checkpoint in checkpoints],  # of two runs
            checkpoints,
        )
        names = next((found for found in choices if len(set(found)) == len(found)), choices[1])
        return [
            dict(
                name=name,
                layers=len(blocks := _blocks(predictor)),
                heads=blocks[0].attn.attn.num_heads if blocks else 0,
                classes=predictor.classes.names,
                palette=predictor.classes.palette.tolist(),
            )
            for name, predictor in zip(names, self._predictors, strict=True)
        ]

    def segment(self, image: InputImage) -> Result:
        """Segment an image with every model.

        Args:
            image: to segment.

        Raises:
            UserError: the logits of a model are not finite.
        """
        return Result(image, [_opinion(predictor, image) for predictor in self._predictors])

    @torch.no_grad()
    def attention(self, result: Result, model: int, x: float, y: float, layer: int, head: int | None) -> Heat:
        """Return the attention weights from a patch to all patches of an image.

        Args:
            result: with the image.
            model: number of the model.
            x: a point of the patch, 0 (left border of the image) to 1 (right).
            y: the same, 0 (top) to 1 (bottom).
            layer: number of the layer, from 0.
            head: number of the head; None for the mean of all.

        Raises:
            UserError: the encoder is no ViT, or has no such layer or head.
        """
        predictor, image = self._predictors[model], self._network_image(result, model)
        (h, w), patch = image.grid, _patch_at(image, x, y)
        with predictor.autocast():
            weights = encoder_attention(predictor.model, image.inputs, layer, (patch.row - h) * w + patch.column)[0]
        if head is not None and not 0 <= head < len(weights):
            raise UserError(f'head={head}; expected 0 to {len(weights) - 1}')
        weights = weights.mean(dim=0) if head is None else weights[head]
        return _heat(image, weights[-h * w :].view(h, w), patch)

    @torch.no_grad()
    def similarity(self, result: Result, model: int, x: float, y: float, layer: int) -> Heat:
        """Return the cosine similarity, -1 to 1, of the features of a patch to those of all patches.

        Args: as :meth:`attention`.

        Raises:
            UserError: the encoder is no ViT, or has no such layer.
        """
        predictor, opinion = self._predictors[model], result.opinions[model]
        image = self._network_image(result, model)
        if opinion.features is None or opinion.features[0] != layer:
            with predictor.autocast():
                opinion.features = layer, patch_features(predictor.model, image.inputs, layer)
        patch = _patch_at(image, x, y)
        return _heat(image, feature_similarity(opinion.features[1], *patch)[0], patch)

    def _network_image(self, result: Result, model: int) -> NetworkImage:
        predictor, opinion = self._predictors[model], result.opinions[model]
        if not _blocks(predictor):
            raise UserError('only the attention and features of a ViT can be shown; this model has another encoder')
        if opinion.network_image is None:
            found = network_image(predictor, result.image)
            scale = (MAX_PATCHES / (found.grid[0] * found.grid[1])) ** 0.5
            if scale < 1:  # the pipeline keeps the size of a large image
                small = cv2.resize(result.image.bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                found = network_image(predictor, InputImage(small, result.image.source))
            opinion.network_image = found
        return opinion.network_image


def _blocks(predictor: Predictor) -> Sequence[Any]:
    """Return the blocks of a ViT; nothing of another encoder."""
    blocks: Any = getattr(predictor.model.backbone, 'layers', ())
    return blocks if len(blocks) and hasattr(blocks[0], 'attn') and hasattr(blocks[0].attn, 'attn') else ()


def _opinion(predictor: Predictor, image: InputImage) -> Opinion:
    prediction = predictor.predict(image)
    confidence = (prediction.confidence * 255).round().astype(np.uint8)
    prediction.forget_scores()
    del prediction.confidence  # the cached float16
    return Opinion(prediction, confidence)


def _patch_at(image: NetworkImage, x: float, y: float) -> Patch:
    height, width = image.image.bgr.shape[:2]
    return image.patch_at(min(max(x, 0), 1) * (width - 1), min(max(y, 0), 1) * (height - 1))


def _heat(image: NetworkImage, values: Tensor, patch: Patch) -> Heat:
    (h, w), area = image.grid, image.area
    grid = Box(-area.left / area.width, -area.top / area.height, w / area.width, h / area.height)
    height, width = image.image.bgr.shape[:2]
    box = image.box_of(patch)
    box = Box(box.left / width, box.top / height, box.width / width, box.height / height)
    return Heat(values.float().cpu().numpy(), grid, box)
