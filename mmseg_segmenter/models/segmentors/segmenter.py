"""The whole model: mmseg's EncoderDecoder with Segmenter's inference."""

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
from ...labels import check_annotations
from ..decode_heads.tiled_loss_head import TiledLossHead
from ..dense import AxisMap, LogitMap, argmax_labels, average_windows, linear_resize, window_starts
from ..load_report import report_loading


@MODELS.register_module()
class Segmenter(EncoderDecoder):
    """``EncoderDecoder`` with inference that is fast, lean, and at image borders the official one.

    Labels are mmseg's ``EncoderDecoder``'s; the way there is another. Windows
    run in batches, and only the head's logits are kept: upsampling, the mean
    over windows and the resize to the original image are composed into one
    linear map, which is applied tile by tile, each tile ending as labels. So
    memory follows the labels, not (classes, height, width); only heads with a
    ``predict`` of their own give logits at full size, whose sum over windows
    is kept. Results carry ``seg_logits`` only when asked for. A subclass
    changes inference by :meth:`logit_maps` or :meth:`predict`; mmseg's
    ``slide_inference``, ``whole_inference`` and ``postprocess_result`` are
    not called.

    Annotations are checked: a label outside the model's classes is an error
    that names the file, before it can become an assertion on the GPU. The log
    says whether all of a checkpoint was used.

    Args:
        test_cfg: mmseg's keys (``mode`` defaults to ``'whole'``) and, for
            inference only,

            - ``size_divisor`` (int): zero-pad each network input at the
              bottom and right to a multiple of it (the patch size), upsample
              the logits to the padded size, then crop (official
              ``segm/model/segmenter.py``). mmseg pads too, but stretches the
              padded grid over the unpadded image.
            - ``upscale_small`` (bool): enlarge an image with a side below the
              window until it equals it (official ``segm/model/utils.py``),
              in ``'slide'`` mode.
            - ``window_batch_size`` (int): windows per forward pass, default 4.
            - ``return_logits`` (bool): add ``seg_logits`` (K, H, W) to each
              result, as mmseg always does.
        channels_last: keep the weights of convolutions in torch's
            ``channels_last`` memory format, which makes convolutional heads
            (SETR-PUP, UPerNet) run in it: the same results within rounding
            from the same weights (a seed gives other random ones). Set when
            the model is built, as DDP lays out its buffers then.
        others: as ``EncoderDecoder``.

    Raises:
        ValueError: ``size_divisor`` is not a multiple of the patch size, the
            window options are missing or leave gaps, the heads have different
            classes, or the padding of annotations is neither a class nor
            ignored.
    """

    def __init__(
        self, *args: Any, test_cfg: dict[str, Any] | None = None, channels_last: bool = False, **kwargs: Any
    ) -> None:
        # mmseg reads test_cfg.mode as an attribute, which a plain dict does not have.
        test_cfg = ConfigDict({'mode': 'whole', **(test_cfg or {})})
        super().__init__(*args, test_cfg=test_cfg, **kwargs)
        self._check_test_cfg()
        self._check_classes()
        # The preprocessor is where labels are last seen on the CPU, under every model wrapper (DDP, FSDP):
        # looking at them later would stall the GPU.
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
        # Others make a target of their own from the annotation (STDC: boundaries).
        plain = (BaseDecodeHead.loss_by_feat, TiledLossHead.loss_by_feat)
        counts = [head.num_classes for head in heads if head is heads[0] or type(head).loss_by_feat in plain]
        if len(set(counts)) > 1:
            raise UserError(
                f'num_classes of decode_head is {counts[0]}, of auxiliary_head {", ".join(map(str, counts[1:]))}; '
                'expected the same'
            )
        # One sigmoid map tells two classes apart: mmseg's binary mode, in whichever way the classes are counted.
        self._num_labels = max(self.num_classes, 2) if self.out_channels == 1 else self.num_classes
        padding, ignored = getattr(self.data_preprocessor, 'seg_pad_val', None), self.decode_head.ignore_index
        if padding is not None and padding != ignored and not 0 <= padding < self._num_labels:
            raise UserError(
                f'data_preprocessor.seg_pad_val={padding} is neither a class nor ignore_index={ignored} of the head; '
                'set them to the same value'
            )

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Segment a batch of images.

        Args:
            inputs: (B, C, H, W), normalised.
            data_samples: one per image; say how large the image was
                (``ori_shape``), whether it is flipped, and what was padded.

        Returns:
            The samples, each with ``pred_sem_seg`` (1, H, W), and with
            ``seg_logits`` (K, H, W) if ``test_cfg.return_logits``, at
            ``ori_shape`` (without samples, at the size of ``inputs``).
        """
        maps = self.logit_maps(inputs, data_samples)
        results = data_samples or [SegDataSample() for _ in maps]
        for result, logit_map in zip(results, maps, strict=True):
            result.pop('seg_logits', None)
            if self.test_cfg.get('return_logits'):
                logits = logit_map.full()
                result.seg_logits = PixelData(data=logits if self.out_channels > 1 else logits.sigmoid())
            found = argmax_labels([logit_map], getattr(self.decode_head, 'threshold', 0.5))
            result.pred_sem_seg = PixelData(data=found[None])
        return results

    def logit_maps(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[LogitMap]:
        """What :meth:`predict` takes labels from: for each image logits, in the place of the original.

        Args: as :meth:`predict`.
        """
        if data_samples is None:
            return self._network_maps(inputs, [dict(img_shape=inputs.shape[-2:])] * len(inputs))
        metas = [sample.metainfo for sample in data_samples]
        logits, rows, columns = self._run_windows(inputs, metas)
        H, W = inputs.shape[-2:]
        maps = []
        for one, meta in zip(logits, metas, strict=True):
            left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
            r, c = rows, columns
            if any((left, right, top, bottom)):
                if self._enlarged_size(H, W) != (H, W):  # padding is counted before that
                    r, c = r.resize(H), c.resize(W)
                r, c = r[top : len(r) - bottom], c[left : len(c) - right]
            if meta.get('flip'):
                direction = meta['flip_direction']
                if direction not in ('horizontal', 'vertical', 'diagonal'):
                    raise UserError(f'flip_direction={direction!r}; expected horizontal, vertical or diagonal')
                r = r.flip() if direction in ('vertical', 'diagonal') else r
                c = c.flip() if direction in ('horizontal', 'diagonal') else c
            ori_h, ori_w = meta['ori_shape'][:2]
            maps.append(LogitMap(one, r.resize(ori_h, self.align_corners), c.resize(ori_w, self.align_corners)))
        return maps

    def inference(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """All logits, (B, K, H, W) at the size of ``inputs``; :meth:`predict` does without them.

        Args:
            inputs: (B, C, H, W), normalised.
            batch_img_metas: one dict per image.
        """
        return torch.stack([logit_map.full() for logit_map in self._network_maps(inputs, batch_img_metas)])

    def _network_maps(self, inputs: Tensor, metas: list[dict[str, Any]]) -> list[LogitMap]:
        """Logits in the place of the network's input."""
        logits, rows, columns = self._run_windows(inputs, metas)
        H, W = inputs.shape[-2:]
        if self._enlarged_size(H, W) != (H, W):
            rows, columns = rows.resize(H), columns.resize(W)
        return [LogitMap(one, rows, columns) for one in logits]

    def _enlarged_size(self, H: int, W: int) -> tuple[int, int]:
        """Size at which an image is segmented, for ``upscale_small``."""
        if self.test_cfg.mode != 'slide' or not self.test_cfg.get('upscale_small'):
            return H, W
        h, w = self.test_cfg.crop_size
        if h <= H and w <= W:
            return H, W
        return (h, max(int(W / H * h), w)) if H * w <= W * h else (max(int(H / W * w), h), w)

    def _run_windows(self, inputs: Tensor, metas: list[dict[str, Any]]) -> tuple[Tensor, AxisMap, AxisMap]:
        """Logits of all windows (of the one that is everything, in ``'whole'`` mode).

        Returns:
            (B, h, K, w), the windows' logits beside and below each other, or
            added up where they are pixels, and the maps of both axes from
            there to the mean at each pixel.
        """
        batch_size = len(inputs)
        size = self._enlarged_size(inputs.shape[2], inputs.shape[3])
        windows, strides = size, size
        if self.test_cfg.mode == 'slide':
            if size != inputs.shape[2:]:
                inputs = F.interpolate(inputs, size, mode='bilinear', align_corners=False)
            windows, strides = self.test_cfg.crop_size, self.test_cfg.stride
            batch_size = self.test_cfg.get('window_batch_size', 4)
        ys, xs = (window_starts(*axis) for axis in zip(size, windows, strides, strict=True))
        h, w = min(windows[0], size[0]), min(windows[1], size[1])
        places = [(i, iy, ix) for i in range(len(inputs)) for iy in range(len(ys)) for ix in range(len(xs))]
        canvas = None
        for start in range(0, len(places), batch_size):
            chunk = places[start : start + batch_size]
            crops = torch.stack([inputs[i, :, ys[iy] : ys[iy] + h, xs[ix] : xs[ix] + w] for i, iy, ix in chunk])
            logits, window_size = self._window_logits(crops, [metas[i] for i, _, _ in chunk])
            (K, *cells), dtype = logits.shape[1:], torch.promote_types(logits.dtype, torch.float32)
            if canvas is None:
                rows = self._axis_map(size[0], ys, h, cells[0], window_size[0], dtype)
                columns = self._axis_map(size[1], xs, w, cells[1], window_size[1], dtype)
                # Sums over windows are in at least float32, even under autocast.
                canvas = logits.new_zeros(len(inputs), rows[1], K, columns[1], dtype=dtype)
            for one, (i, iy, ix) in zip(logits, chunk, strict=True):
                y, x = rows[0][iy], columns[0][ix]
                canvas[i, y : y + cells[0], :, x : x + cells[1]] += one.transpose(0, 1)
        assert canvas is not None
        return canvas, rows[2], columns[2]

    def _axis_map(
        self, length: int, starts: list[int], window: int, cells: int, window_size: int, dtype: torch.dtype
    ) -> tuple[list[int], int, AxisMap]:
        """:func:`average_windows` for one axis of an image, of windows of ``cells`` logits each."""
        to_window = linear_resize(cells, window_size, self.align_corners, dtype)
        if self.test_cfg.get('size_divisor') is not None:
            to_window = to_window[:window]
        if len(starts) == 1:  # mmseg may stretch the only one to another length
            length = len(to_window)
        return average_windows(length, starts, to_window, cells)

    def _window_logits(self, crops: Tensor, metas: list[dict[str, Any]]) -> tuple[Tensor, tuple[int, int]]:
        """Logits of windows as the head puts them out, and the size (with padding) that they stand for."""
        head, slide = type(self.decode_head), self.test_cfg.mode == 'slide'
        if head.predict is not BaseDecodeHead.predict or head.predict_by_feat is not BaseDecodeHead.predict_by_feat:
            # The head has its own way to the full size.
            metas = [dict(meta, img_shape=crops.shape[-2:]) for meta in metas] if slide else metas
            logits = self.encode_decode(crops, metas)
            return logits, (logits.shape[2], logits.shape[3])
        divisor = self.test_cfg.get('size_divisor')
        if divisor is not None:
            crops = F.pad(crops, (0, -crops.shape[3] % divisor, 0, -crops.shape[2] % divisor))
        height, width = crops.shape[2:]
        if divisor is None and not slide:
            height, width = metas[0].get('pad_shape', metas[0]['img_shape'])[:2]
        return self.decode_head(self.extract_feat(crops)), (height, width)

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


def _check_labels(num_labels: int, ignore_index: int, _: torch.nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook of the data preprocessor; without the model, which would hold on to itself."""
    samples = args[0].get('data_samples') if args and isinstance(args[0], dict) else None
    check_annotations(samples or [], num_labels, ignore_index)
