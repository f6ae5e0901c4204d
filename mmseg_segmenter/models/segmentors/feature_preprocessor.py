"""Data preprocessor that lets features take the place of images."""

from typing import Any

import torch
from mmseg.models import SegDataPreProcessor
from mmseg.registry import MODELS


@MODELS.register_module()
class FeatureDataPreprocessor(SegDataPreProcessor):
    """``SegDataPreProcessor`` that, in training, also takes the feature maps of cached samples.

    :class:`Segmenter` then leaves its backbone out. Images are treated as in the base class, which has the same
    arguments.
    """

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Stack a batch and move it to the device.

        Args:
            data: ``inputs`` are images, or for each output of the backbone the maps (C, h, w) of all images.
            training: features are expected in training only.

        Returns:
            As the base class; of features, ``inputs`` is a tuple of (B, C, h, w).
        """
        inputs = data['inputs']
        if not training or isinstance(inputs[0], torch.Tensor):
            batch: dict[str, Any] = super().forward(data, training)
            return batch
        data = self.cast_data(data)
        return dict(data, inputs=tuple(torch.stack(list(maps)) for maps in data['inputs']))
