"""Labels outside the classes, and labels that do not mean what they should."""

from collections.abc import Iterator, Sequence

from mmengine.dataset import BaseDataset
from mmseg.datasets.transforms import LoadAnnotations

from .configuration import ModelSettings, find_transform
from .results import CONVERTER, Problem, SplitStatistics


def label_problems(
    split: str, statistics: SplitStatistics, dataset: BaseDataset, classes: Sequence[str], model: ModelSettings
) -> Iterator[Problem]:
    """Find labels that are valid but not what was meant, such as a class that no pixel has."""
    pixels = statistics.label_pixels
    if not pixels:
        return
    K, ignored = model.num_classes, model.ignore_index
    standard = getattr(find_transform(dataset, LoadAnnotations), 'values', None) is None
    if standard and statistics.values_in_masks.keys() == {0, 255} and ignored == 255:
        yield Problem(
            'ERROR',
            split,
            'binary_255',
            'the masks hold 0 and 255 only, and 255 means "ignored": no foreground is left',
            "load them with dict(type='LoadLabelMap', values=(0, 255)), as "
            'configs/segmenter/segmenter_vit-s_mask_own-binary.py does',
        )
    elif pixels.keys() <= {ignored}:
        hint = _reduce_zero_label_hint(statistics, dataset, model)
        yield Problem('ERROR', split, 'all_ignored', 'no pixel is labelled', hint)
    unseen = [k for k in range(K) if k not in pixels]
    if unseen and pixels.keys() - {ignored}:
        names = ', '.join(f'{k} {classes[k]}' if k < len(classes) else str(k) for k in unseen[:10])
        message = f'{len(unseen)} of {K} classes never seen: {names}' + (', ...' if len(unseen) > 10 else '')
        hint = _reduce_zero_label_hint(statistics, dataset, model)
        yield Problem('WARNING', split, 'class_never_seen', message, hint)
    share = pixels[ignored] / sum(pixels.values())
    if 0.5 < share < 1:
        yield Problem('WARNING', split, 'mostly_ignored', f'{share:.0%} of the pixels are ignored')


def labels_hint(statistics: SplitStatistics, dataset: BaseDataset, model: ModelSettings) -> str:
    """Suggest what labels outside the classes are supposed to mean."""
    K, values = model.num_classes, _labelled_values(statistics, model)
    if not values:  # Pillow cannot read the masks, only the backend of the config can
        return ''
    found = f'the masks hold {_shown(values)}'
    if values[-1] == K and not dataset.reduce_zero_label:
        consecutive = values == list(range(values[0], K + 1))
        if consecutive and values[0] == 1:
            return f'{found}: labels start at 1; set reduce_zero_label=True, which makes 1 the first class'
        if consecutive and values[0] == 0:
            return (
                f'{found}: one more than the {K} classes. If 0 is "no class", set reduce_zero_label=True; if it is a '
                'class such as background, add its name as the first of classes'
            )
        return f'{found}, up to the number of classes: if labels start at 1, set reduce_zero_label=True'
    if K == 2 and len(values) > 4:
        return f'{found}: grey levels. {CONVERTER} with two colours and --tolerance 127 maps them to 0 and 1'
    if len(values) <= K:
        return (
            f"{found}: dict(type='LoadLabelMap', values={tuple(values)}) in the pipeline maps them to "
            'the classes, in this order'
        )
    return f'{found}: {len(values)} values for {K} classes; is a name missing in classes?'


def palette_hint(statistics: SplitStatistics) -> str:
    """Suggest how to read masks whose colours come from a palette; '' if there are other masks too."""
    if statistics.mask_modes.keys() != {'P'}:
        return ''
    return "the labels are the indices of a palette: leave imdecode_backend at 'pillow'"


def _reduce_zero_label_hint(statistics: SplitStatistics, dataset: BaseDataset, model: ModelSettings) -> str:
    values = _labelled_values(statistics, model)
    if dataset.reduce_zero_label and 0 in statistics.values_in_masks and values[-1:] == [model.num_classes - 1]:
        return (
            f'the masks hold {_shown(values)}, and reduce_zero_label=True ignores 0 and makes 1 the first class; if 0 '
            'is the first class, set it to False'
        )
    return ''


def _labelled_values(statistics: SplitStatistics, model: ModelSettings) -> list[int]:
    """Return the values in the mask files but for ``ignore_index``, sorted."""
    return sorted(statistics.values_in_masks.keys() - {model.ignore_index})


def _shown(values: list[int]) -> str:
    """Format values as a range such as ``0 to 5``, or as the first few."""
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f'{values[0]} to {values[-1]}'
    return ', '.join(map(str, values[:10])) + (', ...' if len(values) > 10 else '')
