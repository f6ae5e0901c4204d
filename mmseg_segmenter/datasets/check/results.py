"""Results of the dataset check: statistics of a split, problems, and the report of all of them."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Severity = Literal['ERROR', 'WARNING']

MAX_NAMED = 1000  # files listed per problem (all are counted), so that memory does not grow with the dataset
CONVERTER = 'tools/dataset_converters/rgb2labels.py'


class FileProblemKind(NamedTuple):
    """Severity of a kind of problem with files, its message, and a hint if there is one for all cases."""

    severity: Severity
    message: str
    hint: str = ''


FILE_PROBLEMS = {
    'image_unreadable': FileProblemKind('ERROR', 'images that cannot be read'),
    'image_truncated': FileProblemKind('ERROR', 'truncated images', 'copy them again'),
    'mask_unreadable': FileProblemKind('ERROR', 'masks that cannot be read'),
    'mask_truncated': FileProblemKind('ERROR', 'truncated masks', 'copy them again'),
    'image_without_mask': FileProblemKind('ERROR', 'images without a mask'),
    'mask_without_image': FileProblemKind('WARNING', 'masks without an image, which are not used'),
    'file_not_used': FileProblemKind('WARNING', 'files without the suffix of the dataset, which are not used'),
    'size_mismatch': FileProblemKind('ERROR', 'masks whose size differs from that of their image'),
    'mask_colour': FileProblemKind(
        'ERROR',
        'masks with more than one channel',
        f'a mask holds one class number per pixel; convert colours to label maps with {CONVERTER}',
    ),
    'mask_jpeg': FileProblemKind('WARNING', 'masks saved as JPEG, which changes pixel values', 'save masks as PNG'),
    'labels_cut_to_8_bits': FileProblemKind(
        'ERROR',
        'masks with values above 255, which LoadAnnotations truncates to 8 bits',
        "replace it with dict(type='LoadLabelMap', ignore_index=65535), see docs/own_dataset.md",
    ),
    'labels_outside': FileProblemKind('ERROR', 'masks with labels outside the classes'),
    'mask_all_ignored': FileProblemKind('WARNING', 'masks without a labelled pixel'),
    'smaller_than_crop': FileProblemKind(
        'WARNING',
        'images smaller than the crop, which are padded',
        'if most images are listed here, set a smaller crop_size or a larger scale of RandomResize',
    ),
    'image_rotated': FileProblemKind(
        'WARNING',
        'images that are rotated when they are read (EXIF orientation), unlike their masks',
        "if the masks fit the images as stored: LoadImageFromFile(color_type='color_ignore_orientation')",
    ),
    'image_cut_to_8_bits': FileProblemKind(
        'WARNING',
        '16-bit images that are read as 8-bit images',
        "LoadImageFromFile(color_type='unchanged') keeps all bits, see docs/own_dataset.md",
    ),
    'image_channels': FileProblemKind(
        'ERROR',
        'images whose number of channels is not that of the model',
        "set color_type of LoadImageFromFile ('color': 3, 'grayscale': 1), or in_channels of the backbone",
    ),
}


@dataclass
class FileProblem:
    """Files with the same problem.

    Attributes:
        count: number of files.
        files: the first of them, with details in parentheses.
    """

    count: int = 0
    files: list[str] = field(default_factory=list)

    def add(self, name: str, detail: str = '') -> None:
        """Add a file."""
        self.count += 1
        if len(self.files) < MAX_NAMED:
            self.files.append(f'{name} ({detail})' if detail else name)

    def merge(self, other: 'FileProblem') -> None:
        """Add the files of another part of the dataset."""
        self.count += other.count
        self.files += other.files[: MAX_NAMED - len(self.files)]


@dataclass
class SplitStatistics:
    """Statistics of a split, or of a part of it.

    Attributes:
        file_problems: problems by kind, a key of :data:`FILE_PROBLEMS`.
        images: number of images.
        label_pixels: number of pixels of each label that the model sees.
        label_images: number of images that contain each label.
        values_in_masks: number of pixels of each value in the mask files.
        mask_modes: number of masks of each mode of Pillow: ``L`` (grey), ``P``
            (palette), ``RGB``, ``I;16``, ...
        image_modes: the same for images.
        heights: smallest and largest height in pixels.
        widths: smallest and largest width in pixels.
        max_value: largest pixel value of the images.
        digests: hash of the pixels of each image, by its index.
    """

    file_problems: dict[str, FileProblem] = field(default_factory=dict)
    images: int = 0
    label_pixels: Counter[int] = field(default_factory=Counter)
    label_images: Counter[int] = field(default_factory=Counter)
    values_in_masks: Counter[int] = field(default_factory=Counter)
    mask_modes: Counter[str] = field(default_factory=Counter)
    image_modes: Counter[str] = field(default_factory=Counter)
    heights: tuple[int, int] | None = None
    widths: tuple[int, int] | None = None
    max_value: float = 0
    digests: dict[int, bytes] = field(default_factory=dict)

    def add_problem(self, kind: str, name: str, detail: str = '') -> None:
        """Add a file with a problem."""
        self.file_problems.setdefault(kind, FileProblem()).add(name, detail)

    def add_size(self, height: int, width: int) -> None:
        """Add the size of an image."""
        self.heights, self.widths = _union(self.heights, (height,) * 2), _union(self.widths, (width,) * 2)

    def merge(self, other: 'SplitStatistics') -> None:
        """Add the statistics of another part of the split."""
        for kind, problem in other.file_problems.items():
            self.file_problems.setdefault(kind, FileProblem()).merge(problem)
        self.images += other.images
        for name in ('label_pixels', 'label_images', 'values_in_masks', 'mask_modes', 'image_modes'):
            getattr(self, name).update(getattr(other, name))
        self.heights, self.widths = _union(self.heights, other.heights), _union(self.widths, other.widths)
        self.max_value = max(self.max_value, other.max_value)
        self.digests |= other.digests


def _union(a: tuple[int, int] | None, b: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the smallest range that contains two ranges."""
    if a is None or b is None:
        return a or b
    return min(a[0], b[0]), max(a[1], b[1])


@dataclass
class Problem:
    """A problem of a dataset.

    Attributes:
        severity: ``'ERROR'`` or ``'WARNING'``.
        split: ``'train'``, ``'val'`` or ``'test'``; '' if the config is wrong.
        kind: short name, for scripts.
        message: what was found.
        hint: what to do about it, if known.
        count: number of files, 0 if the problem is not about files.
        files: the first of them.
    """

    severity: Severity
    split: str
    kind: str
    message: str
    hint: str = ''
    count: int = 0
    files: list[str] = field(default_factory=list)


@dataclass
class Report:
    """Result of :func:`~mmseg_segmenter.datasets.check.check_dataset`.

    Attributes:
        config: path of the config.
        classes: class names.
        ignore_index: label of pixels without a class.
        splits: statistics by split.
        problems: errors first.
        seconds: time for reading.
        workers: number of processes.
    """

    config: str
    classes: list[str]
    ignore_index: int
    splits: dict[str, SplitStatistics]
    problems: list[Problem]
    seconds: float
    workers: int

    @property
    def errors(self) -> list[Problem]:
        """Problems that are errors."""
        return [problem for problem in self.problems if problem.severity == 'ERROR']
