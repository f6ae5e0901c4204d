"""Damaged checkpoints, of every format: the right tensors or one line that names the file, and never anything else."""

import io
import json
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader
from safetensors.torch import save

from mmseg_segmenter.checkpoints import convert, integrity
from mmseg_segmenter.checkpoints.read import read, read_tensors
from mmseg_segmenter.errors import UserError

TENSORS = {
    'a.weight': torch.arange(12.0).reshape(3, 4).sin(),
    'b': torch.arange(5).cos().half(),
    'c': torch.arange(3),
}


def torch_bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def npz_bytes(write):
    buffer = io.BytesIO()
    write(buffer, **{key: tensor.numpy() for key, tensor in TENSORS.items()})
    return buffer.getvalue()


CONTENT = dict(state_dict=OrderedDict(TENSORS), meta=dict(iter=1))
FILES = {
    'zip.pth': torch_bytes(CONTENT),
    'legacy.pth': torch_bytes(CONTENT, _use_new_zipfile_serialization=False),
    'stored.npz': npz_bytes(np.savez),
    'compressed.npz': npz_bytes(np.savez_compressed),
    'a.safetensors': save(TENSORS),
}
HAS_CHECKSUMS = {'zip.pth', 'stored.npz', 'compressed.npz'}


def equal(tensors):
    return tensors.keys() == TENSORS.keys() and all(
        tensors[key].dtype == value.dtype and torch.equal(tensors[key], value) for key, value in TENSORS.items()
    )


def outcome(path, data):
    """Return whether the file gives the right tensors, or None after the one line that refuses it."""
    path.write_bytes(data)
    try:
        return equal(read_tensors(str(path)))
    except UserError as error:
        message = str(error)
    assert str(path) in message and '\n' not in message
    return None


@pytest.mark.parametrize('name', FILES)
def test_undamaged(tmp_path, name):
    assert outcome(tmp_path / name, FILES[name])


@pytest.mark.parametrize('name', FILES)
def test_cut_short(tmp_path, name):
    data = FILES[name]
    lengths = {*range(0, len(data), 9), *range(len(data) - 30, len(data))}
    assert {length for length in lengths if outcome(tmp_path / name, data[:length]) is not None} == set()


@pytest.mark.parametrize('name', FILES)
def test_flipped_bit(tmp_path, name):
    """Where a format has checksums, no damage gives other numbers."""
    data = bytearray(FILES[name])
    outcomes = set()
    for i in range(0, len(data), 5):
        bit = 1 << (i // 5) % 8
        data[i] ^= bit
        outcomes.add(outcome(tmp_path / name, data))
        data[i] ^= bit
    assert None in outcomes
    assert name not in HAS_CHECKSUMS or False not in outcomes


def central_record(data, name):
    """Return where the entry of a member begins in the list at the end of a zip archive."""
    return data.index(b'PK\x01\x02', data.rindex(b'PK\x01\x02', 0, data.rindex(name)))


@pytest.mark.parametrize(
    ('file', 'member', 'offset', 'value'),
    [
        ('stored.npz', b'b.npy', 32, 51),  # length of a comment, which hides the next member
        ('zip.pth', b'archive/data/1', 38, 0x10),  # attribute of a folder, for which torch reads nothing
    ],
)
def test_damaged_list_of_members(tmp_path, file, member, offset, value):
    data = bytearray(FILES[file])
    data[central_record(data, member) + offset] = value
    assert outcome(tmp_path / file, data) is None


def test_what_torch_would_refuse_is_refused(tmp_path):
    """Its own reader of zip archives has other checks, so a resume took a file for whole that it could not load."""
    path, data = tmp_path / 'a.pth', bytearray(FILES['zip.pth'])
    for i in range(data.index(b'PK\x01\x02'), len(data)):  # the list of members
        data[i] ^= 1 << i % 8
        path.write_bytes(data)
        try:
            integrity.check_file(str(path))
        except integrity.DamagedError:
            pass
        else:
            assert equal(torch.load(path, weights_only=True)['state_dict'])
        data[i] ^= 1 << i % 8


def test_flipped_number_is_not_converted(tmp_path, capsys):
    """What the zip checksums of torch's files are for; torch does not look at them."""
    data = bytearray(FILES['zip.pth'])
    data[data.index(TENSORS['a.weight'].numpy().tobytes()) + 7] ^= 1
    (tmp_path / 'a.pth').write_bytes(data)
    with pytest.raises(ValueError, match=r'a\.pth \([\d,]+ bytes\) is not a readable checkpoint \(Bad CRC-32'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))
    with pytest.raises(ValueError, match='Bad CRC-32'):
        convert.convert_encoder(str(tmp_path / 'a.pth'), str(tmp_path / 'out.pth'))


def test_file_written_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        data = torch_bytes(CONTENT)
    finally:
        torch.serialization.set_crc32_options(True)
    assert outcome(tmp_path / 'a.pth', data)


@pytest.mark.parametrize('new_format', [True, False])
def test_undamaged_file_of_every_kind_of_tensor(tmp_path, new_format):
    """The check of sizes refuses nothing that torch reads."""
    x = torch.arange(24.0).reshape(4, 6)
    content = dict(
        views=[x, x[1], x[2:, 1::2], x.t(), x[0, :1].expand(10**6, 10**6), torch.tensor(1.0), torch.empty(0, 5)],
        types=[
            x.to(dtype) for dtype in (torch.bool, torch.int8, torch.half, torch.bfloat16, torch.cfloat, torch.double)
        ],
        # which torch itself does not read from the old format
        new_types=[torch.ones(5, dtype=torch.uint64), torch.ones(5).to(torch.float8_e4m3fn)] if new_format else [],
        sparse=torch.eye(3).to_sparse(),
        quantised=torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        parameter=torch.nn.Parameter(x),
        size=torch.Size((10**6, 10**6)),
        optimizer=torch.optim.AdamW([torch.nn.Parameter(x)]).state_dict(),
        numpy=np.arange(5.0),
    )
    (tmp_path / 'a.pth').write_bytes(torch_bytes(content, _use_new_zipfile_serialization=new_format))
    loaded = read(str(tmp_path / 'a.pth')).content
    assert loaded.keys() == content.keys()
    for key in ('types', 'new_types'):
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(loaded[key], content[key], strict=True))
    assert [view.stride() for view in loaded['views']] == [view.stride() for view in content['views']]


# Sizes that a file declares


def zip_of(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy_header(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, dict(descr='<f4', fortran_order=False, shape=shape))
    return buffer.getvalue()


class Call:
    """Pickle as a call of a function that torch allows."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def torch_file_with(old, new):
    """A file of torch.save with some bytes of its pickle replaced, and the checksums right."""
    with zipfile.ZipFile(io.BytesIO(torch_bytes(dict(a=torch.zeros(77))))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = members['archive/data.pkl']
    assert old in pickled
    return zip_of({**members, 'archive/data.pkl': pickled.replace(old, new)})


HUGE = 1 << 34  # items: 64 GB of float32


def legacy_with_huge_storage():
    data = torch_bytes(dict(a=torch.zeros(77)), _use_new_zipfile_serialization=False)
    assert data.count(b'KM') >= 2  # BININT1 77: of the storage, and of the shape
    return data.replace(b'KM', b'\x8a\x05' + HUGE.to_bytes(5, 'little'))


def safetensors_of(entry, content=b''):
    header = json.dumps(dict(a=entry)).encode()
    return struct.pack('<Q', len(header)) + header + content


@pytest.mark.parametrize(
    ('name', 'data'),
    [
        ('a.npz', zip_of({'a.npy': npy_header((HUGE,))})),
        ('a.npz', zip_of({'a.npy': npy_header((3,)) + b'\0' * 11})),
        ('a.pth', torch_file_with(b'KM', b'\x8a\x05' + HUGE.to_bytes(5, 'little'))),  # storage and shape
        ('a.pth', torch_file_with(b'KM\x85', b'\x8a\x05' + HUGE.to_bytes(5, 'little') + b'\x85')),  # the shape only
        ('a.pth', torch_file_with(b'KM\x85', b'KN\x85')),  # one item more than there is
        ('a.pth', torch_bytes(dict(a=Call(torch.FloatTensor, HUGE)))),
        ('a.pth', torch_bytes(dict(a=Call(bytearray, HUGE)))),
        ('a.pth', legacy_with_huge_storage()),
        ('a.pth', b'\x80\x04\x8e' + HUGE.to_bytes(8, 'little')),  # a string of bytes
        ('a.safetensors', safetensors_of(dict(dtype='F32', shape=[HUGE], data_offsets=[0, 4 * HUGE]))),
        ('a.safetensors', safetensors_of(dict(dtype='F32', shape=[2], data_offsets=[0, 4]), b'\0' * 4)),
        ('a.safetensors', struct.pack('<Q', 1 << 30) + b'{}'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_size_that_is_not_true_is_not_allocated(tmp_path, name, data):
    tracemalloc.start()
    try:
        assert outcome(tmp_path / name, data) is None
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_archive_that_unpacks_to_many_times_its_size(tmp_path, monkeypatch):
    data = zip_of({'a.npy': npy_header((1 << 18,)) + b'\0' * (1 << 20)}, zipfile.ZIP_DEFLATED)
    (tmp_path / 'a.npz').write_bytes(data)
    assert not read_tensors(str(tmp_path / 'a.npz'))['a'].any()
    monkeypatch.setattr(integrity, '_SMALL', 1 << 19)
    with pytest.raises(UserError, match=r'a\.npz \(.*its members are 1,048,\d+ bytes by their own account'):
        read_tensors(str(tmp_path / 'a.npz'))


def test_legacy_storage_cut_off(tmp_path):
    """The last storage has one byte less than the pickle says."""
    assert outcome(tmp_path / 'a.pth', FILES['legacy.pth'][:-1]) is None


# Files of another kind


@pytest.mark.parametrize(
    ('name', 'data', 'message'),
    [
        ('a.pth', b'', 'it is empty'),
        ('a.pth', b'<html>404</html>', r"it begins with b'<html>404"),
        ('a.pth', b'{"a": 1}', 'JSON without a "weight_map"'),
        ('a.pth', zip_of({'hello': b'world'}), 'a zip archive of something else'),
        ('a.pth', FILES['stored.npz'], r'a\.pth is an \.npz file, not a file written by torch\.save: rename it'),
        ('a.pt', FILES['a.safetensors'], r'a\.pt is a \.safetensors file, not a file written by torch\.save'),
        ('a.npz', FILES['zip.pth'], r'a\.npz is a file written by torch\.save, not an \.npz file'),
        ('a.safetensors', FILES['stored.npz'], r'is an \.npz file, not a \.safetensors file'),
    ],
)
def test_other_content_than_the_name_says(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        read_tensors(str(tmp_path / name))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', FILES)
def test_content_decides_where_the_name_says_nothing(tmp_path, name):
    assert outcome(tmp_path / 'weights', FILES[name]) and outcome(tmp_path / 'weights.bin', FILES[name])


def test_torchscript(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(tmp_path / 'a.pth'))
    with pytest.raises(UserError, match='TorchScript archive; save the state_dict'):
        read_tensors(str(tmp_path / 'a.pth'))


def test_folder(tmp_path):
    with pytest.raises(UserError, match='is a folder, expected a file'):
        read_tensors(str(tmp_path))


def test_nested_tuples_do_not_hang(tmp_path):
    """Each tuple holds the one before it twice: 60 of them take 2^60 steps to hash."""
    opcodes = b'\x80\x02}q\x00K\x00' + b'2\x86' * 60 + b'K\x01s.'
    path = tmp_path / 'a.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', opcodes)
        archive.writestr('a/version', '3')
    with pytest.raises(UserError, match=r'it has a tuple of 2,097,152 items'):
        read(str(path))


def test_header_that_is_too_long(tmp_path):
    path = tmp_path / 'a.safetensors'
    with open(path, 'wb') as file:  # a sparse file
        file.write((100_000_001).to_bytes(8, 'little') + b'{')
        file.truncate(100_000_100)
    with pytest.raises(UserError, match='its header alone is 100,000,001 bytes'):
        read(str(path))
    with open(path, 'wb') as file:
        file.write(b'{' + b' ' * 20)
        file.truncate(100_000_100)
    with pytest.raises(UserError, match='too large for an index'):
        read(str(path))
