"""Write one small model in every format of checkpoints that the converters read."""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import official
import torch
from safetensors.torch import save
from torch import Tensor

from mmseg_segmenter.checkpoints.convert import convert_encoder
from mmseg_segmenter.checkpoints.official_run import convert_official_run
from mmseg_segmenter.errors import UserError

NPZ = Path(__file__).parent / 'data' / 'augreg_tiny_i21k.npz'
VARIANT = b"""
dataset_kwargs: {crop_size: 64, dataset: ade20k}
net_kwargs: {image_size: [64, 64], n_heads: 3, normalization: vit}
"""


class Source(NamedTuple):
    """A checkpoint in one format.

    Attributes:
        files: content by name; the first one is what a converter is given.
        checksums: whether the format has checksums, so that any damage to the tensors is found.
        official: a run of the official code, whose converter is another one.
    """

    files: Mapping[str, bytes]
    checksums: bool
    official: bool = False

    def convert(self, folder: Path, destination: Path) -> dict[str, Tensor]:
        """Convert the files in a folder, and return the tensors that were written.

        Raises:
            UserError: as the converters.
        """
        if self.official:
            convert_official_run(str(folder), str(destination))
            return torch.load(destination / 'model.pth', weights_only=True)['state_dict']
        convert_encoder(str(folder / next(iter(self.files))), str(destination / 'out.pth'))
        return torch.load(destination / 'out.pth', weights_only=True)['state_dict']


def _torch_bytes(content: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _npz_bytes(write: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    with np.load(NPZ) as file:
        write(buffer, **dict(file))
    return buffer.getvalue()


def make_sources() -> dict[str, Source]:
    """Return the checkpoints by the name of their format."""
    theirs = official.weights(official.load('linear'))
    timm = {key.removeprefix('encoder.'): value for key, value in theirs.items() if key.startswith('encoder.')}
    names = ['a.safetensors', 'b.safetensors']
    shards = [dict(list(timm.items())[i::2]) for i in range(2)]
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = json.dumps(dict(metadata={}, weight_map=weight_map)).encode()
    run = {'checkpoint.pth': _torch_bytes(dict(model=theirs)), 'variant.yml': VARIANT}
    return {
        'pth': Source({'a.pth': _torch_bytes(timm)}, True),
        'pth (before torch 1.6)': Source({'a.pth': _torch_bytes(timm, zipped=False)}, False),
        'safetensors': Source({'a.safetensors': save(timm)}, False),
        'safetensors (sharded)': Source(
            {'a.safetensors.index.json': index, **dict(zip(names, map(save, shards), strict=True))}, False
        ),
        'npz': Source({'a.npz': _npz_bytes(np.savez)}, True),
        'npz (compressed)': Source({'a.npz': _npz_bytes(np.savez_compressed)}, True),
        'official run': Source(run, False, official=True),
    }


def convert_damaged(source: Source, file: str, damaged: bytes, folder: Path, whole: Mapping[str, Tensor]) -> str:
    """Convert a checkpoint with a damaged file, and return the outcome.

    Args:
        source: the whole checkpoint.
        file: name of the file that is damaged.
        damaged: its content.
        folder: to write to; it is made anew.
        whole: what the whole checkpoint becomes.

    Raises:
        AssertionError: the tensors differ in what the format can tell, or something is written after an error.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = {**source.files, file: damaged}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    try:
        found = source.convert(folder, folder / 'out')
    except UserError:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files, 'it wrote'
        return 'an error'
    same = found.keys() == whole.keys() and all(found[key].shape == whole[key].shape for key in whole)
    assert same, 'other names or shapes'
    if all(torch.equal(found[key], whole[key]) for key in whole):
        return 'the same tensors'
    assert not source.checksums, 'other values'
    return 'other values (no checksum)'
