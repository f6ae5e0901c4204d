"""The whole model: mmseg's EncoderDecoder with Segmenter's inference."""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor

from .label_check import check_labels


@MODELS.register_module()
class Segmenter(EncoderDecoder):
    """``EncoderDecoder`` that treats image borders as the official code does.

    Without the key below it is exactly mmseg's ``EncoderDecoder``, except
    that annotations are checked: a label outside the model's classes is an
    error that names the file, before it can become an assertion on the GPU.

    Args:
        test_cfg: additionally to mmseg's keys, ``size_divisor`` (int): zero-pad
            each network input at the bottom and right to a multiple of it (the
            patch size), upsample the logits to the padded size, then crop
            (official ``segm/model/segmenter.py``). mmseg pads too, but
            stretches the padded grid over the unpadded image.
        others: as ``EncoderDecoder``.

    Raises:
        ValueError: ``size_divisor`` is not a positive integer.
    """

    def __init__(self, *args: Any, test_cfg: dict[str, Any] | None = None, **kwargs: Any) -> None:
        # mmseg reads test_cfg.mode as an attribute, which a plain dict does not have.
        test_cfg = ConfigDict(test_cfg or dict(mode='whole'))
        super().__init__(*args, test_cfg=test_cfg, **kwargs)
        divisor = test_cfg.get('size_divisor')
        if divisor is not None and (not isinstance(divisor, int) or divisor < 1):
            raise ValueError(f'test_cfg.size_divisor={divisor!r}; expected a positive integer, the patch size')
        # The preprocessor is where labels are last seen on the CPU, under every model wrapper (DDP, FSDP):
        # looking at them later would stall the GPU.
        self.data_preprocessor.register_forward_pre_hook(self._check_labels)

    def _check_labels(self, _: torch.nn.Module, args: tuple[Any, ...]) -> None:
        samples = args[0].get('data_samples') if args and isinstance(args[0], dict) else None
        check_labels(samples or [], self.num_classes, self.decode_head.ignore_index)

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Logits of the size of ``inputs``.

        Args:
            inputs: (B, 3, H, W) normalised images or windows.
            batch_img_metas: one dict per image.

        Returns:
            (B, K, H, W).
        """
        divisor = self.test_cfg.get('size_divisor')
        if divisor is None:
            return super().encode_decode(inputs, batch_img_metas)
        H, W = inputs.shape[-2:]
        inputs = F.pad(inputs, (0, -W % divisor, 0, -H % divisor))
        # A torch.Size is how mmseg tells the head which size to upsample to.
        metas = [dict(meta, img_shape=torch.Size(inputs.shape[-2:])) for meta in batch_img_metas]
        return super().encode_decode(inputs, metas)[..., :H, :W]
