"""Draw samples of the datasets of a config: what the model trains on, and what it predicts."""

import os
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample

from ..datasets.image_files import decode, read_file
from ..engine import check_datasets, data_preprocessor, ignore_index, loaded_channel_order
from ..errors import MissingFileError, UserError
from ..files import check_destination
from ..labels import check_annotations, check_labels
from ..models.load_report import check_all_loaded
from ..visualization.sheet import Row, contact_sheet, fit, overlay, prediction_row, save, to_rgb

Predictor = Callable[[dict[str, Any]], np.ndarray]  # from a sample of the dataset to (H, W) labels


def load_dataset(cfg: Config, split: str) -> BaseDataset:
    """Build the dataset of ``train_dataloader``, ``val_dataloader`` or ``test_dataloader``.

    Raises:
        FileNotFoundError: a folder does not exist.
        UserError: the config has no such loader, or the dataset is empty or
            has no class names.
    """
    loader = f'{split}_dataloader'
    if not cfg.get(loader):
        raise UserError(f'{cfg.filename} has no {loader}')
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    check_datasets(cfg, (loader,))
    dataset = DATASETS.build(cfg[loader].dataset)
    if not len(dataset):
        raise UserError(f'{loader}: the dataset is empty')
    if not dataset.metainfo.get('classes'):
        raise UserError(f"{loader}: the dataset has no class names; set metainfo=dict(classes=('...', '...'))")
    return dataset


def choose(dataset: BaseDataset, number: int, seed: int) -> list[int]:
    """Return the sorted indices of ``number`` random samples, or of all if there are fewer.

    Raises:
        UserError: ``number`` is below 1.
    """
    if number < 1:
        raise UserError(f'number={number}; expected at least 1')
    chosen = np.random.default_rng(seed).choice(len(dataset), min(number, len(dataset)), replace=False)
    return sorted(chosen.tolist())


def load_sample(dataset: BaseDataset, index: int) -> dict[str, Any]:
    """Return a sample of a dataset after its pipeline.

    Raises:
        FileNotFoundError: the image or the annotation does not exist.
        UserError: the pipeline cannot read or transform it; names the files.
    """
    try:
        return dataset[index]
    except FileNotFoundError as error:
        raise MissingFileError(f'{error.filename}: {error.strerror}') from None
    except (AssertionError, OSError, ValueError, cv2.error) as error:
        # Loaders of mmcv raise these for damaged files and seldom name the file.
        info = dataset.get_data_info(index)
        files = ' with '.join(str(info[key]) for key in ('img_path', 'seg_map_path') if key in info)
        raise UserError(f'{files}: cannot be loaded or augmented ({str(error).strip()})') from error


def browse_dataset(
    cfg: Config,
    out: str,
    split: str = 'train',
    number: int = 12,
    columns: int = 3,
    seed: int = 0,
    original: bool = False,
    side: int = 256,
) -> None:
    """Draw samples as the model sees them: after the pipeline and the padding of the data preprocessor.

    Args:
        cfg: the whole config.
        out: PNG to write.
        split: ``'train'``, ``'val'`` or ``'test'``.
        number: number of random samples.
        columns: number of samples side by side.
        seed: seed of the choice and of the augmentation.
        original: also show the image as it is in its file, first.
        side: pixels of the longer side of each picture.

    Raises:
        FileNotFoundError: a folder or file does not exist.
        UserError: an argument is out of range; or a sample has no annotation,
            a label outside the classes, or other than 1 or 3 channels, and
            then the message names the file.
        OSError: the PNG cannot be written.
    """
    _check_arguments(out, columns, side)
    dataset = load_dataset(cfg, split)
    classes, palette, ignored = dataset.metainfo['classes'], dataset.metainfo['palette'], ignore_index(cfg)
    indices = choose(dataset, number, seed)
    set_random_seed(seed)
    rows = []
    for index in indices:
        item = load_sample(dataset, index)
        name, before = _path(item), tuple(item['inputs'].shape[1:])
        annotation(item, len(classes), ignored)  # raise an error before the padding fails
        image, order, item = _preprocess(cfg, item, training=split == 'train')
        labels = annotation(item, len(classes), ignored)
        picture = _picture(image, order, name, side)
        pictures = [picture, overlay(picture, labels, palette, ignored)]
        if original:
            pictures.insert(0, fit(to_rgb(decode(read_file(name), name, 'color', 'cv2')), side))
        after = tuple(image.shape[1:])
        caption = f'{os.path.basename(name)}  {after[0]}x{after[1]}'
        caption += f', padded from {before[0]}x{before[1]}' if after != before else ''
        rows.append(Row(pictures, caption, frozenset(np.unique(labels).tolist())))
    titles = ['file'] * original + ['input', 'annotation']
    save(out, contact_sheet(rows, titles, classes, palette, columns, ignored))


def browse_predictions(
    cfg: Config,
    out: str,
    checkpoint: str | None = None,
    predictions: str | None = None,
    split: str = 'val',
    number: int = 8,
    columns: int = 1,
    seed: int = 0,
    side: int = 256,
) -> None:
    """Draw image, annotation, prediction and errors of random samples.

    Args:
        cfg: the whole config.
        out: PNG to write.
        checkpoint: checkpoint of the model that predicts.
        predictions: folder of label maps written by ``tools/test.py --out``,
            instead of a checkpoint.
        split: ``'val'`` or ``'test'``.
        number: number of random samples.
        columns: number of samples side by side.
        seed: seed of the choice.
        side: pixels of the longer side of each picture.

    Raises:
        UserError: annotation and prediction differ in size.
        OSError: the PNG cannot be written.
        Exception: as :func:`browse_dataset` and :func:`folder_predictor`.
    """
    _check_arguments(out, columns, side)
    dataset = load_dataset(cfg, split)
    classes, palette, ignored = dataset.metainfo['classes'], dataset.metainfo['palette'], ignore_index(cfg)
    indices = choose(dataset, number, seed)
    if predictions is not None:
        predict = folder_predictor(predictions, len(classes), bool(dataset.metainfo.get('reduce_zero_label')))
    else:
        predict = checkpoint_predictor(cfg, checkpoint)
    rows = []
    for index in indices:
        item = load_sample(dataset, index)
        labels, prediction = annotation(item, len(classes), ignored), predict(item)
        _check_sizes(_path(item), labels, prediction)
        picture = _picture(item['inputs'], loaded_channel_order(cfg), _path(item), side)
        name = os.path.basename(_path(item))
        rows.append(prediction_row(name, picture, prediction, palette, labels, ignored, with_errors=True))
    titles = ['image', 'annotation', 'prediction', 'errors']
    save(out, contact_sheet(rows, titles, classes, palette, columns, ignored, marks=True))


def _check_sizes(name: str, labels: np.ndarray, prediction: np.ndarray) -> None:
    if prediction.shape != labels.shape:
        raise UserError(
            f'{name}: prediction of {prediction.shape[0]}x{prediction.shape[1]} pixels, annotation of '
            f'{labels.shape[0]}x{labels.shape[1]}; in a test pipeline LoadAnnotations belongs after Resize'
        )


def _check_arguments(out: str, columns: int, side: int) -> None:
    """Check the arguments before the work."""
    check_destination(out, '.png')
    if columns < 1:
        raise UserError(f'columns={columns}; expected at least 1')
    if side < 32:
        raise UserError(f'side={side}; expected at least 32 pixels')


def annotation(item: dict[str, Any], num_classes: int, ignored: int) -> np.ndarray:
    """Return the annotation of a sample as (H, W) int64 labels.

    Raises:
        UserError: there is none, it has several channels, or a label is
            outside the classes; names the file.
    """
    sample: SegDataSample = item['data_samples']
    if 'gt_sem_seg' not in sample:
        raise UserError(f'{_path(item)}: no annotation; the pipeline needs LoadAnnotations')
    labels = sample.gt_sem_seg.data.squeeze(0).numpy().astype(np.int64)
    if labels.ndim != 2:
        raise UserError(f'{_path(item)}: annotation of shape {labels.shape}; expected (H, W), one label per pixel')
    check_annotations([sample], num_classes, ignored)
    return labels


def checkpoint_predictor(cfg: Config, checkpoint: str | None) -> Predictor:
    """Return a function that predicts labels with a model, on the GPU if there is one.

    Args:
        cfg: the whole config.
        checkpoint: checkpoint of the model, None for random weights.

    Raises:
        UserError: the checkpoint is damaged or belongs to another model.
    """
    from mmseg.apis import init_model

    model = init_model(cfg.copy(), checkpoint, device=get_device())
    check_all_loaded(model)

    def predict(item: dict[str, Any]) -> np.ndarray:
        with torch.no_grad():
            (result,) = model.test_step(pseudo_collate([item]))
        return result.pred_sem_seg.data.squeeze(0).cpu().numpy().astype(np.int64)

    return predict


def folder_predictor(folder: str, num_classes: int, reduce_zero_label: bool) -> Predictor:
    """Return a function that reads labels from files written by ``tools/test.py --out``.

    It raises an error that names the file if a label map does not exist, cannot
    be read, has several channels or has a label outside the classes.

    Args:
        folder: folder of PNG files named like the images.
        num_classes: number of classes.
        reduce_zero_label: as in the dataset. If True, files hold class + 1.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if not os.path.isdir(folder):
        raise MissingFileError(f'folder {folder} of predictions not found (working directory: {os.getcwd()})')

    def read(item: dict[str, Any]) -> np.ndarray:
        path = os.path.join(folder, os.path.splitext(os.path.basename(_path(item)))[0] + '.png')
        if not os.path.isfile(path):
            raise MissingFileError(f'{path}: no prediction for {_path(item)}')
        labels = decode(read_file(path), path, 'unchanged', 'pillow')
        if labels.ndim != 2:
            raise UserError(f'{path}: shape {labels.shape}; expected a label map (H, W)')
        first = int(reduce_zero_label)
        labels = labels.astype(np.int64) - first
        hint = f'reduce_zero_label of the dataset is {reduce_zero_label}'
        check_labels(labels, num_classes, None, path, first_label=first, hint=hint)
        return labels

    return read


def _path(item: dict[str, Any]) -> str:
    return str(item['data_samples'].get('img_path', 'image without a name'))


def _preprocess(cfg: Config, item: dict[str, Any], training: bool) -> tuple[torch.Tensor, str, dict[str, Any]]:
    """Apply the data preprocessor of the model to a sample, but for the normalisation.

    Returns:
        (C, H, W) image, the order of its channels, and the sample.
    """
    settings = data_preprocessor(cfg)
    if not settings:
        return item['inputs'], loaded_channel_order(cfg), item
    before = item['inputs'].shape[1:]
    preprocessor = MODELS.build(settings)
    data = preprocessor(pseudo_collate([item]), training)
    image = data['inputs'][0]
    if hasattr(preprocessor, 'mean'):  # it normalises
        image = image * preprocessor.std + preprocessor.mean
    if not training:
        # Some models pad images in testing; annotations are not padded.
        image = image[:, : before[0], : before[1]]
    return image, 'rgb' if settings.get('bgr_to_rgb') else 'bgr', dict(data_samples=data['data_samples'][0])


def _picture(image: torch.Tensor, order: str, name: str, side: int) -> np.ndarray:
    try:
        return fit(to_rgb(image.permute(1, 2, 0).numpy(), order), side)
    except ValueError as error:
        raise UserError(f'{name}: {error}') from None
