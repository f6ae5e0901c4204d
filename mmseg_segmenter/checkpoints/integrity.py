"""Recognise a checkpoint file by its content, and check it before anything is loaded.

The checks read sizes and checksums only. Nothing of the size that a file declares is allocated before that size is
known to be true, and nothing in a file is executed.
"""

import enum
import hashlib
import io
import json
import math
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Collection
from typing import IO, Any, ClassVar

import numpy as np
import torch

from ..errors import UserError, describe

_CHUNK = 1 << 20
# A compressed archive may unpack to this many times its size, or to _SMALL bytes. Weights shrink by a tenth at best.
_MOST_UNPACKED, _SMALL = 100, 1 << 30
# Bytes of the longest header or index, which is parsed as a whole: the limit of the safetensors package.
_LONGEST_HEADER = 100_000_000
# Most items of a tuple with those of the tuples in it. Nested tuples can have more than memory, and hash in as long.
_MOST_ITEMS = 1 << 20
# First pickle of a file that torch wrote before 1.6.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_BYTE_ORDERS = (b'little', b'big')
# Bytes per item of torch's storage classes. Others count as one byte, which is never too much.
_ITEM_SIZES = dict(ComplexDouble=16, ComplexFloat=8, Double=8, Long=8, Float=4, Int=4, Half=2, BFloat16=2, Short=2)


class Format(enum.Enum):
    """Kinds of checkpoint files. The value names the kind in messages."""

    TORCH = 'a file written by torch.save'
    NPZ = 'an .npz file'
    SAFETENSORS = 'a .safetensors file'
    INDEX = 'an index of shards'


class DamagedError(Exception):
    """Describe what is wrong with a file. The caller adds which file it is."""


def check_file(path: str) -> Format:
    """Recognise a checkpoint file by its content, and check that it is whole.

    What is checked depends on the format. Zip archives (``torch.save``, ``.npz``): the checksum of every member, and
    the size of every tensor. Files of ``torch.save`` before torch 1.6: the total length and the size of every tensor.
    ``.safetensors``: the header and the total length. The last two formats have no checksums.

    Args:
        path: an existing file.

    Returns:
        The format.

    Raises:
        DamagedError: the file is incomplete, damaged or of another kind.
        OSError: the file cannot be opened.
    """
    with open(path, 'rb') as file:
        head = file.read(16)
        size = os.fstat(file.fileno()).st_size
        try:
            return _check(file, head, size)
        except DamagedError:
            raise
        except Exception as error:  # the parsers raise almost anything on damaged files
            raise DamagedError(describe(error)) from error


def _check(file: IO[bytes], head: bytes, size: int) -> Format:
    if not head:
        raise DamagedError('it is empty')
    if head[:4] == b'PK\x03\x04':
        return _check_zip(file, size)
    # Before pickles: the length of a header may begin with the bytes of a pickle.
    if len(head) > 8 and head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < 1 << 32:
        return _check_safetensors(file, size)
    if head[:1] == b'\x80':
        return _check_legacy_torch(file, size)
    if head.lstrip()[:1] == b'{':
        return _check_index(file)
    raise DamagedError(f'it begins with {head!r}')


def _check_zip(file: IO[bytes], size: int) -> Format:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise DamagedError('two members have the same name')
        # Nobody writes comments. A damaged length of one hides the members that follow.
        if archive.comment or any(member.comment for member in members.values()):
            raise DamagedError('its list of members is damaged')
        # torch leaves the memory for a member uninitialised if it has the attribute of a folder.
        if any(member.is_dir() or member.external_attr & 0x10 for member in members.values()):
            raise DamagedError('one of its members is a folder')
        packed, unpacked = (sum(getattr(m, kind) for m in members.values()) for kind in ('compress_size', 'file_size'))
        if packed > size or unpacked > max(_MOST_UNPACKED * size, _SMALL):
            raise DamagedError(f'its members are {unpacked:,} bytes by their own account')
        _check_members(archive, members.values())
        folder = next(iter(members)).partition('/')[0]
        if f'{folder}/constants.pkl' in members:
            raise DamagedError('it is a TorchScript archive; save the state_dict of the module with torch.save')
        if f'{folder}/data.pkl' in members:
            _check_torch_zip(archive, folder, members, size)
            _check_torch_reader(file)
            return Format.TORCH
        if all(name.endswith('.npy') for name in members):
            for member in members.values():
                _check_array(archive, member)
            return Format.NPZ
    raise DamagedError('it is a zip archive of something else')


def _check_members(archive: zipfile.ZipFile, members: Collection[zipfile.ZipInfo]) -> None:
    """Check length and CRC of every member, without holding more than a chunk of it."""
    # torch.serialization.set_crc32_options(False) writes zeros in place of checksums. Without the attribute, zipfile
    # does not compare.
    if not any(member.CRC for member in members):
        for member in members:
            del member.CRC
    for member in members:
        length = 0
        with archive.open(member) as content:
            while chunk := content.read(_CHUNK):
                length += len(chunk)
        if length != member.file_size:
            raise DamagedError(f'{member.filename}: {length:,} of {member.file_size:,} bytes')


def _check_torch_zip(archive: zipfile.ZipFile, folder: str, members: dict[str, zipfile.ZipInfo], size: int) -> None:
    length = members[f'{folder}/data.pkl'].file_size
    if length > _LONGEST_HEADER:
        raise DamagedError(f'its data.pkl alone is {length:,} bytes')
    with archive.open(f'{folder}/data.pkl') as content:
        inventory = _Inventory(io.BytesIO(content.read()), size)
    inventory.load()
    for key, nbytes in inventory.storages.items():
        name = f'{folder}/data/{key}'
        found = members[name].file_size if name in members else 0
        if nbytes > found:
            raise DamagedError(f'{name} has {found:,} bytes, expected {nbytes:,}')


def _check_torch_reader(file: IO[bytes]) -> None:
    """Check that torch reads the list of members too: it has another reader of zip archives, with checks of its own."""
    file.seek(0)
    reader: Any = torch._C.PyTorchFileReader(file)
    for name, parse in (('byteorder', _BYTE_ORDERS.index), ('.format_version', int), ('.storage_alignment', int)):
        if reader.has_record(name):
            parse(reader.get_record(name))


def _check_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    with archive.open(member) as content:
        version = np.lib.format.read_magic(content)
        read_header: dict[tuple[int, int], Any] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = read_header[version](content)
        declared, found = math.prod(shape) * dtype.itemsize, member.file_size - content.tell()
    if declared != found and not dtype.hasobject:  # a pickled object has a length of its own; reading refuses it
        raise DamagedError(f'{member.filename}: {found:,} bytes, expected {declared:,} for shape {shape}')


def _check_safetensors(file: IO[bytes], size: int) -> Format:
    file.seek(0)
    (length,) = struct.unpack('<Q', file.read(8))
    if 8 + length > size or length > _LONGEST_HEADER:
        raise DamagedError(f'its header alone is {length:,} bytes')
    header = json.loads(file.read(length))
    ends = [entry['data_offsets'][1] for key, entry in header.items() if key != '__metadata__']
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise DamagedError(f'expected {expected:,} bytes')
    return Format.SAFETENSORS


def _check_legacy_torch(file: IO[bytes], size: int) -> Format:
    """Check the format of torch before 1.6: pickles (magic number, version, system, content, keys), then storages."""
    # A read from a map never allocates more than there is, whatever length the pickle declares.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if _Inventory(content, size).load() != _TORCH_MAGIC:
            raise DamagedError('it is a pickle, but not of torch.save')
        for _ in ('version', 'system'):
            _Inventory(content, size).load()
        inventory = _Inventory(content, size)
        inventory.load()
        for key in _Inventory(content, size).load():
            nbytes = inventory.storages[key]
            start = content.tell() + 8  # behind the number of items
            if start + nbytes > size:
                raise DamagedError(f'storage {key} ends at byte {start + nbytes:,}')
            content.seek(start + nbytes)
    return Format.TORCH


def read_index(path: str) -> dict[str, str]:
    """Return which file beside an index of shards holds each tensor.

    Args:
        path: of the index.

    Raises:
        UserError: it is no index, or names something else than a file beside it.
        OSError: it cannot be opened.
    """
    try:
        with open(path, 'rb') as file:
            weight_map = _weight_map(file)
    except (DamagedError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f'{path} is not an index of shards ({describe(error)})') from None
    for name in set(weight_map.values()):
        if os.path.basename(name) != name or name.endswith('.json') or name in ('', '.', '..'):
            raise UserError(f'{path}: shard {name!r}; expected the name of a file beside the index')
    return weight_map


def _check_index(file: IO[bytes]) -> Format:
    _weight_map(file)
    return Format.INDEX


def _weight_map(file: IO[bytes]) -> dict[str, str]:
    if file.seek(0, os.SEEK_END) > _LONGEST_HEADER:
        raise DamagedError('it is too large for an index')
    file.seek(0)
    weight_map = json.load(file).get('weight_map')
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise DamagedError('it is JSON without a "weight_map" of file names')
    return weight_map


def check_pickle(content: bytes) -> None:
    """Check that reading a pickle allocates no more than its size allows. Nothing in it is executed.

    Raises:
        DamagedError: it would allocate more, or is damaged.
    """
    try:
        _Inventory(io.BytesIO(content), len(content)).load()
    except DamagedError:
        raise
    except Exception as error:  # the interpreter raises almost anything on damaged content
        raise DamagedError(describe(error)) from None


def file_digest(path: str, algorithm: str = 'sha256') -> str:
    """Return the hex digest of a file.

    Args:
        path: of the file.
        algorithm: as ``hashlib`` names it.
    """
    digest = hashlib.new(algorithm)
    with open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class _Storage:
    """Stand in for a storage of ``num_items`` items."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items


class _Inert:
    """Stand in for any class or function that a pickle names. It does nothing."""

    name: str
    file_size: int

    def __new__(cls, *args: Any, **_: Any) -> '_Inert':
        if args and isinstance(args[0], _Storage):
            _check_view(*args[:4])
        allocates = cls.name in ('_reconstruct', 'bytearray') or cls.name.endswith(('Tensor', 'Storage'))
        if allocates and math.prod(_integers(args)) > cls.file_size:
            raise DamagedError(f'it asks for a {cls.name} larger than the file')
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and state and isinstance(state[0], _Storage):
            _check_view(*state[:4])  # how torch before 0.4 stored its tensors

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Accept an item of a list."""

    def extend(self, items: Any) -> None:
        """Accept items of a list."""


class _Inventory(pickle._Unpickler):
    """Read a pickle of ``torch.save`` for the sizes of its storages. Nothing is imported, called or allocated.

    The interpreter in Python, because the one in C allocates what damaged pickles declare.

    Attributes:
        storages: number of bytes by key.
    """

    def __init__(self, file: Any, file_size: int) -> None:
        super().__init__(file, encoding='bytes')
        self.file_size = file_size
        self.storages: dict[Any, int] = {}
        self._sizes: dict[int, int] = {}
        self._tuples: list[tuple[Any, ...]] = []

    def append_tuple(self, items: Any) -> None:
        """Put a tuple on the stack, if it is not larger than any in a checkpoint."""
        number = sum(self._sizes.get(id(item), 1) for item in items)
        if number > _MOST_ITEMS:
            raise DamagedError(f'it has a tuple of {number:,} items')
        value = tuple(items)
        self._sizes[id(value)] = number
        self._tuples.append(value)  # its id stays its own
        self.append(value)  # type: ignore[attr-defined]

    def load_tuple(self) -> None:
        """Take the items down to the last mark."""
        self.append_tuple(self.pop_mark())  # type: ignore[attr-defined]

    def load_short_tuple(self, length: int) -> None:
        """Take the last items."""
        stack = self.stack  # type: ignore[attr-defined]
        items = stack[-length:]
        del stack[-length:]
        self.append_tuple(items)

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.TUPLE[0]: load_tuple,
        pickle.TUPLE1[0]: lambda self: self.load_short_tuple(1),
        pickle.TUPLE2[0]: lambda self: self.load_short_tuple(2),
        pickle.TUPLE3[0]: lambda self: self.load_short_tuple(3),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return an inert class in place of the one that the pickle names."""
        return type(name, (_Inert,), dict(name=name, file_size=self.file_size))

    def persistent_load(self, pid: Any) -> _Storage:
        """Note a storage: ``('storage', class, key, location, number of items)``."""
        _, cls, key, _, num_items = pid[:5]
        nbytes = num_items * _ITEM_SIZES.get(cls.name.removesuffix('Storage'), 1)
        if not 0 <= nbytes <= self.file_size:
            raise DamagedError(f'storage {key} is of {nbytes:,} bytes by its own account')
        self.storages[key] = max(nbytes, self.storages.get(key, 0))
        return _Storage(num_items)


def _check_view(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """Check that a tensor lies within its storage, which torch would otherwise enlarge."""
    end = offset + 1 + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (0 not in shape and end > storage.num_items):
        raise DamagedError(f'a tensor of shape {tuple(shape)} lies outside its storage of {storage.num_items:,} items')


def _integers(values: Any) -> list[int]:
    """Return the integers in nested tuples and lists."""
    if isinstance(values, (tuple, list)):
        return [number for value in values for number in _integers(value)]
    return [values] if isinstance(values, int) else []
