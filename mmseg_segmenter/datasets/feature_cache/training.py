"""Train from cached features, and refuse those of another backbone or pipeline."""

from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import nn

from ...engine.precision import segmentor_of
from ...errors import UserError
from .key import check_config, config_key, read_index, weights_key


def use_cached_features(cfg: Config, root: str) -> None:
    """Let a training read features in place of images. Validation is as before.

    Args:
        cfg: whole config; the dataset of ``train_dataloader``, the type of the data preprocessor and ``custom_hooks``
            are changed.
        root: folder that ``tools/cache_features.py`` has written with the same config.

    Raises:
        UserError: the features were computed with another config.
    """
    check_config(root, read_index(root)['config'], config_key(cfg))
    cfg.train_dataloader.dataset = dict(type='CachedFeatures', root=root)
    cfg.model.data_preprocessor.type = 'FeatureDataPreprocessor'
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='CachedFeaturesHook')]


def check_frozen(backbone: nn.Module) -> None:
    """Find out whether a backbone stays as it is in a training.

    Raises:
        UserError: it has trainable parameters; names one.
    """
    name = next((name for name, parameter in backbone.named_parameters() if parameter.requires_grad), None)
    if name is not None:
        raise UserError(
            f'cached features need a frozen backbone, and backbone.{name} is trained; set '
            'model.backbone.frozen_exclude=[]'
        )


@HOOKS.register_module()
class CachedFeaturesHook(Hook):
    """Compare, before a training, the weights of the backbone with those that computed the features."""

    def before_train(self, runner: Runner) -> None:
        """Check the backbone, once it has its weights.

        Raises:
            UserError: it is not frozen, or has other weights.
        """
        dataset: Any = runner.train_loop.dataloader.dataset
        while 'index' not in vars(dataset):  # in a wrapper such as SeededDataset
            dataset = dataset.dataset
        backbone = segmentor_of(runner.model).backbone
        check_frozen(backbone)
        if weights_key(backbone) != dataset.index['weights']:
            raise UserError(
                f'the features in {dataset.root} are those of other weights of the backbone; start from the same '
                'model.backbone.init_cfg or load_from, or compute features of these with tools/cache_features.py'
            )
