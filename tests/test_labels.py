import numpy as np
import pytest
import torch

from mmseg_segmenter.labels import check_labels, label_message


@pytest.mark.parametrize(
    'make', [torch.tensor, np.array, lambda v: np.array(v, np.uint8)], ids=['torch', 'int64', 'uint8']
)
def test_labels_of_classes_and_ignored_ones_pass(make):
    check_labels(make([[0, 3], [255, 2]]), 4, 255, 'a.png')


@pytest.mark.parametrize(
    'make', [torch.tensor, np.array, lambda v: np.array(v, np.uint16)], ids=['torch', 'int64', 'uint16']
)
def test_message_names_source_labels_and_range(make):
    with pytest.raises(
        ValueError, match=r'^a\.png: found label 4, 9, expected 0 to 3 \(num_classes=4\) or 255 \(ignored\)$'
    ):
        check_labels(make([[9, 4], [255, 9]]), 4, 255, 'a.png')


def test_negative_labels_and_255_are_errors_without_ignore_index():
    with pytest.raises(ValueError, match=r'^p: found label -1, 255, expected 0 to 3 \(num_classes=4\)\. Look there$'):
        check_labels(torch.tensor([-1, 255, 0]), 4, None, 'p', hint='Look there')


def test_labels_are_shown_as_stored():
    with pytest.raises(ValueError, match=r'^p: found label 0, 5, expected 1 to 4 \(num_classes=4\)$'):
        check_labels(np.array([-1, 4, 3]), 4, None, 'p', first_label=1)


def test_message_names_ten_labels_at_most():
    assert '10, 11, 12, 13, 14, 15, 16, 17, 18, 19, ..., expected' in label_message(range(10, 30), 4, None, 'p')
