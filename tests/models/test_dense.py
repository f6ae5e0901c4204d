import pytest
import torch
import torch.nn.functional as F

from mmseg_segmenter.models.dense import average_windows, identity, linear_resize, window_starts


def apply(axis_map, values):
    """Along the last dimension, by its definition."""
    return (values[..., axis_map.index] * axis_map.weight).sum(-1)


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(('n_in', 'n_out'), [(4, 64), (5, 5), (7, 45), (45, 7), (1, 9), (9, 1), (33, 527)])
# in float32 a position near 33 is good to 2e-6, times the slope
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_linear_is_torchs_interpolation(n_in, n_out, align_corners, dtype, tolerance):
    values = torch.randn(1, 3, n_in, dtype=dtype)
    expected = F.interpolate(values, n_out, mode='linear', align_corners=align_corners)
    found = apply(linear_resize(n_in, n_out, align_corners, dtype), values)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_maps_compose_crop_and_flip():
    values = torch.randn(2, 6, dtype=torch.float64)
    axis_map = linear_resize(6, 20, dtype=torch.float64)[3:18].flip().resize(31)
    expected = F.interpolate(values[None], 20, mode='linear')[..., 3:18].flip(-1)
    expected = F.interpolate(expected, 31, mode='linear')[0]
    torch.testing.assert_close(apply(axis_map, values), expected, rtol=0, atol=1e-12)


def test_dense_leaves_out_unused_inputs():
    axis_map = linear_resize(50, 800, dtype=torch.float64)
    inputs, matrix = axis_map.dense(slice(320, 400))
    assert (inputs.start, inputs.stop) == (19, 26) and matrix.shape == (80, 7)
    values = torch.randn(50, dtype=torch.float64)
    torch.testing.assert_close(matrix @ values[inputs], apply(axis_map, values)[320:400], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ('length', 'window', 'stride'), [(100, 40, 30), (100, 40, 13), (40, 40, 40), (41, 40, 40), (10, 40, 7)]
)
@pytest.mark.parametrize('cells', [8, None], ids=['interpolated', 'pixels'])
def test_windows_are_averaged(length, window, stride, cells):
    starts = window_starts(length, window, stride)
    window = min(window, length)
    cells = cells or window
    values = torch.randn(len(starts), cells, dtype=torch.float64)
    total, count = torch.zeros(length, dtype=torch.float64), torch.zeros(length, dtype=torch.float64)
    for start, inputs in zip(starts, values, strict=True):
        total[start : start + window] += F.interpolate(inputs[None, None], window, mode='linear')[0, 0]
        count[start : start + window] += 1
    assert count.min() > 0
    to_window = linear_resize(cells, window, dtype=torch.float64)
    offsets, num_positions, to_image = average_windows(length, starts, to_window, cells)
    assert num_positions == (length if cells == window else cells * len(starts))
    inputs = torch.zeros(num_positions, dtype=torch.float64)
    for offset, one in zip(offsets, values, strict=True):
        inputs[offset : offset + cells] += one
    torch.testing.assert_close(apply(to_image, inputs), total / count, rtol=0, atol=1e-12)


@pytest.mark.parametrize(('window', 'stride'), [(64, 64), (64, 40), (64, 1), (5, 3)])
def test_window_starts_are_the_official_ones(window, stride):
    for length in range(window, 200):
        official = [i for i in range(0, length, stride) if i < length - window] + [length - window]
        assert window_starts(length, window, stride) == official


def test_identity_changes_nothing():
    values = torch.randn(5)
    assert torch.equal(apply(identity(5), values), values)


def test_identity_needs_its_indices_and_its_weights():
    same = identity(3)
    assert same.is_identity(3)
    assert not same.is_identity(4)
    assert not same.flip().is_identity(3)
    assert not type(same)(same.index, same.weight / 2).is_identity(3)
