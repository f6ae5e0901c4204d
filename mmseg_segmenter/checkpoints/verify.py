"""Check a conversion: run the source and the converted model on the same image, in float64.

The reference is timm where it is installed. Otherwise it is a plain forward pass in the file of the format, on the
source's own keys and with sizes read from the source's own tensors. It shares nothing with the rules of the conversion,
so a tensor that a rule maps to the wrong place or does not transpose changes the outputs. In float64, rounding stays
far below such a difference.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..errors import UserError
from ..models import SegmenterViT
from .architecture import Architecture, standard_heads
from .formats import EncoderFormat, augreg, find_encoder_format, official_eomt, official_segmenter, timm
from .read import read_tensors

# Relative to the largest output. Rounding in float64 is about 1e-14 after 24 blocks.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Comparison:
    """Difference between the outputs of the reference and of the converted model.

    Attributes:
        reference: name of the reference.
        difference: largest absolute difference between two outputs.
        magnitude: largest absolute output of the reference.
    """

    reference: str
    difference: float
    magnitude: float

    def __str__(self) -> str:
        return (
            f'largest difference {self.difference:.1e}, largest value {self.magnitude:.1e}, in float64 against '
            f'{self.reference}'
        )


def verify_encoder(source: str, written: str, architecture: Architecture) -> Comparison:
    """Compare the tokens of an encoder before and after its conversion.

    Args:
        source: ``.npz``, ``.pth`` or ``.safetensors`` file as released.
        written: file that it was converted to.
        architecture: sizes of the converted encoder. Most files do not hold the number of heads; without it,
            width // 64 is assumed for both models.

    Raises:
        UserError: ``written`` does not load into ``SegmenterViT``, or the tokens differ.
    """
    weights = read_tensors(source)
    layout = find_encoder_format(weights)
    sizes = layout.source_sizes(weights)
    num_heads, note = architecture.num_heads, ''
    if num_heads is None:
        num_heads = standard_heads(sizes.embed_dims)
        note = f' (num_heads={num_heads} assumed, width // 64: the file does not hold it)'
    image = _random_image(sizes.in_channels, sizes.image_size)
    reference = _timm_tokens(source, weights, layout, num_heads, image)
    if reference is None:
        with torch.no_grad():
            tokens = layout.reference_tokens(weights, image, num_heads)
        reference = f'a plain forward of the {layout.NAME} layout', tokens
    name, theirs = reference
    # SegmenterViT does not return the distillation token and registers.
    theirs = torch.cat((theirs[:, :1], theirs[:, -sizes.grid[0] * sizes.grid[1] :]), dim=1)
    return _compare(name + note, theirs, _converted_tokens(written, architecture, num_heads, layout.EPS, image))


def _converted_tokens(written: str, architecture: Architecture, num_heads: int, eps: float, image: Tensor) -> Tensor:
    """Return the (B, 1 + N, C) tokens of the converted encoder, the class token first."""
    config = dict(architecture.backbone(eps), num_heads=num_heads, output_cls_token=True)
    del config['type']
    model = SegmenterViT(**config)
    _load(model, written)
    with torch.no_grad():
        feature_map, cls_token = model(image)[0]
    return torch.cat((cls_token[:, None], feature_map.flatten(2).transpose(1, 2)), dim=1)


def verify_official_run(
    official: str, image_size: tuple[int, int], num_heads: int, config: str, checkpoint: str
) -> Comparison:
    """Compare the logits of official weights and of a ``Segmenter``.

    Args:
        official: ``checkpoint.pth`` of an official run.
        image_size: height and width in pixels that its position embedding is made for.
        num_heads: attention heads of its encoder.
        config: config of the ``Segmenter``.
        checkpoint: its weights.

    Raises:
        UserError: ``checkpoint`` does not load into the model of ``config``, or the logits differ.
    """
    init_default_scope('mmseg')
    model = MODELS.build(Config.fromfile(config).model)
    _load(model, checkpoint)
    image = _random_image(3, image_size)
    with torch.no_grad():
        ours = model(image)
        theirs = official_segmenter.reference_logits(read_tensors(official), image, num_heads)
    return _compare('a plain forward of the official layout', theirs, ours)


def verify_eomt(
    weights: Mapping[str, Tensor], num_heads: int, eps: float, model: Mapping[str, Any], checkpoint: str
) -> Comparison:
    """Compare the masks and classes of an EoMT before and after its conversion.

    Args:
        weights: under the names of the authors' code.
        num_heads: attention heads.
        eps: of the norms of the encoder.
        model: config of the converted model.
        checkpoint: its weights.

    Raises:
        UserError: ``checkpoint`` does not load into the model, or the outputs differ.
    """
    init_default_scope('mmseg')
    # No loss is computed.
    head = dict(model['decode_head'], loss_decode=dict(type='CrossEntropyLoss'))
    built = MODELS.build(dict(model, decode_head=head))
    _load(built, checkpoint)
    size = model['backbone']['img_size']
    image = _random_image(3, size if isinstance(size, tuple) else (size, size))
    with torch.no_grad():
        ours = built(image)
        theirs = official_eomt.reference_logits(weights, image, num_heads, eps, head['num_blocks'])
    masks, classes = (_compare("a plain forward of EoMT's layout", *pair) for pair in zip(theirs, ours, strict=True))
    return max(masks, classes, key=lambda found: found.difference / found.magnitude)


def _random_image(channels: int, size: tuple[int, ...]) -> Tensor:
    return torch.randn(1, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _load(model: nn.Module, path: str) -> None:
    """Load every tensor of a file, and convert the model to float64.

    Raises:
        UserError: a tensor is missing, unknown or has another shape.
    """
    try:
        missing, unexpected = model.load_state_dict(read_tensors(path), strict=False)
    except RuntimeError as error:  # torch's error for another shape
        raise UserError(f'verification failed, {" ".join(str(error).split())}') from None
    if wrong := unexpected + missing:
        raise UserError(f'verification failed, keys missing or not known: {", ".join(wrong)}')
    model.double().eval()


def _compare(reference: str, theirs: Tensor, ours: Tensor) -> Comparison:
    if theirs.shape != ours.shape:
        raise UserError(f'verification failed, shape {tuple(ours.shape)}, {tuple(theirs.shape)} of {reference}')
    result = Comparison(reference, (theirs - ours).abs().max().item(), theirs.abs().max().item())
    if not result.difference <= TOLERANCE * result.magnitude:  # "not", for NaN
        raise UserError(f'verification failed, {result} (allowed {TOLERANCE:.0e} of the largest value)')
    return result


def _timm_tokens(
    source: str, weights: Mapping[str, Tensor], layout: EncoderFormat, num_heads: int, image: Tensor
) -> tuple[str, Tensor] | None:
    """Return the name and the tokens of timm's model, or None without timm and for files that timm cannot read."""
    # timm's loader of .npz files knows the names of the released files only
    if layout is not timm and not (layout is augreg and augreg.has_released_names(weights)):
        return None
    try:
        if layout is timm and timm.has_extras(weights):
            return None
        import timm as library
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.vision_transformer import VisionTransformer
    except (ImportError, RuntimeError):  # RuntimeError: torchvision was built for another torch
        return None
    sizes = layout.source_sizes(weights)
    model = (VisionTransformerDistilled if sizes.with_dist_token else VisionTransformer)(
        img_size=sizes.image_size,
        patch_size=sizes.patch_size,
        in_chans=sizes.in_channels,
        num_classes=0,
        embed_dim=sizes.embed_dims,
        depth=sizes.num_layers,
        num_heads=num_heads,
        # timm truncates the product to an integer; the next larger ratio keeps rounding errors from lowering it
        mlp_ratio=math.nextafter(sizes.feedforward_channels / sizes.embed_dims, math.inf),
        qkv_bias=sizes.qkv_bias,
    )
    if layout is augreg:
        model.load_pretrained(source)
    else:
        model.load_state_dict({k: v for k, v in weights.items() if not k.startswith(timm.CLASSIFIERS)})
    with torch.no_grad():
        tokens = model.double().eval().forward_features(image)
    return f'{type(model).__name__} of timm {library.__version__}', tokens
