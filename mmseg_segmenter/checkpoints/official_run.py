"""Convert runs of the official Segmenter (official weights ``checkpoint.pth`` beside ``variant.yml``), and back."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import yaml
from mmengine.config import Config
from torch import Tensor

from ..errors import FileAccessError, MissingFileError, UserError
from ..files import refuse_existing, write_atomically, write_checkpoint, write_text
from .architecture import Architecture, read_architecture, value_warnings
from .formats import official_segmenter
from .keymap import Conversion
from .official_config import Decoder, config_text
from .official_variant import DatasetMeta, Variant, check_classes, make_variant, read_variant
from .read import provenance, read_tensors
from .verify import Comparison, verify_official_run

# Classes of the datasets that the official code knows.
_NUM_CLASSES = {'ade20k': 150, 'cityscapes': 19, 'pascal_context': 60}


@dataclass(frozen=True)
class OfficialRun:
    """An official run in mmseg's layout.

    Attributes:
        checkpoint: path of the official weights.
        variant: its configuration.
        conversion: tensors and an account of every source key.
        architecture: sizes of the encoder.
        verified: comparison with the official weights, or None if it was not verified.
    """

    checkpoint: str
    variant: Variant
    conversion: Conversion
    architecture: Architecture
    verified: Comparison | None = None

    @property
    def decoder(self) -> Decoder:
        """Sizes of the decoder, read from the weights."""
        state = self.conversion.state_dict
        if 'decode_head.conv_seg.bias' in state:
            return Decoder(len(state['decode_head.conv_seg.bias']), num_layers=0, embed_dims=0)
        prefix = 'decode_head.layers.'
        num_layers = len({key.removeprefix(prefix).split('.')[0] for key in state if key.startswith(prefix)})
        return Decoder(state['decode_head.cls_emb'].shape[1], num_layers, state['decode_head.dec_proj.weight'].shape[0])

    @property
    def warnings(self) -> list[str]:
        """What a user should know before using these weights."""
        warnings = value_warnings(self.checkpoint, self.conversion.state_dict)
        expected, found = _NUM_CLASSES.get(self.variant.dataset), self.decoder.num_classes
        if self.variant.meta is None and found != expected:
            warnings.append(
                f'{self.checkpoint}: {found} classes, but {self.variant.dataset} has {expected}; for another dataset '
                'give the names of its classes with --classes'
            )
        return warnings

    def __str__(self) -> str:
        num_classes, num_layers, _ = self.decoder
        decoder = f'mask decoder of {num_layers} layers' if num_layers else 'linear decoder'
        lines = [f'read {self.checkpoint}: {self.architecture}; {decoder}, {num_classes} classes', str(self.conversion)]
        assumed = ['exact (erf) GELU', f'LayerNorm eps {official_segmenter.EPS:g}']
        if num_layers:
            assumed.append('decoder heads width // 64')
        lines.append(f'assumed, as in the official code: {", ".join(assumed)}')
        if self.verified:
            lines.append(f'verified: {self.verified}')
        return '\n'.join(lines)


def read_official_run(source: str, classes: Sequence[str] | None = None) -> OfficialRun:
    """Read an official run, and convert its weights to mmseg's layout in memory.

    Args:
        source: folder of the run, or ``checkpoint.pth`` in it.
        classes: names of the classes of a dataset that the official code does not know, or the path of a text file
            with one name a line. By default those that ``mmseg2segm.py`` noted in ``variant.yml``.

    Raises:
        MissingFileError: checkpoint or variant is missing.
        UserError: names the file and what is wrong.
    """
    checkpoint = os.path.join(source, 'checkpoint.pth') if os.path.isdir(source) else source
    tensors = read_tensors(checkpoint)
    variant = read_variant(os.path.join(os.path.dirname(checkpoint), 'variant.yml'))
    if classes is not None:
        # colours in the variant belong to the names in it
        reduce_zero_label = variant.meta is not None and variant.meta.reduce_zero_label
        variant = replace(variant, meta=DatasetMeta(read_classes(classes), None, reduce_zero_label))
    try:
        conversion = official_segmenter.to_mmseg(tensors)
        prefix = 'backbone.'
        names = [key for key in conversion.state_dict if key.startswith(prefix)]
        architecture = read_architecture(
            {key.removeprefix(prefix): conversion.state_dict[key] for key in names},
            {key.removeprefix(prefix): conversion.origin[key] for key in names if key in conversion.origin},
            variant.num_heads,
        )
    except ValueError as error:
        raise UserError(f'{checkpoint}: cannot convert, {error}') from None
    run = OfficialRun(checkpoint, variant, conversion, architecture)
    _check_variant(run)
    return run


def _check_variant(run: OfficialRun) -> None:
    """Compare the variant with the weights.

    Raises:
        UserError: names the value that does not fit the weights.
    """
    variant, architecture = run.variant, run.architecture
    if architecture.embed_dims % variant.num_heads:
        raise UserError(
            f'{run.checkpoint}: n_heads={variant.num_heads} in variant.yml does not fit a width of '
            f'{architecture.embed_dims}'
        )
    P = architecture.patch_size
    height, width = variant.input_size
    if (height // P) * (width // P) != architecture.num_patches:
        raise UserError(
            f'{run.checkpoint}: net_kwargs.image_size={variant.input_size} in variant.yml does not fit a position '
            f'embedding of {architecture.num_patches} patches of {P} pixels'
        )
    if variant.meta is not None and len(variant.meta.classes) != run.decoder.num_classes:
        raise UserError(
            f'{run.checkpoint}: {len(variant.meta.classes)} names of classes, expected {run.decoder.num_classes}, the '
            'number in the weights'
        )


def read_classes(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes as given, or read them from a text file.

    Args:
        names: the names, or only the path of a text file with one name a line.

    Raises:
        FileAccessError: the file cannot be read.
        UserError: the file is not UTF-8 text, there is no name, or two are equal.
    """
    if len(names) != 1 or not os.path.isfile(names[0]):
        return check_classes(tuple(names), '--classes')
    try:
        with open(names[0], encoding='utf-8') as file:
            lines = tuple(line.strip() for line in file)
    except UnicodeDecodeError:
        raise UserError(f'{names[0]}: not UTF-8 text, expected one name a line') from None
    except OSError as error:
        raise FileAccessError(f'cannot read {names[0]}: {error.strerror or error}') from None
    return check_classes(tuple(line for line in lines if line), names[0])


def convert_official_run(
    source: str,
    destination: str,
    force: bool = False,
    verify: bool = False,
    classes: Sequence[str] | None = None,
) -> OfficialRun:
    """Write ``DESTINATION/{model.pth, config.py}`` from an official run.

    Args:
        source: folder of the run, or ``checkpoint.pth`` in it.
        destination: folder, made if needed.
        force: replace existing files.
        verify: write the files only if the model gives the official logits, see
            :func:`mmseg_segmenter.checkpoints.verify.verify_official_run`.
        classes: names of the classes of another dataset, see :func:`read_official_run`.

    Raises:
        ExistingFileError: a file exists and ``force`` is not set.
        NotAFileError: there is a folder in place of a file.
        FileAccessError: the files cannot be written.
        UserError: the logits differ.
        others: as :func:`read_official_run` and :func:`mmseg_segmenter.checkpoints.official_config.config_text`.
    """
    _refuse_existing(destination, ('model.pth', 'config.py'), force)
    run = read_official_run(source, classes)
    text = config_text(run.variant, run.architecture, run.decoder, run.checkpoint)
    content = dict(state_dict=run.conversion.state_dict, meta=provenance(run.checkpoint, run.architecture))
    writers = {
        'model.pth': lambda path: write_checkpoint(path, content),
        'config.py': lambda path: write_text(path, text),
    }

    def check(staging: str) -> Comparison:
        config, model = (os.path.join(staging, name) for name in ('config.py', 'model.pth'))
        return verify_official_run(run.checkpoint, run.variant.input_size, run.variant.num_heads, config, model)

    return replace(run, verified=write_atomically(destination, writers, force, check if verify else None))


def _refuse_existing(folder: str, names: tuple[str, ...], force: bool) -> None:
    """Refuse existing destinations before the work, not after it."""
    for name in names:
        refuse_existing(os.path.join(folder, name), force)


def official_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state_dict of a ``Segmenter`` to the one that the official code loads.

    The official code loads strictly, and needs the ImageNet classifier that it does not use: it is filled with zeros.

    Args:
        state: state_dict of the whole segmentor.

    Raises:
        UserError: lists missing and unknown keys.
    """
    out = official_segmenter.from_mmseg(state)
    width = out['encoder.cls_token'].shape[-1]
    for name in ('head', 'head_dist') if 'encoder.dist_token' in out else ('head',):
        out[f'encoder.{name}.weight'] = torch.zeros(1000, width)
        out[f'encoder.{name}.bias'] = torch.zeros(1000)
    return out


def write_official_run(
    config: str, checkpoint: str, destination: str, force: bool = False, verify: bool = False
) -> Comparison | None:
    """Write ``DESTINATION/{checkpoint.pth, variant.yml}`` for the official code.

    Args:
        config: config of a ``Segmenter``.
        checkpoint: its weights.
        destination: folder, made if needed.
        force: replace existing files.
        verify: write the files only if the official model gives the same logits, see
            :func:`mmseg_segmenter.checkpoints.verify.verify_official_run`.

    Returns:
        The comparison, or None without ``verify``.

    Raises:
        MissingFileError: config or checkpoint does not exist.
        ExistingFileError: a file exists and ``force`` is not set.
        NotAFileError: there is a folder in place of a file.
        FileAccessError: the files cannot be written.
        UserError: the official code cannot build this model, keys are missing or unknown, or the logits differ.
    """
    _refuse_existing(destination, ('checkpoint.pth', 'variant.yml'), force)
    if not os.path.isfile(config):
        raise MissingFileError(f'config {config} not found (working directory: {os.getcwd()})')
    variant = make_variant(Config.fromfile(config))
    try:
        weights = official_weights(read_tensors(checkpoint))
    except ValueError as error:
        raise UserError(f'{checkpoint}: cannot convert, {error}') from None
    content = dict(model=weights, n_cls=variant['net_kwargs']['n_cls'])
    writers = {
        'checkpoint.pth': lambda path: write_checkpoint(path, content),
        'variant.yml': lambda path: write_text(path, yaml.dump(variant)),
    }

    def check(staging: str) -> Comparison:
        written = read_variant(os.path.join(staging, 'variant.yml'))
        official = os.path.join(staging, 'checkpoint.pth')
        return verify_official_run(official, written.input_size, written.num_heads, config, checkpoint)

    return write_atomically(destination, writers, force, check if verify else None)
