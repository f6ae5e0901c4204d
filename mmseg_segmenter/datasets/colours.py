"""Convert masks with a colour per class to label maps."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
from mmengine.fileio import list_dir_or_file
from PIL import Image

from ..errors import MissingFileError, UserError, describe
from ..files import write_atomically
from .image_files import check_pixels, no_pillow_limit, open_image, read_file

Colour = tuple[int, int, int]
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.gif')
IGNORED = 255
_LONGEST_PALETTE = 1 << 20  # bytes


def read_palette(path: str) -> dict[Colour, int]:
    """Read the label of each colour from a file.

    Each line is ``R G B [LABEL] [name]``. Colours without a label get 0, 1, ...
    in order, or 255 if their name is ``ignore``. Several colours may have the
    same label. ``#`` starts a comment.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: a line is not a colour, or a colour is repeated; names the
            line.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f'palette {path} not found (working directory: {os.getcwd()})')
    if os.path.getsize(path) > _LONGEST_PALETTE:
        raise UserError(f'palette {path} has {os.path.getsize(path):,} bytes, expected at most {_LONGEST_PALETTE:,}')
    palette: dict[Colour, int] = {}
    counted = 0
    with open(path, encoding='utf-8', errors='replace') as file:
        lines = [(number, line.split('#')[0].replace(',', ' ').split()) for number, line in enumerate(file, 1)]
    for number, words in lines:
        if not words:
            continue
        values = [int(word) for word in words[:4] if re.fullmatch(r'\d{1,3}', word)]
        if len(values) < 3 or max(values) > 255:
            raise UserError(f'{path}, line {number}: {" ".join(words)!r}; expected R G B [LABEL] [name], each 0 to 255')
        colour = (values[0], values[1], values[2])
        if colour in palette:
            raise UserError(f'{path}, line {number}: colour {colour} occurs twice')
        if len(values) > 3:
            palette[colour] = values[3]
        elif 'ignore' in words[3:]:
            palette[colour] = IGNORED
        else:
            palette[colour], counted = counted, counted + 1
    if not palette:
        raise UserError(f'{path}: found no colours, expected lines of R G B [LABEL] [name]')
    return palette


def mask_files(folder: str) -> list[str]:
    """Return the sorted paths of the images in a folder, relative to it.

    Raises:
        FileNotFoundError: the folder does not exist.
        UserError: it has no images.
    """
    if not os.path.isdir(folder):
        raise MissingFileError(f'folder {folder} not found (working directory: {os.getcwd()})')
    names = list_dir_or_file(folder, list_dir=False, recursive=True)
    found = sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))
    if not found:
        raise UserError(f'{folder}: found no masks, expected files that end in {", ".join(IMAGE_SUFFIXES)}')
    return found


def read_colours(path: str) -> np.ndarray:
    """Return a mask as (H, W, 3) uint8 RGB. Grey and palette masks are converted, transparency is dropped.

    Raises:
        UserError: the file is not an image, is truncated or too large; names the file.
    """
    content = read_file(path)
    check_pixels(content, path)
    try:
        with no_pillow_limit(), open_image(content) as image:
            if image.mode.startswith(('I', 'F')):
                raise UserError(f'{path} has mode {image.mode}, expected colours of 8 bits')
            return np.asarray(image.convert('RGB'))
    except UserError:
        raise
    except Exception as error:  # decoders raise all kinds
        raise UserError(f'{path} cannot be read: {describe(error)}') from None


def count_colours(folder: str) -> list[tuple[Colour, int, int]]:
    """Count the colours in the masks of a folder.

    Returns:
        Colour, number of pixels and number of masks that have it; the most
        frequent colour comes first.

    Raises:
        Exception: as :func:`mask_files` and :func:`read_colours`.
    """
    pixels: Counter[int] = Counter()
    masks: Counter[int] = Counter()
    for name in mask_files(folder):
        values, counts = np.unique(pack_colours(read_colours(os.path.join(folder, name))), return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        masks.update(values.tolist())
    return [(unpack_colour(value), count, masks[value]) for value, count in pixels.most_common()]


def to_labels(image: np.ndarray, palette: dict[Colour, int], tolerance: int = 0) -> np.ndarray:
    """Map the colours of an image to labels.

    Args:
        image: (H, W, 3) uint8, RGB.
        palette: label of each colour.
        tolerance: a colour may differ from the palette by this much in each
            channel. It gets the label of the nearest colour.

    Returns:
        (H, W) uint8.

    Raises:
        UserError: a colour is not in the palette; says how many pixels have it
            and where the first one is.
    """
    packed, inverse = np.unique(pack_colours(image), return_inverse=True)
    colours = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.int16)  # (n, 3)
    known = np.array(list(palette), dtype=np.int16)  # (m, 3)
    labels = np.empty(len(packed), np.uint8)
    inverse = inverse.reshape(image.shape[:2])
    for i, colour in enumerate(colours):
        distance = np.abs(known - colour)
        inside = (distance <= tolerance).all(axis=1)
        if not inside.any():
            where = inverse == i
            y, x = np.argwhere(where)[0].tolist()
            raise UserError(
                f'colour {tuple(colour.tolist())} is not in the palette ({int(where.sum())} pixels, the first at row '
                f'{y}, column {x}; nearest {tuple(known[distance.sum(axis=1).argmin()].tolist())})'
            )
        nearest = np.where(inside, distance.sum(axis=1), np.iinfo(np.int16).max).argmin()
        labels[i] = list(palette.values())[nearest]
    return labels[inverse]


def convert(
    source: str,
    destination: str,
    palette: dict[Colour, int],
    tolerance: int = 0,
    rename: Sequence[str] | None = None,
    force: bool = False,
) -> int:
    """Convert all masks of a folder to label maps, single-channel 8-bit PNGs: all of them or none.

    Args:
        source: folder of masks.
        destination: folder for the label maps. They are named like the masks,
            except for the suffix.
        palette: label of each colour.
        tolerance: as in :func:`to_labels`.
        rename: regular expression and replacement for the name without the
            suffix, as in ``re.sub``.
        force: replace existing files.

    Returns:
        Number of label maps.

    Raises:
        FileExistsError: a file exists and ``force`` is not set.
        FileNotFoundError: the folder of masks does not exist.
        UserError: a mask cannot be read, a colour is not in the palette, or
            two masks get the same name; names the file.
    """
    if not 0 <= tolerance <= 255:
        raise UserError(f'tolerance={tolerance}; expected 0 to 255')
    paths: dict[str, str] = {}  # mask of each label map
    for name in mask_files(source):
        path, target = os.path.join(source, name), _target_name(name, rename)
        if target in paths:
            raise UserError(f'{paths[target]} and {path} would both become {target}')
        paths[target] = path

    def make_folders(_: str) -> None:
        for target in paths:
            os.makedirs(os.path.dirname(os.path.join(destination, target)), exist_ok=True)

    writers = {target: partial(_write_labels, path, palette, tolerance) for target, path in paths.items()}
    write_atomically(destination, writers, force, make_folders)
    return len(paths)


def _target_name(name: str, rename: Sequence[str] | None) -> str:
    """Return the name of the label map of a mask."""
    folder, base = os.path.split(os.path.splitext(name)[0])
    if rename:
        rule = f'rename {rename[0]!r} to {rename[1]!r}'
        try:
            renamed = re.sub(rename[0], rename[1], base)
        except (re.error, IndexError) as error:
            raise UserError(f'{rule}: {error}') from None
        if not renamed or os.path.basename(renamed) != renamed:  # a path could leave the destination
            raise UserError(f'{rule}: {base!r} would become {renamed!r}, expected a name without folders')
        base = renamed
    return os.path.join(folder, f'{base}.png')


def _write_labels(mask: str, palette: dict[Colour, int], tolerance: int, path: str) -> None:
    image = read_colours(mask)
    try:
        labels = to_labels(image, palette, tolerance)
    except UserError as error:
        raise UserError(f'{mask}: {error}') from None
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(labels).save(path)


def pack_colours(image: np.ndarray) -> np.ndarray:
    """Encode the colours of a (H, W, 3 or more) uint8 image as one number each, (H, W) int32."""
    wide = image.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def unpack_colour(value: int) -> Colour:
    """Decode a number of :func:`pack_colours`."""
    return value >> 16, value >> 8 & 255, value & 255
