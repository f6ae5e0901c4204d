"""Load the images of a dataset, and refuse damaged files."""

from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmseg.registry import TRANSFORMS

from .image_files import MAX_PIXELS, decode, entries_named, read_file


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """Load an image in place of mmcv's ``LoadImageFromFile``, and refuse files that are not whole images.

    ``LoadImageFromFile`` waits forever for a pipe, allocates what the header of a file declares, and depending on the
    version of OpenCV fills the missing end of a file with grey. Its errors do not name the file. Pixels are the same.

    Args:
        to_float32: as in ``LoadImageFromFile``.
        color_type: as in ``LoadImageFromFile``.
        imdecode_backend: as in ``LoadImageFromFile``.
        max_pixels: larger images are refused before they are decoded.
        backend_args: as in ``LoadImageFromFile``.
    """

    def __init__(
        self,
        to_float32: bool = False,
        color_type: str = 'color',
        imdecode_backend: str = 'cv2',
        max_pixels: int = MAX_PIXELS,
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(to_float32, color_type, imdecode_backend, backend_args=backend_args)
        self.max_pixels = max_pixels

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``img`` (H, W) or (H, W, C), ``img_shape`` and ``ori_shape`` to a sample with ``img_path``.

        Raises:
            BadSampleError: the file is missing, empty, incomplete, too large or not an image; names the file and what
                to look at in the config.
        """
        path = results['img_path']
        with entries_named('dataset.data_prefix.img_path', 'dataset.img_suffix'):
            content = read_file(path, self.backend_args)
            image = decode(content, path, self.color_type, self.imdecode_backend, self.max_pixels)
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results
