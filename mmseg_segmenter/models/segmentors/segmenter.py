"""The whole model: mmseg's EncoderDecoder with Segmenter's inference."""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor

from .label_check import check_labels
from .load_report import report_loading


@MODELS.register_module()
class Segmenter(EncoderDecoder):
    """``EncoderDecoder`` that treats image borders as the official code does.

    Without the key below it is exactly mmseg's ``EncoderDecoder``, except
    that annotations are checked: a label outside the model's classes is an
    error that names the file, before it can become an assertion on the GPU;
    and that the log says whether all of a checkpoint was used.

    Args:
        test_cfg: mmseg's keys (``mode`` defaults to ``'whole'``) and, for
            inference only, ``size_divisor`` (int): zero-pad each network input
            at the bottom and right to a multiple of it (the patch size),
            upsample the logits to the padded size, then crop (official
            ``segm/model/segmenter.py``). mmseg pads too, but stretches the
            padded grid over the unpadded image.
        others: as ``EncoderDecoder``.

    Raises:
        ValueError: ``size_divisor`` is not a multiple of the patch size, the
            window options are missing or leave gaps, the heads have different
            classes, or the padding of annotations is neither a class nor
            ignored.
    """

    def __init__(self, *args: Any, test_cfg: dict[str, Any] | None = None, **kwargs: Any) -> None:
        # mmseg reads test_cfg.mode as an attribute, which a plain dict does not have.
        test_cfg = ConfigDict({'mode': 'whole', **(test_cfg or {})})
        super().__init__(*args, test_cfg=test_cfg, **kwargs)
        self._check_test_cfg()
        self._check_classes()
        # The preprocessor is where labels are last seen on the CPU, under every model wrapper (DDP, FSDP):
        # looking at them later would stall the GPU.
        self.data_preprocessor.register_forward_pre_hook(self._check_labels)
        report_loading(self)

    def _check_test_cfg(self) -> None:
        cfg = self.test_cfg
        divisor, patch = cfg.get('size_divisor'), getattr(self.backbone, 'patch_size', 1)
        if divisor is not None and (not isinstance(divisor, int) or divisor < 1 or divisor % patch):
            raise ValueError(
                f'test_cfg.size_divisor={divisor!r}; expected a positive multiple of the patch size {patch}'
            )
        if cfg.mode not in ('slide', 'whole'):
            raise ValueError(f"test_cfg.mode={cfg.mode!r}; expected 'slide' or 'whole'")
        if cfg.mode == 'slide':
            crop, stride = cfg.get('crop_size'), cfg.get('stride')
            if crop is None or stride is None or any(not 0 < s <= c for s, c in zip(stride, crop, strict=True)):
                raise ValueError(
                    f'test_cfg.crop_size={crop}, stride={stride}; sliding windows need both, with a stride from 1 to '
                    'the window size'
                )

    def _check_classes(self) -> None:
        heads = [self.decode_head]
        if self.with_auxiliary_head:
            auxiliary = self.auxiliary_head
            heads += list(auxiliary) if isinstance(auxiliary, torch.nn.ModuleList) else [auxiliary]
        counts = [head.num_classes for head in heads]
        if len(set(counts)) > 1:
            raise ValueError(
                f'num_classes of decode_head is {counts[0]}, of auxiliary_head {", ".join(map(str, counts[1:]))}; '
                'expected the same'
            )
        # One sigmoid map tells two classes apart: mmseg's binary mode, in whichever way the classes are counted.
        self._num_labels = max(self.num_classes, 2) if self.out_channels == 1 else self.num_classes
        padding, ignored = getattr(self.data_preprocessor, 'seg_pad_val', None), self.decode_head.ignore_index
        if padding is not None and padding != ignored and not 0 <= padding < self._num_labels:
            raise ValueError(
                f'data_preprocessor.seg_pad_val={padding} is neither a class nor ignore_index={ignored} of the head; '
                'set them to the same value'
            )

    def _check_labels(self, _: torch.nn.Module, args: tuple[Any, ...]) -> None:
        samples = args[0].get('data_samples') if args and isinstance(args[0], dict) else None
        check_labels(samples or [], self._num_labels, self.decode_head.ignore_index)

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
