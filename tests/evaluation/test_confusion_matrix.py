import csv

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from PIL import Image

from mmseg_segmenter import ConfusionMatrix
from mmseg_segmenter.evaluation import report
from mmseg_segmenter.evaluation.confusion_matrix import class_scores, count_pairs
from mmseg_segmenter.tables import format_table

CLASSES = ('sky', 'road', 'tree', 'never', 'dreamt')  # `never` occurs nowhere, `dreamt` is only predicted


def data(count=3, height=13, width=17, classes=CLASSES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for i in range(count):
        labels = torch.randint(0, 3, (1, height, width), generator=generator)
        prediction = torch.where(torch.rand(1, height, width, generator=generator) < 0.7, labels, labels + 1)
        prediction[prediction == 3] = 4
        labels[torch.rand(1, height, width, generator=generator) < 0.1] = 255
        sample = dict(img_path=f'{i}.jpg', pred_sem_seg=dict(data=prediction), gt_sem_seg=dict(data=labels))
        samples.append(sample)
    return samples


def brute_force(samples, num_classes):
    matrix = np.zeros((num_classes, num_classes), int)
    for sample in samples:
        for label, guess in zip(
            sample['gt_sem_seg']['data'].flatten().tolist(),
            sample['pred_sem_seg']['data'].flatten().tolist(),
            strict=True,
        ):
            if label != 255:
                matrix[label, guess] += 1
    return matrix


def evaluate(metric, samples, classes=CLASSES):
    metric.dataset_meta = dict(classes=classes)
    for i in range(0, len(samples), 2):
        metric.process({}, samples[i : i + 2])
    return metric.evaluate(len(samples))


def test_counts_and_scores(tmp_path):
    samples = data()
    scores = evaluate(METRICS.build(dict(type='ConfusionMatrix', out=str(tmp_path / 'cm.png'))), samples)
    with open(tmp_path / 'cm.csv') as file:
        head, *rows = csv.reader(file)
    assert head == ['annotation \\ prediction', *CLASSES] and [row[0] for row in rows] == list(CLASSES)
    matrix = np.array([row[1:] for row in rows], int)
    assert (matrix == brute_force(samples, 5)).all()
    MMLogger.get_instance('mmengine')
    assert scores == pytest.approx(evaluate(IoUMetric(), samples), abs=0.005)
    assert Image.open(tmp_path / 'cm.png').size[0] > 300


def test_labels_of_any_integer_type():
    """k * K of uint8 labels overflows from 17 classes on."""
    labels = torch.arange(150, dtype=torch.uint8)[None]
    cells, counts = count_pairs(labels, labels.flip(1).int(), 150)
    assert cells.tolist() == [k * 150 + 149 - k for k in range(150)] and (counts == 1).all()


def test_results_are_small():
    """What is kept of an image has the size of its confusions, not K x K or H x W."""
    metric = ConfusionMatrix()
    metric.dataset_meta = dict(classes=[str(k) for k in range(847)])
    metric.process({}, data(1, 300, 400))
    ((cells, counts),) = metric.results
    assert len(cells) == len(counts) == 6 and counts.sum() < 300 * 400


@pytest.mark.parametrize(
    ('labels', 'prediction', 'message'),
    [
        ([[0, 7]], [[0, 0]], r'photo.jpg: annotation: found label 7, expected 0 to 4 \(num_classes=5\) or 255'),
        ([[0, 1]], [[0, 5]], 'photo.jpg: prediction: found label 5, expected 0 to 4'),
        ([[0, 1]], [[-1, 0]], 'photo.jpg: prediction: found label -1'),
        ([[0, 1]], [[0], [1]], r'photo.jpg: annotation of shape \(1, 2\), prediction of shape \(2, 1\)'),
    ],
)
def test_wrong_labels(labels, prediction, message):
    metric = ConfusionMatrix()
    metric.dataset_meta = dict(classes=CLASSES)
    sample = dict(
        img_path='photo.jpg',
        gt_sem_seg=dict(data=torch.tensor([labels])),
        pred_sem_seg=dict(data=torch.tensor([prediction])),
    )
    with pytest.raises(ValueError, match=message):
        metric.process({}, [sample])


def test_another_ignored_label():
    labels, prediction = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 1]])
    cells, counts = count_pairs(labels, prediction, 2, ignore_index=1)
    assert cells.tolist() == [0] and counts.tolist() == [1]


def test_scores_without_pixels():
    scores = class_scores(np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(scores.iou, [0.75, 0, np.nan])
    np.testing.assert_array_equal(scores.accuracy, [0.75, np.nan, np.nan])
    np.testing.assert_array_equal(scores.precision, [1, 0, np.nan])
    np.testing.assert_array_equal(scores.share, [1, 0, 0])
    assert scores.overall_accuracy == 0.75


@pytest.mark.parametrize(('sort', 'order'), [('class', 'abcd'), ('iou', 'bacd'), ('share', 'cbad')])
def test_table(sort, order):
    matrix = np.array([[30, 10, 0, 0], [40, 10, 10, 0], [0, 0, 80, 0], [0, 0, 0, 0]])
    table = report.class_table(matrix, 'abcd', sort)
    assert ''.join(row[0] for row in table[1:-1]) == order
    rows = {row[0]: row[1:] for row in table}
    assert rows['class'] == ['IoU', 'Acc', 'precision', 'share', 'pixels']
    assert rows['a'] == ['37.50', '75.00', '42.86', '22.22', '40']
    assert rows['d'] == ['-', '-', '-', '0.00', '0']
    assert rows['mean'] == ['46.89', '63.89', '60.58', '', '180']
    lines = format_table(table, markdown=True).splitlines()
    assert len(lines) == 7 and len({len(line) for line in lines}) == 1 and lines[1].startswith('| :-----|-----: |')


@pytest.mark.parametrize('count', [1, 11, 41, 150, 300])
def test_files(tmp_path, count):
    matrix = np.random.default_rng(0).integers(0, 99, (count, count))
    matrix[-1] = 0 if count > 1 else 1
    names = [f'a name of {k}' for k in range(count)]
    report.write_report(str(tmp_path / 'to' / 'x.png'), matrix, names)
    assert sorted(p.name for p in tmp_path.rglob('*.*')) == ['x.csv', 'x.png', 'x_classes.csv', 'x_classes.md']
    width, height = Image.open(tmp_path / 'to' / 'x.png').size
    assert 400 < width < (3200 if count <= 250 else 1700) and 400 < height < 3200
    with open(tmp_path / 'to' / 'x_classes.csv') as file:
        assert len(list(csv.reader(file))) == count + 2


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(dict(out='x.jpg'), r'out=x\.jpg; expected .*\.png'), (dict(out='x.png', sort='name'), "sort='name'; expected")],
)
def test_wrong_arguments_fail_before_the_test(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(**arguments)


def test_nothing_labelled(tmp_path):
    with pytest.raises(ValueError, match='no pixel is labelled'):
        report.write_report(str(tmp_path / 'x.png'), np.zeros((2, 2), int), 'ab')
    assert not list(tmp_path.iterdir())
