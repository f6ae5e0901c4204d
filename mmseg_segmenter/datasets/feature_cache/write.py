"""Compute the features of all variants of a dataset, and write one file for each."""

import json
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import load_checkpoint
from mmseg.registry import DATASETS, MODELS
from mmseg.utils import register_all_modules
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ...errors import UserError
from ...files import check_folder, replace_file, write_checkpoint, write_text
from .key import INDEX, check_config, config_key, read_index, weights_key
from .samples import FixedVariants, missing_samples, sample_content, sample_path
from .training import check_frozen


def cache_features(
    cfg: Config,
    root: str,
    variants: int = 1,
    seed: int = 0,
    half: bool = False,
    checkpoint: str | None = None,
    report: Callable[[str], Any] = print,
) -> None:
    """Compute the features of a training set and write them to a folder. What is there already is kept.

    Args:
        cfg: whole config, for training.
        root: folder; it is made.
        variants: augmentations of each image.
        seed: of the augmentations.
        half: write float16 in place of float32.
        checkpoint: weights of the model; default: those that a training starts from.
        report: called with lines on size and progress.

    Raises:
        UserError: the backbone is not frozen; or the folder has features of another backbone, pipeline, number of
            variants, seed or precision; or the disk is too small.
        FileAccessError: cannot write there.
    """
    if cfg.model.data_preprocessor.get('batch_augments'):
        raise UserError('model.data_preprocessor.batch_augments is random for each batch; features cannot be cached')
    check_folder(root)
    register_all_modules(init_default_scope=True)
    MMLogger.get_instance('mmengine').setLevel('WARNING')  # it lists every tensor that is initialised
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, map_location='cpu', logger='silent')
    check_frozen(model.backbone)
    model.to(get_device()).train()
    dataset = FixedVariants(DATASETS.build(cfg.train_dataloader.dataset), variants, seed)
    index = dict(
        config=config_key(cfg),
        weights=weights_key(model.backbone),
        samples=len(dataset),
        variants=variants,
        seed=seed,
        half=half,
        metainfo=json.loads(json.dumps(dataset.metainfo, default=str)),
    )
    if os.path.isfile(os.path.join(root, INDEX)):
        _check_same(root, read_index(root), index)
    todo = missing_samples(root, len(dataset))
    if not todo:
        report(f'{root} has all {len(dataset)} samples')
        return
    samples: Any = dataset  # not torch's class, only its interface
    loader: DataLoader[Any] = DataLoader(
        Subset(samples, todo),
        batch_size=cfg.train_dataloader.batch_size,
        num_workers=cfg.train_dataloader.get('num_workers', 0),
        collate_fn=pseudo_collate,
    )
    done, start = 0, time.monotonic()
    for data in loader:
        for content in _features(model, data, half):
            if not done:
                _check_space(root, content, len(todo), len(dataset), variants, report)
                text = json.dumps(index, indent=1)
                replace_file(os.path.join(root, INDEX), partial(write_text, text=text))
            replace_file(sample_path(root, todo[done]), partial(_write, content))
            done += 1
        if time.monotonic() - start > 10 or done == len(todo):
            report(f'{done} of {len(todo)} samples')
            start = time.monotonic()


def _write(content: dict[str, Any], path: str) -> None:
    write_checkpoint(path, content)


@torch.no_grad()
def _features(model: Any, data: dict[str, Any], half: bool) -> list[dict[str, Any]]:
    """Return the contents of the files of a batch."""
    batch = model.data_preprocessor(data, True)
    outputs = model.backbone(batch['inputs'])
    if not all(isinstance(output, Tensor) for output in outputs):
        raise UserError('the backbone returns more than feature maps (output_cls_token); features cannot be cached')
    return [
        sample_content([output[i] for output in outputs], sample, half)
        for i, sample in enumerate(batch['data_samples'])
    ]


def _check_same(root: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    check_config(root, found['config'], expected['config'])
    if found['weights'] != expected['weights']:
        raise UserError(f'the features in {root} are those of other weights of the backbone; use another folder')
    for name in ('variants', 'seed', 'half', 'samples'):
        if found[name] != expected[name]:
            raise UserError(
                f'the features in {root} have {name}={found[name]}, not {expected[name]}; use another folder'
            )


def _check_space(
    root: str, content: dict[str, Any], todo: int, total: int, variants: int, report: Callable[[str], Any]
) -> None:
    tensors = [*content['features'], content['labels']]
    each = sum(tensor.numel() * tensor.element_size() for tensor in tensors) + 2000  # the format of the file
    os.makedirs(root, exist_ok=True)
    free = shutil.disk_usage(root).free
    report(
        f'{total} samples ({total // variants} images x {variants}) of {each / 1e6:.2f} MB, '
        f'{total * each / 1e9:.2f} GB in all; {todo} to compute, {free / 1e9:.2f} GB free'
    )
    if todo * each > free:
        raise UserError(
            f'{root} has {free / 1e9:.2f} GB free, and the features take {todo * each / 1e9:.2f} GB; use fewer '
            'variants, --half or another disk'
        )
