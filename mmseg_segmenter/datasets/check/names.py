"""File names of images and masks that do not belong together, and images that occur twice."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from mmengine.dataset import BaseDataset
from mmengine.fileio import list_dir_or_file

from .files import FileInspector
from .results import CONVERTER, FileProblem, Problem, SplitStatistics

_MAX_TRIED = 100  # images without a mask whose names are compared with those of all masks


def find_unused_files(dataset: BaseDataset, statistics: SplitStatistics) -> None:
    """Add the files that the dataset skips because of their names.

    A dataset with a list of files skips others on purpose.
    """
    if os.path.isfile(dataset.ann_file or '') or dataset._indices is not None:
        return
    suffixes = (dataset.img_suffix, dataset.seg_map_suffix)
    images, masks = folders = (dataset.data_prefix.get('img_path'), dataset.data_prefix.get('seg_map_path'))
    for folder, suffix in zip(folders, suffixes, strict=True):
        for name in _list_files(folder):
            if not name.endswith(suffixes if images == masks else suffix):
                statistics.add_problem('file_not_used', os.path.join(folder, name), f'expected {suffix}')
    for name in _list_files(masks):
        if not name.endswith(dataset.seg_map_suffix) or (images == masks and name.endswith(dataset.img_suffix)):
            continue  # not a mask, or an image in the folder of both
        if not os.path.exists(os.path.join(images, name.removesuffix(dataset.seg_map_suffix) + dataset.img_suffix)):
            statistics.add_problem('mask_without_image', os.path.join(masks, name))


def _list_files(folder: str | None) -> list[str]:
    """Return the paths of all files in a folder, relative to it, sorted; none if it does not exist."""
    if not folder or not os.path.isdir(folder):
        return []
    return sorted(list_dir_or_file(folder, list_dir=False, recursive=True))


def naming_hint(dataset: BaseDataset, unpaired: list[str]) -> str:
    """Suggest why images have no mask, if the names of all masks differ from those of images in the same way.

    Args:
        dataset: the dataset.
        unpaired: entries of the problem ``image_without_mask``: paths with
            details in parentheses.
    """
    images, masks = dataset.data_prefix.get('img_path'), dataset.data_prefix.get('seg_map_path')
    stems = [os.path.relpath(path.split(' (')[0], images)[: -len(dataset.img_suffix)] for path in unpaired]
    if any(stem.endswith(os.path.splitext(dataset.seg_map_suffix)[0]) for stem in stems) and images == masks:
        return (
            'masks are taken for images: if both are in one folder, neither suffix may end with the other; '
            'use two folders'
        )
    names = _list_files(masks)
    if not names:
        return f'{masks} is empty'
    affixes: Counter[tuple[str, str]] = Counter()  # what the names of masks have before and after that of an image
    for stem in stems[:_MAX_TRIED]:
        for name in names:
            before, found, after = name.partition(stem)
            if found and not after[:1].isdigit():
                affixes[before, after] += 1
    if affixes:
        (before, after), count = affixes.most_common(1)[0]
        if 2 * count >= min(len(stems), _MAX_TRIED):
            if before:
                return f'masks are named {before}<image>{after}: {CONVERTER} --rename can remove {before!r}'
            if after != dataset.seg_map_suffix:
                return f'masks are named <image>{after}: set seg_map_suffix={after!r}'
    by_number = {_numbers(name): name for name in names}
    for stem in stems:
        numbers = _numbers(stem)
        if numbers and numbers in by_number:
            return (
                f'{stem}{dataset.img_suffix} may belong to {by_number[numbers]}: give both the same name before the '
                f'suffix ({CONVERTER} --rename)'
            )
    return ''


def _numbers(name: str) -> tuple[str, ...]:
    return tuple(re.findall(r'\d+', name))


class Duplicates:
    """Find images with the same pixels, within a split and in two splits.

    Args:
        inspectors: of all datasets.
    """

    def __init__(self, inspectors: Sequence[FileInspector]) -> None:
        self.inspectors = inspectors
        self.first: dict[bytes, tuple[int, int]] = {}  # digest -> dataset and image that had it first
        self.found: dict[tuple[str, str], FileProblem] = {}  # by the splits of the first image and of the copy

    def add(self, k: int, digests: dict[int, bytes]) -> None:
        """Add hashes of images.

        Args:
            k: index of the inspector.
            digests: hash of the pixels, by the index of the image.
        """
        for index, digest in digests.items():
            first = self.first.setdefault(digest, (k, index))
            if first != (k, index):
                original, copy = self.inspectors[first[0]], self.inspectors[k]
                problem = self.found.setdefault((original.split, copy.split), FileProblem())
                problem.add(copy.image_path(index), f'same as {original.image_path(first[1])}')

    def problems(self) -> Iterator[Problem]:
        """Return what was found."""
        for (original, copy), found in self.found.items():
            if original == copy:
                message = 'images that occur more than once'
                yield Problem('WARNING', copy, 'duplicate', message, '', found.count, found.files)
            else:
                message, hint = f'images that are also in {original}', 'remove them from one split, or scores mislead'
                yield Problem('ERROR', copy, 'leak', message, hint, found.count, found.files)
