import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_segmenter.visualization import sheet

PALETTE = [[200, 0, 0], [0, 200, 0], [0, 0, 200]]


def test_channels_become_rgb():
    bgr = np.zeros((2, 3, 3), np.uint8)
    bgr[..., 0] = 200
    assert (sheet.to_rgb(bgr) == [0, 0, 200]).all() and (sheet.to_rgb(bgr, 'rgb') == [200, 0, 0]).all()
    grey = np.full((2, 3, 1), 7.4, np.float32)
    assert (sheet.to_rgb(grey) == 7).all() and sheet.to_rgb(grey[..., 0]).shape == (2, 3, 3)


def test_sixteen_bit_is_stretched():
    image = np.array([[1000, 2000], [3000, 5000]], np.uint16)
    assert sheet.to_rgb(image)[..., 0].tolist() == [[0, 64], [128, 255]]
    assert (sheet.to_rgb(np.full((2, 2), 40000, np.uint16)) == 0).all()


@pytest.mark.parametrize('shape', [(4, 4, 2), (4, 4, 4), (4, 4, 13), (1, 4, 4, 3)])
def test_other_channels_are_refused(shape):
    with pytest.raises(ValueError, match=r'expected 1 or 3 channels'):
        sheet.to_rgb(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(('shape', 'expected'), [((30, 60), (32, 64)), ((300, 200), (64, 43)), ((1, 500), (1, 64))])
def test_fit(shape, expected):
    assert sheet.fit(np.zeros((*shape, 3), np.uint8), 64).shape == (*expected, 3)


def test_overlay_colours_and_hatching():
    picture = np.full((40, 40, 3), 100, np.uint8)
    labels = np.array([[0, 2], [255, 1]])  # of a quarter each
    drawn = sheet.overlay(picture, labels, PALETTE, alpha=0.5)
    assert (drawn[:20, :20] == [150, 50, 50]).all() and (drawn[:20, 20:] == [50, 50, 150]).all()
    assert (drawn[20:, 20:] == [50, 150, 50]).all()
    ignored = drawn[20:, :20].reshape(-1, 3)
    assert (np.ptp(ignored, axis=1) == 0).all() and len(np.unique(ignored)) == 2  # two greys


def test_overlay_takes_any_labels():
    """There may be more classes than fit into a byte, and another ignored label."""
    palette = np.zeros((300, 3), int)
    palette[299] = 250
    drawn = sheet.overlay(np.zeros((8, 8, 3), np.uint8), np.full((4, 4), 299), palette, 65535, alpha=1)
    assert (drawn == 250).all()


def test_errors():
    picture = np.zeros((2, 3, 3), np.uint8)
    drawn = sheet.errors(picture, np.array([[0, 1, 255]]).repeat(2, 0), np.array([[0, 0, 0]]).repeat(2, 0)).astype(int)
    right, wrong, ignored = drawn[0]
    assert right[2] > right[0] and wrong[0] > wrong[2] and ignored[0] == ignored[1] == ignored[2]


def test_contact_sheet_layout():
    picture = np.full((50, 80, 3), 9, np.uint8)
    rows = [sheet.Row([picture, picture], f'{i}.jpg', frozenset({0})) for i in range(5)]
    one = sheet.contact_sheet(rows, ['a', 'b'], ['x', 'y', 'z'], PALETTE)
    two = sheet.contact_sheet(rows, ['a', 'b'], ['x', 'y', 'z'], PALETTE, columns=2)
    for drawn in (one, two):
        assert (drawn == 9).all(axis=2).sum() == 10 * 50 * 80  # none covered, none lost
    assert two.shape[1] > one.shape[1] and two.shape[0] < one.shape[0]
    wide = sheet.contact_sheet(rows[:1], ['a', 'b'], ['x', 'y', 'z'], PALETTE, columns=9)
    assert wide.shape[1] < 300


def test_legend_has_what_occurs():
    def has(drawn, colour):
        return (drawn == colour).all(axis=2).any()

    rows = [sheet.Row([np.full((30, 30, 3), 9, np.uint8)], '', frozenset({0, 2}))]
    drawn = sheet.contact_sheet(rows, [''], ['x', 'y', 'z'], PALETTE)
    assert [has(drawn, colour) for colour in PALETTE] == [True, False, True] and not has(drawn, [150] * 3)
    ignored = sheet.contact_sheet(
        [sheet.Row(rows[0].pictures, '', frozenset({1, 255}))], [''], ['x', 'y', 'z'], PALETTE, marks=True
    )
    assert has(ignored, [150] * 3) and has(ignored, [230, 60, 40]) and has(ignored, PALETTE[1])


def test_legend_of_many_long_names_stays_inside():
    names = [f'{k} ' + 'long name ' * 9 for k in range(150)]
    rows = [sheet.Row([np.full((30, 30, 3), 9, np.uint8)], 'caption ' * 99, frozenset(range(150)))]
    drawn = sheet.contact_sheet(rows, ['title ' * 99], names, np.full((150, 3), [250, 0, 250]))
    assert drawn.shape[1] < 300
    swatches = (drawn == [250, 0, 250]).all(axis=2)
    count, _, stats, _ = cv2.connectedComponentsWithStats(swatches.astype(np.uint8))
    assert count == 1 + 150 and (stats[1:, 2] == 26).all() and (abs(stats[1:, 3] - 13) <= 1).all()
    assert (drawn[:, -4:] > 128).all()  # no ink at the edge


def test_names_do_not_overlap():
    """No ink touches the left side of a swatch, so a name ends before the next column of the legend starts."""
    names = ['m' * (5 + k) for k in range(9)]
    colour = [250, 0, 250]
    rows = [sheet.Row([np.full((30, 700, 3), 9, np.uint8)], '', frozenset(range(9)))]
    drawn = sheet.contact_sheet(rows, [''], names, [colour] * 9)
    legend = drawn[sheet.LINE + 30 + sheet.LINE :]
    swatches = (legend == colour).all(axis=2)
    ink = (legend < 128).all(axis=2)
    assert cv2.connectedComponents(swatches.astype(np.uint8))[0] == 1 + 9 and 1 < swatches.any(axis=1).sum() < 9 * 13
    for x in np.flatnonzero(np.diff(swatches.any(axis=0).astype(int)) == 1):  # where a column of swatches starts
        assert not ink[:, x - 8 : x].any()


def test_text_is_not_mathematics():
    names = ['_private', '$\\frac$', '50 % $x$']
    rows = [sheet.Row([np.full((30, 30, 3), 9, np.uint8)], '$\\frac$.jpg', frozenset(range(3)))]
    drawn = sheet.contact_sheet(rows, ['$\\int'], names, PALETTE)
    assert all((drawn == colour).all(axis=2).any() for colour in PALETTE)


def test_save_is_whole_or_not_at_all(tmp_path):
    picture = np.full((4, 5, 3), 77, np.uint8)
    sheet.save(str(tmp_path / 'new' / 'a.png'), picture)
    assert (np.asarray(Image.open(tmp_path / 'new' / 'a.png')) == picture).all()
    with pytest.raises((TypeError, ValueError)):
        sheet.save(str(tmp_path / 'b.png'), np.zeros((4, 5, 9), np.uint8))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['new']
