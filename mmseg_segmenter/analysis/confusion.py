"""Write the confusion matrix of a test set, for a checkpoint or for label maps that are already predicted."""

import sys

import torch
from mmengine.config import Config
from mmengine.utils import track_iter_progress

from ..engine import check_datasets, evaluators, find_checkpoint, run
from ..errors import UserError
from ..evaluation import ConfusionMatrix
from ..evaluation.report import check_arguments
from .samples import annotation, folder_predictor, load_dataset, load_sample


def evaluate_checkpoint(cfg: Config, checkpoint: str, out: str, sort: str = 'class') -> None:
    """Test a checkpoint and write its confusion matrix.

    Args:
        cfg: whole config; its ``test_evaluator`` is replaced.
        checkpoint: path or URL.
        out: PNG; see :func:`~mmseg_segmenter.evaluation.report.write_report`.
        sort: order of the table; see there.

    Raises:
        FileNotFoundError: the checkpoint or the dataset is missing.
        ValueError: ``out`` is not valid, the dataset is empty, the config has no model or no test set, or as
            :func:`mmseg_segmenter.engine.run`.
        OSError: cannot write ``out``.
    """
    check_arguments(out, sort)
    for key in ('model', 'test_dataloader'):
        if not cfg.get(key):
            raise UserError(f'{cfg.filename} has no {key}')
    check_datasets(cfg, ('test_dataloader',))
    cfg.load_from = find_checkpoint(checkpoint)
    cfg.test_evaluator = dict(type='ConfusionMatrix', out=out, sort=sort, ignore_index=_ignore_index(cfg))
    run(cfg, 'test')


def evaluate_label_maps(cfg: Config, folder: str, out: str, sort: str = 'class') -> None:
    """Compare predicted label maps with the annotations of the test set and write their confusion matrix.

    No model is built.

    Args:
        cfg: whole config.
        folder: folder of the label maps that ``tools/test.py --out`` writes.
        out: as :func:`evaluate_checkpoint`.
        sort: as :func:`evaluate_checkpoint`.

    Raises:
        FileNotFoundError: the dataset, the folder or the label map of an image is missing.
        ValueError: ``out`` is not valid, or a file cannot be read or has a label that is no class.
        OSError: cannot write ``out``.
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
    """Return the ignored label of the config's own evaluator, by default 255."""
    return next((int(one['ignore_index']) for one in evaluators(cfg, 'test') if 'ignore_index' in one), 255)
