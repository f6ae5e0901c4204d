"""Test-time augmentation without logits at full size."""

from typing import Any

from mmengine.structures import PixelData
from mmseg.models.segmentors import SegTTAModel as MMSegTTAModel
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from ..dense import LogitMap, argmax_labels, check_finite
from .segmenter import Segmenter, image_names


# force: mmseg's default_runtime.py names this class, and mmseg's own needs logits that a Segmenter does not return.
@MODELS.register_module(name='SegTTAModel', force=True)
class SegTTAModel(MMSegTTAModel):
    """Average the softmax over augmentations, tile by tile.

    For a :class:`Segmenter`, only the head's logits of each augmentation are
    stored. Each tile of the mean is computed from them and turned into labels,
    where mmseg stores all logits at full size. The labels are those of mmseg
    and of the official code (``segm/model/utils.py``, ``inference``). Other
    segmentors are run by mmseg's code.

    Args: as mmseg's ``SegTTAModel`` (``module``: the segmentor or its config).
    """

    def test_step(self, data: Any) -> list[SegDataSample]:
        """Segment each image of a batch from all its augmentations.

        Args:
            data: ``inputs`` and ``data_samples``, each a list of augmentations
                of lists of images.

        Returns:
            For each image its first sample, with ``pred_sem_seg`` (1, H, W).

        Raises:
            UserError: logits are NaN or infinite; names the image.
        """
        if not isinstance(self.module, Segmenter):
            return super().test_step(data)
        results = [samples[0] for samples in zip(*data['data_samples'], strict=True)]
        maps = self.logit_maps(data)
        threshold = getattr(self.module.decode_head, 'threshold', 0.5)
        for result, maps_of_image in zip(results, maps, strict=True):
            result.pred_sem_seg = PixelData(data=argmax_labels(maps_of_image, threshold)[None])
        check_finite(maps, image_names(results))
        return results

    def logit_maps(self, data: Any) -> list[list[LogitMap]]:
        """Return the logits of all augmentations of each image, in the coordinates of the original.

        Args:
            data: as :meth:`test_step`; ``module`` must be a :class:`Segmenter`.
        """
        augmentations = []
        for inputs, samples in zip(data['inputs'], data['data_samples'], strict=True):
            batch = self.module.data_preprocessor(dict(inputs=inputs, data_samples=samples), False)
            augmentations.append(self.module.logit_maps(**batch))
        return [list(maps) for maps in zip(*augmentations, strict=True)]
