"""What both decoders share."""

from typing import Any


def check_num_classes(head: str, kwargs: dict[str, Any]) -> None:
    """Refuse class counts that make no softmax, and settle ``out_channels``.

    mmseg's binary mode (``out_channels=1`` with a sigmoid) has no meaning for
    a softmax over class embeddings; mmseg's own mask head ignores it and, with
    one class, answers 0 everywhere. Setting ``out_channels`` here also keeps
    ``BaseDecodeHead`` from recommending that mode for two classes.

    Raises:
        ValueError: see above; names what to set instead.
    """
    num_classes, out_channels = kwargs.get('num_classes'), kwargs.get('out_channels')
    if num_classes is None:
        raise ValueError(f'{head}: num_classes is not set')
    if num_classes < 2:
        raise ValueError(
            f'{head}: num_classes={num_classes}, expected at least 2; for binary segmentation set num_classes=2 '
            '(background and foreground)'
        )
    if out_channels not in (None, num_classes):
        raise ValueError(
            f'{head}: out_channels={out_channels} differs from num_classes={num_classes}; leave out_channels out '
            '(for binary segmentation num_classes=2 gives one map for background and one for foreground)'
        )
    kwargs['out_channels'] = num_classes
