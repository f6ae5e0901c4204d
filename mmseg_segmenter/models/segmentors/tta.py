"""Multi-scale and flip testing without full-size logits."""

from typing import Any

from mmengine.structures import PixelData
from mmseg.models.segmentors import SegTTAModel as MMSegTTAModel
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from ..dense import LogitMap, argmax_labels
from .segmenter import Segmenter


# force: mmseg's default_runtime.py names this class, and a Segmenter does not keep the logits that mmseg's asks for.
@MODELS.register_module(name='SegTTAModel', force=True)
class SegTTAModel(MMSegTTAModel):
    """Mean softmax over the augmentations, computed tile by tile.

    For a :class:`Segmenter` only the head's logits of each augmentation are
    kept, from which every tile of the mean is made and turned into labels.
    mmseg keeps a full logit map for each. The result is the same, and the
    official one (``segm/model/utils.py``, ``inference``). Other segmentors go
    mmseg's way.

    Args: as mmseg's ``SegTTAModel`` (``module``: the segmentor or its config).
    """

    def test_step(self, data: Any) -> list[SegDataSample]:
        """Segment each image of a batch from all its augmentations.

        Args:
            data: ``inputs`` and ``data_samples``, each a list of augmentations
                of lists of images.

        Returns:
            For each image its first sample, with ``pred_sem_seg`` (1, H, W).
        """
        if not isinstance(self.module, Segmenter):
            return super().test_step(data)
        results = [samples[0] for samples in zip(*data['data_samples'], strict=True)]
        threshold = getattr(self.module.decode_head, 'threshold', 0.5)
        for result, maps in zip(results, self.logit_maps(data), strict=True):
            result.pred_sem_seg = PixelData(data=argmax_labels(maps, threshold)[None])
        return results

    def logit_maps(self, data: Any) -> list[list[LogitMap]]:
        """Return for each image the logits of all its augmentations, in the place of the original.

        Args: as :meth:`test_step`; ``module`` must be a :class:`Segmenter`.
        """
        augmentations = []
        for inputs, samples in zip(data['inputs'], data['data_samples'], strict=True):
            batch = self.module.data_preprocessor(dict(inputs=inputs, data_samples=samples), False)
            augmentations.append(self.module.logit_maps(**batch))
        return [list(maps) for maps in zip(*augmentations, strict=True)]
