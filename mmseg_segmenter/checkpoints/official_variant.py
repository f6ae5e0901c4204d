"""Read and write ``variant.yml``, the configuration of an official run.

Files come from anywhere, so nothing in them is executed or trusted: their size, depth and aliases are bounded before
they are loaded, and every value that is used has a type and a range.
"""

import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import yaml
from mmengine.config import Config, ConfigDict
from mmseg.registry import DATASETS

from ..errors import FileAccessError, MissingFileError, UserError

# segm/data/utils.py, STATS, in units of 8-bit pixels
NORMALIZATION = {
    'vit': dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    'deit': dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
}
DATASET_NAMES = {
    'ADE20KDataset': 'ade20k',
    'CityscapesDataset': 'cityscapes',
    'PascalContextDataset': 'pascal_context',
}
# Files of the official code have 2 kB, 100 values and 4 levels. A thousand classes with colours need 50 kB.
_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH = 1 << 18, 20_000, 20
# Integers above this are mistakes: sizes in pixels, numbers of heads.
_MAX_INTEGER = 1 << 16
_MIN_CROP = 33  # the stride of the official evaluation is crop - 32
# Of SegmenterViT, for configs that leave them out.
_BACKBONE = dict(img_size=224, patch_size=16, embed_dims=768, num_layers=12, num_heads=12)


class DatasetMeta(NamedTuple):
    """The classes of a dataset that the official code does not know.

    Attributes:
        classes: one name a class.
        palette: one colour (red, green, blue) a class, or None.
        reduce_zero_label: label 0 is "no class", and the classes start at 1.
    """

    classes: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...] | None = None
    reduce_zero_label: bool = False


@dataclass(frozen=True)
class Variant:
    """The values of ``variant.yml`` that a conversion uses.

    Attributes:
        path: the file.
        dataset: name of the dataset.
        image_size: short side of the resized images in pixels, or None for that of the dataset.
        crop_size: side of training crops and windows in pixels.
        normalization: a key of ``NORMALIZATION``.
        input_size: height and width in pixels that the position embedding is made for.
        num_heads: attention heads of the encoder.
        dropout: of the encoder.
        drop_path_rate: of the encoder.
        decoder_dropout: of the mask decoder.
        decoder_drop_path_rate: of the mask decoder.
        meta: classes of the dataset, as ``mmseg2segm.py`` notes them, or None.
    """

    path: str
    dataset: str
    image_size: int | None
    crop_size: int
    normalization: str
    input_size: tuple[int, int]
    num_heads: int
    dropout: float
    drop_path_rate: float
    decoder_dropout: float
    decoder_drop_path_rate: float
    meta: DatasetMeta | None


class _VariantLoader(yaml.SafeLoader):
    """YAML without tags, except ``!!python/tuple``, which official files contain."""


def _tuple(loader: yaml.SafeLoader, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


_VariantLoader.add_constructor('tag:yaml.org,2002:python/tuple', _tuple)


def load_variant(path: str) -> dict[str, Any]:
    """Load ``variant.yml`` without executing anything in it.

    Args:
        path: the file.

    Raises:
        MissingFileError: no such file.
        FileAccessError: the file cannot be read.
        UserError: the file is not YAML, larger or deeper than such files are, has a tag other than ``!!python/tuple``,
            or lacks parts that every official run has.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f'{path} not found; the official code writes it beside checkpoint.pth')
    try:
        with open(path, 'rb') as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise FileAccessError(f'cannot read {path}: {error.strerror or error}') from None
    if len(data) > _MAX_BYTES:
        raise UserError(f'{path}: {os.path.getsize(path):,} bytes, expected at most {_MAX_BYTES:,}')
    try:
        text = data.decode()
        _check_structure(text)
        variant = yaml.load(text, Loader=_VariantLoader)
    # PyYAML lets errors of Python through, such as those of int() and datetime() for "!!int x" and "2023-99-99"
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        raise UserError(f'{path}: refused or not YAML ({" ".join(str(error).split())})') from None
    for key in ('net_kwargs', 'dataset_kwargs'):
        if not isinstance(variant, dict) or not isinstance(variant.get(key), dict):
            raise UserError(f'{path}: no {key}, which every official variant.yml has')
    return variant


def _check_structure(text: str) -> None:
    """Bound depth and number of values, aliases written out, before anything is built from them.

    Raises:
        ValueError: the text exceeds a bound.
        yaml.YAMLError: the text is not YAML.
    """
    sizes: dict[str, int] = {}  # values below each finished anchor
    enclosing: list[tuple[str | None, int]] = []  # anchor of each open list or mapping, and the count before it
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f'alias *{event.anchor} stands for nothing, or for what contains it')
            count += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = enclosing.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            if isinstance(event, yaml.CollectionStartEvent):
                enclosing.append((event.anchor, count - 1))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        if len(enclosing) > _MAX_DEPTH:
            raise ValueError(f'nested more than {_MAX_DEPTH} levels deep')
        if count > _MAX_VALUES:
            raise ValueError(f'more than {_MAX_VALUES:,} values, aliases written out')


def read_variant(path: str) -> Variant:
    """Read and check the values of ``variant.yml`` that a conversion uses.

    Args:
        path: the file.

    Raises:
        UserError: names the file, the entry, the value found and the value expected.
        others: as :func:`load_variant`.
    """
    content = load_variant(path)
    top = _Section(path, '', content)
    net, data = top.section('net_kwargs'), top.section('dataset_kwargs')
    decoder = net.section('decoder')
    return Variant(
        path=path,
        dataset=data.text('dataset'),
        image_size=data.integer('image_size') if 'image_size' in data.content else None,
        crop_size=data.integer('crop_size', low=_MIN_CROP),
        normalization=net.text('normalization', tuple(NORMALIZATION)),
        input_size=net.size('image_size'),
        num_heads=net.integer('n_heads'),
        dropout=net.rate('dropout'),
        drop_path_rate=net.rate('drop_path_rate'),
        decoder_dropout=decoder.rate('dropout'),
        decoder_drop_path_rate=decoder.rate('drop_path_rate'),
        meta=_dataset_meta(top.section('dataset_meta')) if 'dataset_meta' in content else None,
    )


def _dataset_meta(section: '_Section') -> DatasetMeta:
    classes, palette = section.content.get('classes'), section.content.get('palette')
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        section.fail('classes', 'a list of names')
    if palette is not None:
        colours = palette if isinstance(palette, list) and len(palette) == len(classes) else [None]
        if not all(_is_colour(colour) for colour in colours):
            section.fail('palette', f'a list of {len(classes)} colours [red, green, blue] of integers from 0 to 255')
        palette = tuple(map(tuple, palette))
    reduce_zero_label = section.content.get('reduce_zero_label', False)
    if not isinstance(reduce_zero_label, bool):
        section.fail('reduce_zero_label', 'true or false')
    return DatasetMeta(check_classes(tuple(classes), section.path), palette, reduce_zero_label)


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(part) is int and 0 <= part <= 255 for part in value)


def check_classes(classes: tuple[str, ...], source: str) -> tuple[str, ...]:
    """Return the names of classes as they are.

    Args:
        classes: one name a class.
        source: where they are from, for messages.

    Raises:
        UserError: there is none, one is empty, or two are equal.
    """
    if not classes or not all(name.strip() for name in classes) or len(set(classes)) < len(classes):
        raise UserError(f'{source}: classes={_shown(list(classes))}, expected different names, none of them empty')
    return classes


@dataclass(frozen=True)
class _Section:
    """A mapping in ``variant.yml`` whose values are read with a type and a range."""

    path: str
    name: str
    content: Mapping[str, Any]

    def fail(self, key: str, expected: str) -> NoReturn:
        found = f'{key}={_shown(self.content[key])}' if key in self.content else f'{key} is missing'
        place = f'{self.name}.' if self.name else ''
        raise UserError(f'{self.path}: {place}{found}, expected {expected}')

    def section(self, key: str) -> '_Section':
        value = self.content.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            self.fail(key, 'a mapping')
        return _Section(self.path, f'{self.name}.{key}' if self.name else key, value)

    def integer(self, key: str, low: int = 1) -> int:
        value: Any = self.content.get(key)
        if not _is_integer(value, low):
            self.fail(key, f'an integer from {low} to {_MAX_INTEGER}')
        return value

    def size(self, key: str) -> tuple[int, int]:
        value = self.content.get(key)
        if not isinstance(value, list | tuple) or len(value) != 2 or not all(_is_integer(side, 1) for side in value):
            self.fail(key, f'height and width, two integers from 1 to {_MAX_INTEGER}')
        return value[0], value[1]

    def rate(self, key: str) -> float:
        value = self.content.get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:  # "not", for NaN
            self.fail(key, 'a number from 0 to below 1')
        return float(value)

    def text(self, key: str, options: tuple[str, ...] = ()) -> str:
        value = self.content.get(key)
        if not isinstance(value, str) or (options and value not in options):
            self.fail(key, f'one of {", ".join(options)}' if options else 'a name')
        return value


def _is_integer(value: Any, low: int) -> bool:
    return type(value) is int and low <= value <= _MAX_INTEGER  # True is an int, too


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return f'an integer of about {math.log10(2) * value.bit_length():.0f} digits'


def make_variant(cfg: Config) -> dict[str, Any]:
    """Return the content of ``variant.yml`` for a model, as the official code reads it.

    For datasets that the official code does not know, it has a ``dataset_meta`` with the names and colours of the
    classes, which the official code ignores.

    Args:
        cfg: whole config with a ``Segmenter`` model.

    Raises:
        UserError: the official code cannot build the model.
    """
    model, head = cfg.model, cfg.model.decode_head
    if model.backbone.type not in ('SegmenterViT', 'VisionTransformer'):
        raise UserError(f'{cfg.filename}: model.backbone.type={model.backbone.type!r}, expected SegmenterViT')
    backbone = ConfigDict({**_BACKBONE, **model.backbone})
    img_size = backbone.img_size if isinstance(backbone.img_size, Sequence) else (backbone.img_size,) * 2
    mean = list(model.data_preprocessor.mean)
    normalization = next((name for name, stats in NORMALIZATION.items() if stats['mean'] == mean), None)
    crop, stride = model.test_cfg.get('crop_size', img_size), model.test_cfg.get('stride', img_size)
    if normalization is None or backbone.get('norm_cfg', {}).get('eps', 1e-5) != 1e-5 or crop[0] != crop[1]:
        raise UserError(
            f'{cfg.filename}: the official code has LayerNorm eps 1e-5, square windows and one of the normalisations '
            f'{", ".join(NORMALIZATION)}; found norm_cfg={backbone.get("norm_cfg")}, crop_size={crop}, mean={mean}'
        )
    if crop[0] < _MIN_CROP:
        raise UserError(f'{cfg.filename}: crop_size={crop}; the official code needs at least {_MIN_CROP}')
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    image_size, meta = _image_size(dataset) or crop[0], _meta_entry(dataset)
    kind = dataset.get('type', 'none')
    return dict(
        dataset_kwargs=dict(
            dataset=DATASET_NAMES.get(kind, kind),
            image_size=image_size,
            crop_size=crop[0],
            normalization=normalization,
        ),
        inference_kwargs=dict(im_size=image_size, window_size=crop[0], window_stride=stride[0]),
        net_kwargs=dict(
            backbone=f'vit_d{backbone.embed_dims}_patch{backbone.patch_size}',
            d_model=backbone.embed_dims,
            decoder=_decoder_entry(cfg, backbone.embed_dims),
            distilled=backbone.get('with_dist_token', False),
            drop_path_rate=backbone.get('drop_path_rate', 0.0),
            dropout=backbone.get('drop_rate', 0.0),
            image_size=tuple(img_size),
            n_cls=head.num_classes,
            n_heads=backbone.num_heads,
            n_layers=backbone.num_layers,
            normalization=normalization,
            patch_size=backbone.patch_size,
        ),
        version='normal',
        **({} if meta is None else dict(dataset_meta=meta)),
    )


def _decoder_entry(cfg: Config, width: int) -> dict[str, Any]:
    head = cfg.model.decode_head
    if head.type != 'SegmenterMaskTransformerHead':
        return dict(name='linear', n_cls=head.num_classes)
    if head.embed_dims != width or head.num_heads != head.embed_dims // 64:
        raise UserError(
            f'{cfg.filename}: the official mask decoder is as wide as the encoder and has width/64 heads; found '
            f'embed_dims={head.embed_dims} on {width}, num_heads={head.num_heads}'
        )
    return dict(
        name='mask_transformer',
        n_cls=head.num_classes,
        n_layers=head.num_layers,
        dropout=head.get('drop_rate', 0.0),
        drop_path_rate=head.get('drop_path_rate', 0.1),
    )


def _image_size(dataset: Any) -> int | None:
    """Return the short side that a test pipeline resizes images to, or None if it does not resize them."""
    scales = [step.scale for step in dataset.get('pipeline', ()) if step.type == 'Resize' and step.get('scale')]
    return min(scales[0]) if scales and isinstance(scales[0], list | tuple) else None


def _meta_entry(dataset: Any) -> dict[str, Any] | None:
    """Return names and colours of the classes of a dataset that the official code does not know."""
    kind: Any = DATASETS.get(dataset['type']) if dataset.get('type') else None
    if not hasattr(kind, '_load_metainfo') or (dataset['type'] in DATASET_NAMES and not dataset.get('metainfo')):
        return None
    meta = kind._load_metainfo(dataset.get('metainfo'))  # also reads names from a file
    if not meta.get('classes'):
        return None
    entry: dict[str, Any] = dict(classes=[str(name) for name in meta['classes']])
    if len(meta.get('palette') or ()) == len(entry['classes']):
        entry['palette'] = [[int(part) for part in colour] for colour in meta['palette']]
    return entry | dict(reduce_zero_label=bool(dataset.get('reduce_zero_label', False)))
