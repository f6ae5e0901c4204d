"""Choose colours for classes that have none."""

import cv2
import numpy as np


def default_palette(num_classes: int) -> np.ndarray:
    """Return colours that differ as much as possible from those of the classes before: hues by the golden angle.

    Returns:
        (K, 3) uint8 RGB.
    """
    index = np.arange(num_classes)
    hsv = np.stack((index * 360 * 0.618034 % 360, 1 - index // 3 % 3 * 0.24, 0.9 - index % 3 * 0.24), axis=1)
    return (cv2.cvtColor(hsv.astype(np.float32)[None], cv2.COLOR_HSV2RGB)[0] * 255).round().astype(np.uint8)
