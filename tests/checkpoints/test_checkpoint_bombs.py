"""Checkpoints that ask for more memory than there is are refused in one line."""

import json
import struct
import warnings

import pytest
from bombs import declared, npz, pth, with_little_memory

from mmseg_segmenter.checkpoints.read import read_tensors
from mmseg_segmenter.errors import UserError

INDEX = '{"weight_map": ' + '[' * 100_000 + ']' * 100_000 + '}'


def safetensors(length: int, header: bytes) -> bytes:
    """Return a file whose header is so long by its own account."""
    return struct.pack('<Q', length) + header + bytes(64)


def shape(*sides: int) -> bytes:
    header = json.dumps({'a': {'dtype': 'F32', 'shape': sides, 'data_offsets': [0, 64]}}).encode()
    return safetensors(len(header), header)


BOMBS = {
    'zeros.npz': lambda: npz(700),  # 0.7 MB, with 600 MB of memory
    'lies.npz': lambda: declared(npz(700), 1 << 20),
    'pickle.pth': lambda: pth(700),
    'lies.pth': lambda: declared(pth(700), 1 << 20),
    'length.safetensors': lambda: safetensors((1 << 32) - 1, b'{"a": 1}'),
    'spaces.safetensors': lambda: safetensors(99_000_000, b'{}' + b' ' * 1000),
    'shape.safetensors': lambda: shape(1 << 40),
    'overflow.safetensors': lambda: shape(1 << 32, 1 << 32),
    'deep.safetensors.index.json': INDEX.encode,
}


@pytest.mark.parametrize('name', BOMBS)
def test_bomb(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BOMBS[name]())

    def read():
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                return [f'read {list(read_tensors(str(path)))}']
            except UserError as error:
                return [str(error)]

    (message,) = with_little_memory(read)
    assert str(path) in message and '\n' not in message
