"""The modules that are exported, and their graph.

Shapes: B images, K classes, Q queries, H x W pixels, h x w logits of the head.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import Upsample
from torch import Tensor, nn

from ..errors import UserError, describe
from ..models.segmentors import EoMT, Segmenter

# Names of the dimensions of a tensor that may have any size.
Dynamic = Mapping[int, str]


def check_exportable(model: Any) -> None:
    """Check that the network of a model is its backbone and its head.

    Raises:
        UserError: the model is not a ``Segmenter``, or its head upsamples the
            logits in a way of its own.
    """
    if not isinstance(model, Segmenter):
        raise UserError(f'model.type={type(model).__name__}; only Segmenter and EncoderDecoder can be exported')
    head = type(model.decode_head)
    if head.predict is not BaseDecodeHead.predict or head.predict_by_feat is not BaseDecodeHead.predict_by_feat:
        raise UserError(f'decode_head.type={head.__name__} has inference of its own, which cannot be exported')


class BackboneAndHead(nn.Module):
    """Hold a copy of the parts of a model that are its network.

    There is no control flow that depends on the size of an image, so that the
    network can be traced for any size above one patch. It computes in the
    dtype of its weights (``HeadLogits(model).half()``); inputs and outputs are
    float32.

    Args:
        model: model in eval mode.

    Raises:
        UserError: as :func:`check_exportable`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        check_exportable(model)
        self.backbone = copy.deepcopy(model.backbone)
        self.neck = copy.deepcopy(model.neck) if model.with_neck else nn.Identity()
        self.decode_head = copy.deepcopy(model.decode_head)
        self.size_divisor: int | None = model.test_cfg.get('size_divisor')
        # mmseg's padding of incomplete patches is a branch on the size, which cannot be traced. Here each image gets
        # the most padding that any could need; the convolution leaves out what does not fill a patch.
        self.patch_size = self._replace_padding()
        for part in (self.neck, self.decode_head):
            _replace_upsampling(part)
        self.eval()

    def _replace_padding(self) -> int | None:
        embed: Any = getattr(self.backbone, 'patch_embed', None)
        padding = getattr(embed, 'adap_padding', None)
        if padding is None or padding.padding != 'corner' or padding.kernel_size != padding.stride:
            return None
        embed.adap_padding = None
        return int(padding.kernel_size[0])

    def _pad(self, images: Tensor) -> Tensor:
        """Return padded images in the dtype of the weights."""
        images = images.to(next(self.parameters()).dtype)
        divisor = self.size_divisor or 1
        if divisor not in (1, self.patch_size):
            images = F.pad(images, (0, -images.shape[3] % divisor, 0, -images.shape[2] % divisor))
        if self.patch_size is None:
            return images
        below, right = (
            self.patch_size - 1 if isinstance(side, torch.SymInt) else -side % self.patch_size
            for side in images.shape[2:]
        )
        return F.pad(images, (0, right, 0, below)) if below or right else images

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width in pixels that the logits of an image cover."""
        divisor = self.size_divisor or 1
        # Not -(-height // divisor): runtimes round the division of negative numbers towards zero.
        return (height + divisor - 1) // divisor * divisor, (width + divisor - 1) // divisor * divisor


class HeadLogits(BackboneAndHead):
    """Compute the logits of a model's head, as ``Segmenter.window_logits`` does.

    Args: as :class:`BackboneAndHead`.

    Raises:
        UserError: as :func:`check_exportable`, or the model is an ``EoMT``.
    """

    def __init__(self, model: Any) -> None:
        if isinstance(model, EoMT):
            raise UserError('model.type=EoMT has masks and classes of queries in place of logits')
        super().__init__(model)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalised images.

        Args:
            images: (B, 3, H, W).

        Returns:
            (B, K, h, w) float32.
        """
        logits: Tensor = self.decode_head(self.neck(self.backbone(self._pad(images))))
        return logits.float()


class HeadMasks(BackboneAndHead):
    """Compute the masks and classes of the queries of an ``EoMT``.

    Args: as :class:`BackboneAndHead`.

    Raises:
        UserError: as :func:`check_exportable`.
    """

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask logits and class probabilities of normalised images.

        Args:
            images: (B, 3, H, W).

        Returns:
            (B, Q, h, w) and (B, Q, K), float32.
        """
        head: Any = self.decode_head
        masks, classes = head(
            self.backbone.encode_with_queries(self._pad(images), head.query_embed.weight, head.num_blocks)
        )
        return masks.float(), classes.float().softmax(dim=-1)[..., :-1]


class _Enlarge(nn.Module):
    """mmseg's ``Upsample`` by a whole number; mmseg's converts sizes to ``int``, which fixes them in a graph."""

    def __init__(self, upsample: Any) -> None:
        super().__init__()
        self.factor, self.mode = int(upsample.scale_factor), upsample.mode
        self.align_corners: bool | None = upsample.align_corners

    def forward(self, x: Tensor) -> Tensor:
        size = [side * self.factor for side in x.shape[2:]]
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)


def probe_sizes(backbone: Any) -> list[tuple[int, int]]:
    """Return heights and widths at which to compare a network for any size with the model.

    Exporters fix sizes, or convert some operations for some sizes only, without saying so. The grids are smaller and
    larger than those of pooling in UPerNet and PSPNet (6x6), have odd and even sides, and parts of patches.
    """
    patch = getattr(backbone, 'patch_size', 16)
    return [(3 * patch, 5 * patch), (7 * patch, 10 * patch - 3), (8 * patch + 1, 7 * patch)]


def _replace_upsampling(module: nn.Module) -> None:
    for name, child in module.named_children():
        factor = child.scale_factor if isinstance(child, Upsample) else None
        if isinstance(factor, float) and factor.is_integer() and not child.size:
            setattr(module, name, _Enlarge(child))
        else:
            _replace_upsampling(child)


class ImageNetwork(nn.Module):
    """Segment whole images: the network, and what comes before and after it.

    Args:
        model: model in eval mode.
        normalise: take uint8 RGB images and normalise them inside.
        argmax: return labels; otherwise logits.
        rgb: the network was trained on RGB images; otherwise BGR. Used with
            ``normalise``.

    Raises:
        UserError: as :func:`check_exportable`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, normalise: bool = True, argmax: bool = True, rgb: bool = True) -> None:
        super().__init__()
        self.network = (HeadMasks if isinstance(model, EoMT) else HeadLogits)(model)
        self.normalise = normalise
        self.argmax = argmax
        self.rgb = rgb
        self.align_corners: bool = model.align_corners
        self.threshold: float = getattr(model.decode_head, 'threshold', None) or 0.5
        preprocessor = model.data_preprocessor
        for name, default in (('mean', 0.0), ('std', 1.0)):
            value = getattr(preprocessor, name, torch.full((3, 1, 1), default))
            self.register_buffer(name, value.detach().clone().float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Segment a batch of images.

        Args:
            images: with ``normalise`` (B, H, W, 3) uint8 RGB; otherwise
                (B, 3, H, W) float32, as the data preprocessor returns them.

        Returns:
            With ``argmax`` labels (B, H, W), uint8 up to 256 classes and int64
            above; otherwise logits, of an ``EoMT`` scores, (B, K, H, W)
            float32.
        """
        if self.normalise:
            images = images.permute(0, 3, 1, 2).float()
            if not self.rgb:
                images = images.flip(1)
            images = (images - self.mean) / self.std
        H, W = images.shape[2:]
        if isinstance(self.network, HeadMasks):
            masks, classes = self.network(images)
            # As in the model, masks are enlarged before the sigmoid; here all of them at once.
            masks = self._enlarge(masks, H, W).sigmoid()
            logits = torch.einsum('bqk,bqhw->bkhw', classes, masks)
        else:
            logits = self._enlarge(self.network(images), H, W)
        return self._labels(logits) if self.argmax else logits

    def _enlarge(self, logits: Tensor, H: int, W: int) -> Tensor:
        size = self.network.padded_size(H, W)
        logits = F.interpolate(logits, size, mode='bilinear', align_corners=self.align_corners)
        return self._crop(logits, H, W)

    def _crop(self, logits: Tensor, H: int, W: int) -> Tensor:
        """Remove the padding."""
        if self.network.size_divisor is None:
            return logits
        if not isinstance(H, torch.SymInt):
            return logits[..., :H, :W]
        # A slice would make torch.export decide whether it is the whole tensor.
        rows, columns = (torch.arange(side, device=logits.device) for side in (H, W))
        return logits.index_select(2, rows).index_select(3, columns)

    def _labels(self, logits: Tensor) -> Tensor:
        if logits.shape[1] == 1:  # mmseg's binary mode
            return (logits[:, 0].sigmoid() > self.threshold).to(torch.uint8)
        labels = logits.argmax(dim=1)
        return labels.to(torch.uint8) if logits.shape[1] <= 256 else labels


def trace(module: nn.Module, example: Tensor, dynamic: Dynamic | None = None) -> torch.export.ExportedProgram:
    """Return the graph of a module, from which files of all formats are made.

    Args:
        module: :class:`HeadLogits` or :class:`ImageNetwork`.
        example: input of the size that the graph is for.
        dynamic: dimensions of the input that may have any size, with their
            names: ``{0: 'batch'}``.

    Raises:
        UserError: the module can be traced at one size only.
    """
    dynamic = dynamic or {}
    # torch takes dimensions of length 1 for constants.
    example = example.expand(*(2 if i in dynamic and n == 1 else -1 for i, n in enumerate(example.shape)))
    shapes = (dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC),) if dynamic else None
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(module, (example.contiguous(),), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises errors of many classes
        if not dynamic:
            raise
        reason = describe(error)
        raise UserError(
            f'the model cannot be traced with free {", ".join(dynamic.values())}; export it at one size ({reason})'
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters say about themselves; errors remain."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'torch.export', 'onnxscript', 'nncf')]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
