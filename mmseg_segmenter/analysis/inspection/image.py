"""From an image to the inputs of the network, and between its pixels and patches."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from torch import Tensor

from ...apis import InputImage, Predictor
from ...errors import UserError
from .features import patch_grid


class Patch(NamedTuple):
    """A patch of a grid."""

    row: int
    column: int


class Box(NamedTuple):
    """A rectangle in an image, in pixels."""

    left: float
    top: float
    width: float
    height: float


class NetworkImage(NamedTuple):
    """An image, what the network gets of it, and where its patches are.

    Attributes:
        image: the decoded image, H x W pixels.
        inputs: (1, C, h', w'), the normalised image on the device of the model.
        grid: number of patches (h, w) below and beside each other.
        area: where the image is in the grid, in patches: the grid may be larger
            because of padding.
    """

    image: InputImage
    inputs: Tensor
    grid: tuple[int, int]
    area: Box

    def patch_at(self, x: float, y: float) -> Patch:
        """Return the patch at a pixel of the image.

        Args:
            x: column of the pixel, 0 to W - 1.
            y: row of the pixel, 0 to H - 1.

        Raises:
            UserError: the pixel is outside the image.
        """
        height, width = self.image.bgr.shape[:2]
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(
                f'pixel {x:g},{y:g} is outside {self.image.source}; expected x from 0 to {width - 1} and y from 0 to '
                f'{height - 1}'
            )
        row = int(self.area.top + (y + 0.5) / height * self.area.height)
        column = int(self.area.left + (x + 0.5) / width * self.area.width)
        return Patch(min(row, self.grid[0] - 1), min(column, self.grid[1] - 1))

    def box_of(self, patch: Patch) -> Box:
        """Return where a patch is in the image, in pixels of the image."""
        height, width = self.image.bgr.shape[:2]
        x, y = width / self.area.width, height / self.area.height  # pixels of a patch
        return Box((patch.column - self.area.left) * x, (patch.row - self.area.top) * y, x, y)

    def on_image(self, maps: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Interpolate maps of patches bilinearly to pixels.

        Args:
            maps: (n, h, w).
            size: (height, width) of the result; default that of the image.

        Returns:
            (n, height, width).
        """
        height, width = size or self.image.bgr.shape[:2]
        (h, w), area = self.grid, self.area
        # -1 and 1 are the borders of the grid.
        theta = [
            [area.width / w, 0, (2 * area.left + area.width) / w - 1],
            [0, area.height / h, (2 * area.top + area.height) / h - 1],
        ]
        where = F.affine_grid(torch.tensor([theta]).to(maps), [1, 1, height, width], align_corners=False)
        return F.grid_sample(maps[None], where, padding_mode='border', align_corners=False)[0]


def network_image(predictor: Predictor, image: Any, channel_order: str = 'bgr') -> NetworkImage:
    """Read an image and preprocess it as for a prediction, but as a whole: not cut into windows.

    Args:
        predictor: the model; without test-time augmentation.
        image: as :meth:`Predictor.__call__`.
        channel_order: as :meth:`Predictor.__call__`.

    Raises:
        UserError: the image cannot be read, ``predictor`` augments, or its
            backbone is no ViT.
    """
    if predictor.tta:
        raise UserError('the predictor has tta=True; expected one without test-time augmentation')
    backbone = predictor.model.backbone
    if not isinstance(getattr(backbone, 'patch_size', None), int) or not hasattr(backbone, 'patch_embed'):
        raise UserError(
            f'backbone {type(backbone).__name__}: expected SegmenterViT or VisionTransformer to look inside'
        )
    prepared = predictor.prepare(image, channel_order)
    batch = predictor.model.data_preprocessor(pseudo_collate([prepared.sample]), False)
    inputs, meta = batch['inputs'], batch['data_samples'][0].metainfo
    left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
    patch, (height, width) = backbone.patch_size, inputs.shape[2:]
    area = Box(left / patch, top / patch, (width - left - right) / patch, (height - top - bottom) / patch)
    return NetworkImage(prepared.image, inputs, patch_grid(predictor.model, inputs), area)
