"""``variant.yml`` as anybody may write it: one line for whatever is odd, and nothing written."""

import os
import time
from pathlib import Path

import official
import pytest
import torch
import yaml
from forked_tool import run_tool

from mmseg_segmenter.checkpoints.official_run import convert_official_run
from mmseg_segmenter.checkpoints.official_variant import DatasetMeta, load_variant, read_variant

TOOL = Path(__file__).parents[2] / 'tools' / 'model_converters' / 'segm2mmseg.py'
VARIANT = """
dataset_kwargs: {dataset: ade20k, image_size: 64, crop_size: 64}
net_kwargs:
  image_size: [64, 64]
  n_heads: 3
  normalization: vit
  dropout: 0.0
  drop_path_rate: 0.1
  decoder: {dropout: 0.1, drop_path_rate: 0.0}
"""


def write(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / 'variant.yml').write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / 'variant.yml')


def replaced(old, new):
    assert VARIANT.count(old) >= 1
    return VARIANT.replace(old, new, 1)


def refusal(read, path):
    with pytest.raises(ValueError, match=r'variant\.yml: ') as error:
        read(path)
    text = str(error.value)
    assert path in text and '\n' not in text and len(text) < 600
    return text


# Structure


def bomb(levels, width):
    """Nine lists of nine aliases each are a billion values."""
    lines = ['l0: &l0 [x]'] + [f'l{i}: &l{i} [{", ".join([f"*l{i - 1}"] * width)}]' for i in range(1, levels)]
    return '\n'.join(lines)


def merge_bomb(levels, width):
    lines = ['m0: &m0 {x: 1}'] + [
        f'm{i}: &m{i} {{<<: [{", ".join([f"*m{i - 1}"] * width)}]}}' for i in range(1, levels)
    ]
    return '\n'.join(lines)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (bomb(10, 9), 'more than 20,000 values, aliases written out'),
        (merge_bomb(10, 9), 'more than 20,000 values, aliases written out'),
        (bomb(3, 200), 'more than 20,000 values, aliases written out'),
        ('a: &a [*a]', 'alias *a stands for nothing, or for what contains it'),
        ('a: *b', 'alias'),
        ('a: ' + '[' * 30 + ']' * 30, 'nested more than 20 levels deep'),
        ('a: ' + '[' * 100_000, 'nested more than 20 levels deep'),
        ('a: ' + '{a: ' * 5000, 'nested more than 20 levels deep'),
        ('\n'.join(' ' * i + 'a:' for i in range(600)), 'nested more than 20 levels deep'),
        ('- [' + '1,' * 25_000 + ']', 'more than 20,000 values'),
        ('a: ' + 'x' * (1 << 18), '262,147 bytes, expected at most 262,144'),
        ('a: 2023-99-99', 'refused or not YAML'),
        ('a: ' + '9' * 5000, 'refused or not YAML'),
        ('a: !!int x', 'refused or not YAML'),
        ('a: !!int ""', 'refused or not YAML'),
        ('a: !!bool x', 'refused or not YAML'),
        ('a: !!timestamp x', 'refused or not YAML'),
        ('a: !!python/name:os.system', 'refused or not YAML'),
        ('{a: 1}: 2', 'refused or not YAML'),
        ('a: "\x00"', 'refused or not YAML'),
        (b'a: \xff\xfe', 'refused or not YAML'),
        ('', 'no net_kwargs'),
        ('- 1', 'no net_kwargs'),
        ('net_kwargs: [1]', 'no net_kwargs'),
    ],
)
def test_structure_is_refused_in_one_line_at_once(tmp_path, text, words):
    path = write(tmp_path, text)
    start = time.perf_counter()
    assert words in refusal(load_variant, path)
    assert time.perf_counter() - start < 5


def test_large_file_is_not_read(tmp_path):
    """It is sparse: 100 MB that take no place."""
    path = write(tmp_path, VARIANT)
    os.truncate(path, 100_000_000)
    assert '100,000,000 bytes, expected at most 262,144' in refusal(load_variant, path)


def test_aliases_of_the_official_code_are_read(tmp_path):
    """PyYAML writes them where an object is used twice."""
    size = (64, 64)
    content = yaml.unsafe_load(VARIANT)
    content['net_kwargs']['image_size'] = content['again'] = size
    text = yaml.dump(content)
    assert '&id001 !!python/tuple' in text
    assert load_variant(write(tmp_path, text)) == content
    assert read_variant(str(tmp_path / 'variant.yml')).input_size == size


# Values


ODD = ['-5', '0', '32', 'true', '64.0', '.nan', '.inf', '1e400', '2023-01-01', '"64"', '[64]', 'null', '9' * 14]


@pytest.mark.parametrize('value', [*ODD, pytest.param('0x' + 'f' * 6000, id='huge')])
def test_odd_crop_size(tmp_path, value):
    text = refusal(read_variant, write(tmp_path, replaced('crop_size: 64', f'crop_size: {value}')))
    assert 'dataset_kwargs.crop_size=' in text and text.endswith('expected an integer from 33 to 65536')


@pytest.mark.parametrize(
    ('old', 'new', 'words'),
    [
        (', crop_size: 64', '', 'dataset_kwargs.crop_size is missing, expected an integer from 33 to 65536'),
        ('image_size: 64,', 'image_size: -5,', 'dataset_kwargs.image_size=-5, expected an integer from 1 to 65536'),
        ('dataset: ade20k', 'dataset: 3', 'dataset_kwargs.dataset=3, expected a name'),
        ('dataset: ade20k, ', '', 'dataset_kwargs.dataset is missing, expected a name'),
        ('[64, 64]', '64', 'net_kwargs.image_size=64, expected height and width, two integers'),
        ('[64, 64]', '[64, true]', 'net_kwargs.image_size=[64, True], expected height and width, two integers'),
        ('[64, 64]', '[64, 64, 64]', 'net_kwargs.image_size=[64, 64, 64], expected height and width'),
        ('n_heads: 3', 'n_heads: true', 'net_kwargs.n_heads=True, expected an integer from 1 to 65536'),
        ('n_heads: 3', 'n_heads: 0', 'net_kwargs.n_heads=0, expected an integer'),
        ('  n_heads: 3\n', '', 'net_kwargs.n_heads is missing, expected an integer'),
        ('normalization: vit', 'normalization: [vit]', "net_kwargs.normalization=['vit'], expected one of vit, deit"),
        ('  normalization: vit\n', '', 'net_kwargs.normalization is missing, expected one of vit, deit'),
        ('dropout: 0.0', 'dropout: .nan', 'net_kwargs.dropout=nan, expected a number from 0 to below 1'),
        ('dropout: 0.0', 'dropout: false', 'net_kwargs.dropout=False, expected a number'),
        ('drop_path_rate: 0.1', 'drop_path_rate: 1', 'net_kwargs.drop_path_rate=1, expected a number from 0 to below'),
        ('{dropout: 0.1,', '{dropout: -1,', 'net_kwargs.decoder.dropout=-1, expected a number'),
        ('{dropout: 0.1, drop_path_rate: 0.0}', '[1]', 'net_kwargs.decoder=[1], expected a mapping'),
    ],
)
def test_odd_value(tmp_path, old, new, words):
    assert words in refusal(read_variant, write(tmp_path, replaced(old, new)))


@pytest.mark.parametrize(
    ('meta', 'words'),
    [
        ('{classes: road}', "dataset_meta.classes='road', expected a list of names"),
        ('{classes: [1, 2]}', 'dataset_meta.classes=[1, 2], expected a list of names'),
        ('{}', 'dataset_meta.classes is missing, expected a list of names'),
        ('{classes: []}', 'classes=[], expected different names, none of them empty'),
        ('{classes: [a, a]}', "classes=['a', 'a'], expected different names, none of them empty"),
        ('{classes: [a, " "]}', "classes=['a', ' '], expected different names, none of them empty"),
        ('{classes: [a, b], palette: [[0, 0, 0]]}', 'dataset_meta.palette=[[0, 0, 0]], expected a list of 2 colours'),
        ('{classes: [a], palette: [[0, 0, 256]]}', 'dataset_meta.palette=[[0, 0, 256]], expected a list of 1 colours'),
        ('{classes: [a], palette: [[0, 0, true]]}', 'expected a list of 1 colours'),
        ('{classes: [a], reduce_zero_label: 1}', 'dataset_meta.reduce_zero_label=1, expected true or false'),
        ('3', 'dataset_meta=3, expected a mapping'),
    ],
)
def test_odd_classes(tmp_path, meta, words):
    assert words in refusal(read_variant, write(tmp_path, f'{VARIANT}\ndataset_meta: {meta}\n'))


def test_values_are_read(tmp_path):
    meta = 'dataset_meta: {classes: [a, b], palette: [[0, 1, 2], [3, 4, 255]], reduce_zero_label: true}'
    variant = read_variant(write(tmp_path, f'{VARIANT}\n{meta}\n'))
    assert (variant.dataset, variant.image_size, variant.crop_size, variant.num_heads) == ('ade20k', 64, 64, 3)
    assert (variant.dropout, variant.drop_path_rate) == (0.0, 0.1)
    assert (variant.decoder_dropout, variant.decoder_drop_path_rate) == (0.1, 0.0)
    assert variant.meta == DatasetMeta(('a', 'b'), ((0, 1, 2), (3, 4, 255)), True)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (
            replaced('[64, 64]', '[64, 32]'),
            'image_size=(64, 32) in variant.yml does not fit a position embedding of 16',
        ),
        (f'{VARIANT}\ndataset_meta: {{classes: [a, b]}}', '2 names of classes, expected 7, the number in the weights'),
    ],
)
def test_variant_that_contradicts_the_weights(tmp_path, text, words):
    torch.save(dict(model=official.weights(official.load('linear'))), tmp_path / 'checkpoint.pth')
    write(tmp_path, text)
    with pytest.raises(ValueError, match='checkpoint') as error:
        convert_official_run(str(tmp_path), str(tmp_path / 'out'))
    assert words in str(error.value) and not (tmp_path / 'out').exists()


def test_tool_refuses_in_one_line_and_writes_nothing(tmp_path):
    torch.save(dict(model=official.weights(official.load('linear'))), tmp_path / 'checkpoint.pth')
    write(tmp_path, replaced('crop_size: 64', 'crop_size: -5'))
    command = [TOOL, tmp_path, tmp_path / 'out']
    result = run_tool(*command)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 1 and 'dataset_kwargs.crop_size=-5, expected an integer from 33 to 65536' in line
    assert sorted(os.listdir(tmp_path)) == ['checkpoint.pth', 'variant.yml']
