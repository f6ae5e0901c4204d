"""Confusion matrix of a config's test set, of a checkpoint or of label maps."""

import sys

import torch
from mmengine.config import Config
from mmengine.utils import track_iter_progress

from ..engine import check_datasets, evaluators
from ..errors import UserError
from ..evaluation import ConfusionMatrix
from ..evaluation.report import check_arguments
from .samples import annotation, folder_predictor, load_dataset, load_sample


def prepare_test(cfg: Config, checkpoint: str, out: str, sort: str = 'class') -> None:
    """Have ``engine.run(cfg, 'test')`` write the confusion matrix of a checkpoint.

    Args:
        cfg: whole config; its ``test_evaluator`` is replaced.
        checkpoint: file.
        out: PNG; see :func:`~mmseg_segmenter.evaluation.report.write_report`.
        sort: order of the table.

    Raises:
        FileNotFoundError: the dataset is missing.
        ValueError: ``out`` is not valid, the dataset is empty, or the config
            has no model or no test set.
        OSError: cannot write there.
    """
    check_arguments(out, sort)
    for key in ('model', 'test_dataloader'):
        if not cfg.get(key):
            raise UserError(f'{cfg.filename} has no {key}')
    check_datasets(cfg, ('test_dataloader',))
    cfg.load_from = checkpoint
    cfg.test_evaluator = dict(type='ConfusionMatrix', out=out, sort=sort, ignore_index=_ignore_index(cfg))


def from_folder(cfg: Config, folder: str, out: str, sort: str = 'class') -> None:
    """Compare label maps with the annotations of the test set; no model is built.

    Args:
        cfg: whole config.
        folder: of ``tools/test.py --out``.
        out: as :func:`prepare_test`.
        sort: order of the table.

    Raises:
        as :func:`prepare_test`, ``folder_predictor`` and ``ConfusionMatrix``.
    """
    metric = ConfusionMatrix(out, sort, _ignore_index(cfg))
    dataset = load_dataset(cfg, 'test')
    metric.dataset_meta = dataset.metainfo
    classes = len(dataset.metainfo['classes'])
    predict = folder_predictor(folder, classes, bool(dataset.metainfo.get('reduce_zero_label')))
    for index in track_iter_progress(range(len(dataset)), file=sys.stderr):
        item = load_sample(dataset, index)
        labels = annotation(item, classes, metric.ignore_index)
        sample = dict(
            img_path=item['data_samples'].img_path,
            gt_sem_seg=dict(data=torch.from_numpy(labels)[None]),
            pred_sem_seg=dict(data=torch.from_numpy(predict(item))[None]),
        )
        metric.process(None, [sample])
    metric.evaluate(len(dataset))


def _ignore_index(cfg: Config) -> int:
    """That of the evaluator that the config has."""
    return next((int(one['ignore_index']) for one in evaluators(cfg, 'test') if 'ignore_index' in one), 255)
