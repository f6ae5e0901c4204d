"""Segmentor with the inference of Segmenter."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from ...errors import UserError
from ...labels import check_annotations, num_labels
from ..decode_heads.tiled_loss_head import TiledLossHead
from ..dense import (
    AxisMap,
    LogitMap,
    MergedLogits,
    MergedMasks,
    WindowLogits,
    argmax_labels,
    check_finite,
    merge_windows,
)
from ..load_report import report_loading


@MODELS.register_module()
class Segmenter(EncoderDecoder):
    """``EncoderDecoder`` with faster inference in less memory.

    Labels are those of mmseg's ``EncoderDecoder``, or of the official code if
    ``test_cfg`` asks for it. Windows are segmented in batches, and only the
    logits of the head are stored. Upsampling, the mean over windows and the
    resize to the original image are composed into one linear map per axis,
    and labels are computed tile by tile. So no tensor has the size (classes,
    height, width), except with heads that have a ``predict`` of their own and
    return logits at full size. Results have ``seg_logits`` only on request.

    Annotations are checked: a label outside the classes is an error that names
    the file, instead of an assertion on the GPU. Logits that are not finite
    are an error that names the image. The log says whether all of a checkpoint
    was used.

    Subclasses change inference in :meth:`logit_maps` or :meth:`predict`;
    mmseg's ``slide_inference``, ``whole_inference`` and ``postprocess_result``
    are not called.

    Args:
        test_cfg: keys of mmseg (``mode`` defaults to ``'whole'``), and for
            inference only:

            - ``size_divisor`` (int): zero-pad each input of the network at
              the bottom and the right to a multiple of this (the patch size),
              upsample the logits to the padded size, then crop (official
              ``segm/model/segmenter.py``). mmseg pads too, but stretches the
              logits of the padded image over the image without padding.
            - ``upscale_small`` (bool): in ``'slide'`` mode, enlarge an image
              with a side below the window until that side equals the window
              (official ``segm/model/utils.py``).
            - ``even_windows`` (bool): in ``'slide'`` mode, space the windows
              evenly (EoMT), rather than move back only the last one.
            - ``window_batch_size`` (int): windows per forward pass, default 4.
            - ``return_logits`` (bool): add ``seg_logits`` (K, H, W) to each
              result, as mmseg always does.
        channels_last: keep the weights of convolutions in torch's
            ``channels_last`` memory format, so that convolutional heads
            (SETR-PUP, UPerNet) run in it. The same weights give the same
            results up to rounding, but a seed gives other random weights. Set
            when the model is built, because DDP fixes the layout of its
            buffers then.
        *args: as ``EncoderDecoder``.
        **kwargs: as ``EncoderDecoder``.

    Raises:
        UserError: ``size_divisor`` is not a multiple of the patch size, window
            options are missing or leave gaps, heads differ in their number of
            classes, or the padding value of annotations is neither a class
            nor ignored.
    """

    def __init__(
        self, *args: Any, test_cfg: dict[str, Any] | None = None, channels_last: bool = False, **kwargs: Any
    ) -> None:
        # mmseg reads test_cfg.mode as an attribute, which a plain dict does not have.
        test_cfg = ConfigDict({'mode': 'whole', **(test_cfg or {})})
        super().__init__(*args, test_cfg=test_cfg, **kwargs)
        self._check_test_cfg()
        self._check_classes()
        # The data preprocessor is the last place where labels are on the CPU, under every model wrapper (DDP, FSDP).
        # Reading them later would wait for the GPU.
        self.data_preprocessor.register_forward_pre_hook(
            partial(_check_labels, self._num_labels, self.decode_head.ignore_index)
        )
        report_loading(self)
        if channels_last:
            self.to(memory_format=torch.channels_last)

    def _check_test_cfg(self) -> None:
        cfg = self.test_cfg
        divisor, patch = cfg.get('size_divisor'), getattr(self.backbone, 'patch_size', 1)
        if divisor is not None and (not isinstance(divisor, int) or divisor < 1 or divisor % patch):
            raise UserError(
                f'test_cfg.size_divisor={divisor!r}; expected a positive multiple of the patch size {patch}'
            )
        batch_size = cfg.get('window_batch_size', 1)
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f'test_cfg.window_batch_size={batch_size!r}; expected a positive number of windows')
        if cfg.mode not in ('slide', 'whole'):
            raise UserError(f"test_cfg.mode={cfg.mode!r}; expected 'slide' or 'whole'")
        if cfg.mode == 'slide':
            crop, stride = cfg.get('crop_size'), cfg.get('stride')
            if crop is None or stride is None or any(not 0 < s <= c for s, c in zip(stride, crop, strict=True)):
                raise UserError(
                    f'test_cfg.crop_size={crop}, stride={stride}; sliding windows need both, with a stride from 1 to '
                    'the window size'
                )

    def _check_classes(self) -> None:
        heads = [self.decode_head]
        if self.with_auxiliary_head:
            auxiliary = self.auxiliary_head
            heads += list(auxiliary) if isinstance(auxiliary, torch.nn.ModuleList) else [auxiliary]
        # Other losses derive their own target from the annotation (STDC: boundaries).
        plain = (BaseDecodeHead.loss_by_feat, TiledLossHead.loss_by_feat)
        counts = [head.num_classes for head in heads if head is heads[0] or type(head).loss_by_feat in plain]
        if len(set(counts)) > 1:
            raise UserError(
                f'num_classes of decode_head is {counts[0]}, of auxiliary_head {", ".join(map(str, counts[1:]))}; '
                'expected the same'
            )
        self._num_labels = num_labels(self.num_classes, self.out_channels)
        padding, ignored = getattr(self.data_preprocessor, 'seg_pad_val', None), self.decode_head.ignore_index
        if padding is not None and padding != ignored and not 0 <= padding < self._num_labels:
            raise UserError(
                f'data_preprocessor.seg_pad_val={padding} is neither a class nor ignore_index={ignored} of the head; '
                'set them to the same value'
            )

    def extract_feat(self, inputs: Tensor | tuple[Tensor, ...]) -> Any:
        """Return the feature maps that the head takes.

        Args:
            inputs: (B, C, H, W), normalised; or a tuple, the cached outputs
                of the backbone (see ``FeatureDataPreprocessor``).
        """
        if isinstance(inputs, Tensor):
            return super().extract_feat(inputs)
        return self.neck(inputs) if self.with_neck else inputs

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Segment a batch of images.

        Args:
            inputs: (B, C, H, W), normalised.
            data_samples: one per image, with the size of the original image
                (``ori_shape``), the flip and the padding.

        Returns:
            The samples, each with ``pred_sem_seg`` (1, H, W), and with
            ``seg_logits`` (K, H, W) if ``test_cfg.return_logits``, at
            ``ori_shape`` (without samples, at the size of ``inputs``).

        Raises:
            UserError: logits are NaN or infinite; names the image.
        """
        maps = self.logit_maps(inputs, data_samples)
        results = data_samples or [SegDataSample() for _ in maps]
        for result, logit_map in zip(results, maps, strict=True):
            result.pop('seg_logits', None)
            if self.test_cfg.get('return_logits'):
                logits = logit_map.full()
                result.seg_logits = PixelData(data=logits if self.out_channels > 1 else logits.sigmoid())
            labels = argmax_labels([logit_map], getattr(self.decode_head, 'threshold', 0.5))
            result.pred_sem_seg = PixelData(data=labels[None])
        check_finite([[logit_map] for logit_map in maps], image_names(results))
        return results

    def logit_maps(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[LogitMap]:
        """Return the logits from which :meth:`predict` takes the labels, one map per image.

        Args:
            inputs: as :meth:`predict`.
            data_samples: as :meth:`predict`.
        """
        if data_samples is None:
            return self._network_maps(inputs, [dict(img_shape=inputs.shape[-2:])] * len(inputs))
        metas = [sample.metainfo for sample in data_samples]
        merged = self._merge_windows(inputs, metas)
        H, W = inputs.shape[-2:]
        maps = []
        for i, meta in enumerate(metas):
            rows, columns = merged.rows, merged.columns
            left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
            if any((left, right, top, bottom)):
                if self._enlarged_size(H, W) != (H, W):  # the padding is in pixels of the input
                    rows, columns = rows.resize(H), columns.resize(W)
                rows, columns = rows[top : len(rows) - bottom], columns[left : len(columns) - right]
            if meta.get('flip'):
                rows, columns = _flip(rows, columns, meta['flip_direction'])
            ori_h, ori_w = meta['ori_shape'][:2]
            rows, columns = rows.resize(ori_h, self.align_corners), columns.resize(ori_w, self.align_corners)
            maps.append(merged.logit_map(i, rows, columns))
        return maps

    def inference(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Return all logits, (B, K, H, W) at the size of ``inputs``. :meth:`predict` does not need them.

        Args:
            inputs: (B, C, H, W), normalised.
            batch_img_metas: one dict per image.
        """
        return torch.stack([logit_map.full() for logit_map in self._network_maps(inputs, batch_img_metas)])

    def _network_maps(self, inputs: Tensor, metas: list[dict[str, Any]]) -> list[LogitMap]:
        """Return the logits of each image at the size of ``inputs``."""
        merged = self._merge_windows(inputs, metas)
        rows, columns = merged.rows, merged.columns
        H, W = inputs.shape[-2:]
        if self._enlarged_size(H, W) != (H, W):
            rows, columns = rows.resize(H), columns.resize(W)
        return [merged.logit_map(i, rows, columns) for i in range(len(inputs))]

    def _enlarged_size(self, H: int, W: int) -> tuple[int, int]:
        """Return the size at which an image is segmented (see ``upscale_small``)."""
        if self.test_cfg.mode != 'slide' or not self.test_cfg.get('upscale_small'):
            return H, W
        h, w = self.test_cfg.crop_size
        if h <= H and w <= W:
            return H, W
        return (h, max(int(W / H * h), w)) if H * w <= W * h else (max(int(H / W * w), h), w)

    def _merge_windows(self, inputs: Tensor, metas: list[dict[str, Any]]) -> MergedLogits | MergedMasks:
        """Segment all windows; in ``'whole'`` mode the image is the only one."""
        return merge_windows(
            segment=lambda crops, images: self.window_logits(crops, [metas[i] for i in images]),
            **self._window_options(inputs),
        )

    def _window_options(self, inputs: Tensor) -> dict[str, Any]:
        """Return the arguments of :func:`merge_windows` that ``test_cfg`` sets."""
        size = self._enlarged_size(inputs.shape[2], inputs.shape[3])
        if self.test_cfg.mode == 'slide':
            if size != inputs.shape[2:]:
                inputs = F.interpolate(inputs, size, mode='bilinear', align_corners=False)
            window, stride = self.test_cfg.crop_size, self.test_cfg.stride
            batch_size = self.test_cfg.get('window_batch_size', 4)
        else:
            window, stride, batch_size = size, size, len(inputs)
        return dict(
            inputs=inputs,
            window=window,
            stride=stride,
            batch_size=batch_size,
            align_corners=self.align_corners,
            crop_padding=self.test_cfg.get('size_divisor') is not None,
            even=bool(self.test_cfg.get('even_windows')),
        )

    def window_logits(self, crops: Tensor, metas: list[dict[str, Any]]) -> WindowLogits:
        """Return the logits of windows (n, C, height, width), as the head returns them."""
        head, slide = type(self.decode_head), self.test_cfg.mode == 'slide'
        if head.predict is not BaseDecodeHead.predict or head.predict_by_feat is not BaseDecodeHead.predict_by_feat:
            # Such a head upsamples its logits itself.
            metas = [dict(meta, img_shape=crops.shape[-2:]) for meta in metas] if slide else metas
            logits = self.encode_decode(crops, metas)
            return WindowLogits(logits, (logits.shape[2], logits.shape[3]))
        crops, size = self._padded(crops, metas)
        return WindowLogits(self.head_logits(crops), size)

    def _padded(self, crops: Tensor, metas: list[dict[str, Any]]) -> tuple[Tensor, tuple[int, int]]:
        """Return windows padded as ``size_divisor`` says, and the height and width that their logits cover."""
        divisor = self.test_cfg.get('size_divisor')
        if divisor is not None:
            crops = F.pad(crops, (0, -crops.shape[3] % divisor, 0, -crops.shape[2] % divisor))
        height, width = crops.shape[2:]
        if divisor is None and self.test_cfg.mode != 'slide':
            height, width = metas[0].get('pad_shape', metas[0]['img_shape'])[:2]
        return crops, (height, width)

    def head_logits(self, inputs: Tensor) -> Tensor:
        """Return the logits of the head at its own resolution: what the network computes, without upsampling.

        A model that another runtime runs has a ``deployment.RuntimeNetwork``
        in place of this method.

        Args:
            inputs: (B, C, H, W), normalised images or windows.

        Returns:
            (B, K, h, w).
        """
        logits: Tensor = self.decode_head(self.extract_feat(inputs))
        return logits

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Return logits at the size of ``inputs``.

        Args:
            inputs: (B, C, H, W), normalised images or windows.
            batch_img_metas: one dict per image.

        Returns:
            (B, K, H, W).
        """
        divisor = self.test_cfg.get('size_divisor')
        if divisor is None:
            return super().encode_decode(inputs, batch_img_metas)
        H, W = inputs.shape[-2:]
        inputs = F.pad(inputs, (0, -W % divisor, 0, -H % divisor))
        # mmseg's heads upsample to img_shape if it is a torch.Size.
        metas = [dict(meta, img_shape=torch.Size(inputs.shape[-2:])) for meta in batch_img_metas]
        return super().encode_decode(inputs, metas)[..., :H, :W]


def image_names(data_samples: list[SegDataSample]) -> list[str]:
    """Return the file of each image, or its number in the batch."""
    return [sample.get('img_path') or f'image {i} of the batch' for i, sample in enumerate(data_samples)]


def _flip(rows: AxisMap, columns: AxisMap, direction: str) -> tuple[AxisMap, AxisMap]:
    if direction not in ('horizontal', 'vertical', 'diagonal'):
        raise UserError(f'flip_direction={direction!r}; expected horizontal, vertical or diagonal')
    return (
        rows.flip() if direction != 'horizontal' else rows,
        columns.flip() if direction != 'vertical' else columns,
    )


def _check_labels(num_labels: int, ignore_index: int, _: torch.nn.Module, args: tuple[Any, ...]) -> None:
    """Check annotations: a forward pre-hook of the data preprocessor.

    Not a method, because a hook that holds the model would keep it alive.
    """
    samples = args[0].get('data_samples') if args and isinstance(args[0], dict) else None
    check_annotations(samples or [], num_labels, ignore_index)
