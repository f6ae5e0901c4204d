"""Figures of attention, features and classes, for ``tools/analysis_tools/attention_maps.py``."""

import difflib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.utils import track_iter_progress
from torch import Tensor

from ...apis import Predictor
from ...errors import UserError
from ...files import check_destination, replace_file
from ...visualization import plots
from ...visualization.sheet import fit
from .attention import attention_rollout, decoder_attention, encoder_attention
from .classes import class_similarity
from .distance import attention_distance, uniform_distance
from .features import feature_colors, feature_similarity, patch_features
from .image import NetworkImage, Patch, network_image
from .layers import num_queries

SUFFIXES = ('.png', '.pdf', '.svg', '.jpg')
_SIDE = 1024  # larger images are shown at this size
_NAMED_CLASSES = 60  # more names would not be legible beside a matrix


class Subject(NamedTuple):
    """What attends: a pixel's patch, the class token, a class of the mask transformer or a query; just one of them.

    Attributes:
        pixel: (x, y) in the image.
        class_token: the class token of the encoder.
        class_name: name of a class.
        query: number of a query of an EoMT.
    """

    pixel: tuple[float, float] | None = None
    class_token: bool = False
    class_name: str | None = None
    query: int | None = None


def save_attention(
    path: str,
    predictor: Predictor,
    image: Any,
    subject: Subject,
    layer: int = -1,
    head: str = 'mean',
    rollout: bool = False,
) -> None:
    """Draw where a token attends to, beside the image.

    Args:
        path: PNG, PDF, SVG or JPEG to write.
        predictor: the model.
        image: as :meth:`Predictor.__call__`.
        subject: the token. A class is one of the mask transformer decoder; the others are of the encoder.
        layer: as :func:`encoder_attention`.
        head: number of a head, ``'mean'`` over the heads, or ``'all'`` for a panel each.
        rollout: through all layers up to ``layer``, see :func:`attention_rollout`.

    Raises:
        UserError: no such layer, head, class or pixel, the image cannot be read, or ``path`` cannot be written.
    """
    check_figure(path)
    model, decoder, patch = predictor.model, subject.class_name is not None, None
    seen = network_image(predictor, image)
    h, w = seen.grid
    if subject.class_name is not None:
        names = predictor.classes.names
        query, who = class_number(names, subject.class_name) - len(names), f'class {subject.class_name}'
    elif subject.pixel is not None:
        patch = seen.patch_at(*subject.pixel)
        query, who = (patch.row - h) * w + patch.column, f'patch at {subject.pixel[0]:g},{subject.pixel[1]:g}'
    elif subject.query is not None:
        count = num_queries(model, layer)
        if not 0 <= subject.query < count:
            raise UserError(
                f'query={subject.query} in layer {layer}; expected a number below the queries there, {count}: only the '
                'last blocks of an EoMT have them'
            )
        query, who = subject.query, f'query {subject.query}'
    elif getattr(model.backbone, 'with_cls_token', True):
        query, who = num_queries(model, layer), 'class token'
    else:
        raise UserError(f'the backbone {type(model.backbone).__name__} has no class token in its blocks')
    if rollout:
        if head != 'mean':
            raise UserError(f'head={head} with rollout; rollout averages over the heads')
        weights = attention_rollout(model, seen.inputs, layer, query, decoder)
    else:
        weights = (decoder_attention if decoder else encoder_attention)(model, seen.inputs, layer, query)[0]
    patches = weights[:, : h * w] if decoder else weights[:, -h * w :]
    maps, titles = patches.unflatten(1, (h, w)), ['rollout']
    if not rollout:
        maps, titles = _chosen_heads(maps, head)
    stack = model.decode_head.layers if decoder else model.backbone.layers
    title = f'{who}, {"decoder" if decoder else "encoder"} layer {_number(stack, layer)}'
    # 1 is the attention of a token that looks at all tokens alike.
    save_maps(path, seen, maps * weights.shape[-1], titles, title, patch, 'attention (1: uniform)')


def _chosen_heads(maps: Tensor, head: str) -> tuple[Tensor, list[str]]:
    """Return the maps (n, h, w) of the heads that are to be shown, and their names."""
    count = len(maps)
    if head == 'mean':
        return maps.mean(dim=0, keepdim=True), [f'mean of {count} heads']
    if head == 'all':
        return maps, [f'head {i}' for i in range(count)]
    if not head.isdecimal() or int(head) >= count:
        raise UserError(f'head={head}; expected 0 to {count - 1}, mean or all: the layer has {count} heads')
    return maps[int(head)][None], [f'head {head}']


def save_similarity(path: str, predictor: Predictor, image: Any, pixel: tuple[float, float], layer: int = -1) -> None:
    """Draw how similar the features of each patch are to those of one, beside the image.

    Args:
        path: as :func:`save_attention`.
        predictor: the model.
        image: as :meth:`Predictor.__call__`.
        pixel: (x, y) in that patch.
        layer: as :func:`encoder_attention`.

    Raises:
        UserError: as :func:`save_attention`.
    """
    check_figure(path)
    seen = network_image(predictor, image)
    patch = seen.patch_at(*pixel)
    features = patch_features(predictor.model, seen.inputs, layer)
    similarity = feature_similarity(features, patch.row, patch.column)
    title = f'features of layer {_number(predictor.model.backbone.layers, layer)}'
    save_maps(
        path,
        seen,
        similarity,
        [f'similarity to the patch at {pixel[0]:g},{pixel[1]:g}'],
        title,
        patch,
        'cosine similarity',
    )


def save_colors(path: str, predictor: Predictor, image: Any, layer: int = -1) -> None:
    """Draw the features of the patches as colours, beside the image; see :func:`feature_colors`.

    Args:
        path: as :func:`save_attention`.
        predictor: the model.
        image: as :meth:`Predictor.__call__`.
        layer: as :func:`encoder_attention`.

    Raises:
        UserError: as :func:`save_attention`.
    """
    check_figure(path)
    seen = network_image(predictor, image)
    colors = feature_colors(patch_features(predictor.model, seen.inputs, layer))[0]
    picture = fit(seen.image.bgr[..., ::-1], _SIDE)
    shown = seen.on_image(colors.permute(2, 0, 1).float().cpu(), picture.shape[:2]).permute(1, 2, 0).clamp(0, 1)
    figure, axes = _panels(2, picture.shape, 'features')
    _show(axes[0], picture, 'image')
    _show(axes[1], shown.numpy(), f'principal components of layer {_number(predictor.model.backbone.layers, layer)}')
    _save(figure, path)


def save_distances(path: str, predictor: Predictor, images: Sequence[Any]) -> Tensor:
    """Plot the mean attention distance of each head over images; see :func:`attention_distance`.

    Args:
        path: as :func:`save_attention`.
        predictor: the model.
        images: at least one.

    Returns:
        (layers, H), the means over the images, in pixels of the network's inputs.

    Raises:
        UserError: as :func:`save_attention`.
    """
    check_figure(path)
    if not images:
        raise UserError('no images; expected at least one')
    distances, uniform = [], []
    for image in track_iter_progress(images, file=sys.stderr):
        seen = network_image(predictor, image)
        distances.append(attention_distance(predictor.model, seen.inputs)[0].cpu())
        uniform.append(uniform_distance(seen.grid, predictor.model.backbone.patch_size))
    mean = torch.stack(distances).mean(dim=0)
    figure = plots.new_figure(6.5, 4)
    axis = figure.add_subplot()
    for i, heads in enumerate(mean):
        axis.scatter([i] * len(heads), heads, s=14, color='C0', label='head' if i == 0 else None)
    axis.plot(range(len(mean)), mean.mean(dim=1), color='C1', label='mean of the heads')
    axis.axhline(float(np.mean(uniform)), color='0.5', linestyle='--', label='uniform attention')
    axis.set_xlabel('layer')
    axis.set_xticks(range(0, len(mean), 1 if len(mean) <= 16 else 2))
    axis.set_ylabel('mean attention distance (pixels)')
    axis.set_ylim(bottom=0)
    axis.set_title(f'{len(images)} image{"s" if len(images) > 1 else ""}', fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _save(figure, path)
    return mean


def save_class_similarity(path: str, predictor: Predictor) -> Tensor:
    """Draw the similarity of the class embeddings as a matrix; see :func:`class_similarity`.

    Args:
        path: as :func:`save_attention`.
        predictor: the model.

    Returns:
        (K, K).

    Raises:
        UserError: as :func:`class_similarity`.
    """
    check_figure(path)
    matrix, names = class_similarity(predictor.model).cpu(), predictor.classes.names
    side = max(4.0, 0.22 * min(len(names), _NAMED_CLASSES) + 2)
    figure = plots.new_figure(side + 1, side)
    axis = figure.add_subplot()
    picture = axis.imshow(matrix, cmap='RdBu_r', vmin=-1, vmax=1)
    if len(names) <= _NAMED_CLASSES:
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
    figure.colorbar(picture, shrink=0.6).set_label('cosine similarity', fontsize=8)
    _save(figure, path)
    return matrix


def class_number(names: Sequence[str], name: str) -> int:
    """Return the number of a class.

    Raises:
        UserError: no class of that name; names the most similar ones.
    """
    if name in names:
        return list(names).index(name)
    lowered = {known.lower(): known for known in names}
    near = [lowered[each] for each in difflib.get_close_matches(name.lower(), lowered, n=3)]
    expected = (
        ' or '.join(map(repr, near))
        if near
        else f'one of {", ".join(names[:12])}' + (', ...' if len(names) > 12 else '')
    )
    raise UserError(f'the model has no class {name!r}; expected {expected}')


def check_figure(path: str) -> None:
    """Find out before the network runs whether a figure can be written.

    Raises:
        UserError: it cannot, or the suffix is not one of :data:`SUFFIXES`.
    """
    if not path.lower().endswith(SUFFIXES):
        raise UserError(f'out={path}; expected a name that ends in {", ".join(SUFFIXES)}')
    check_destination(path)


def save_maps(
    path: str, seen: NetworkImage, maps: Tensor, names: Sequence[str], title: str, patch: Patch | None, unit: str
) -> None:
    """Draw an image, and maps of its patches over it.

    Args:
        path: file to write.
        seen: the image.
        maps: (n, h, w) values of the patches.
        names: of the n maps.
        title: text above the image.
        patch: patch to be marked.
        unit: text at the colour bars.
    """
    picture = fit(seen.image.bgr[..., ::-1], _SIDE)
    shown = seen.on_image(maps.float().cpu(), picture.shape[:2]).numpy()
    grey = picture.mean(axis=2)
    figure, axes = _panels(1 + len(maps), picture.shape, title)
    _show(axes[0], picture, title)
    for axis, values, name in zip(axes[1:], shown, names, strict=True):
        _show(axis, grey, name, cmap='gray')
        # The largest values of a few patches would leave all others dark.
        low, high = (0, np.quantile(values, 0.995)) if values.min() >= 0 else (values.min(), values.max())
        layer = axis.imshow(values, cmap='inferno', alpha=0.75, vmin=low, vmax=max(high, low + 1e-9))
        bar = figure.colorbar(layer, cax=axis.inset_axes((1.02, 0, 0.03, 1)))  # as high as the picture
        bar.set_label(unit, fontsize=7)
        bar.ax.tick_params(labelsize=7)
    if patch is not None:
        scale = picture.shape[1] / seen.image.bgr.shape[1]
        box = seen.box_of(patch)
        for axis in axes:
            corner = (box.left * scale - 0.5, box.top * scale - 0.5)
            size = (box.width * scale, box.height * scale)
            axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor='white', linewidth=2.5))
            axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor='red', linewidth=1))
    _save(figure, path)


def _panels(count: int, shape: tuple[int, ...], title: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with a grid of panels for pictures (height, width, 3)."""
    columns = min(count, 2 if count == 2 else 4 if count > 6 else 3)
    rows = -(-count // columns)
    side = 5.5 if count <= 2 else 4.0  # inches
    width = max(min(side, 1.25 * side * shape[1] / shape[0]), side / 5)  # smaller for pictures that are high
    figure = plots.new_figure(width * columns, rows * (width * shape[0] / shape[1] * 0.92 + 0.4))
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _show(axis: Axes, picture: np.ndarray, title: str, **options: Any) -> None:
    axis.imshow(picture, **options)
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


def _save(figure: Figure, path: str) -> None:
    replace_file(path, lambda part: figure.savefig(part, dpi=130))


def _number(stack: Sequence[Any], layer: int) -> str:
    return f'{layer % len(stack)} (0 to {len(stack) - 1})'
