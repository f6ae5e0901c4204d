"""Make the released OpenMMLab packages work with current torch, numpy and setuptools.

Importing this module applies each function below once. Its docstring says which release needs it, and which release
makes it superfluous.
"""

import importlib.machinery
import importlib.util
import logging
import pickle
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log

from .errors import MissingPackageError

_INSTALL = "pip install 'mmcv-lite>=2.0.0,<2.2'"


def check_installation() -> None:
    """Raise an error that says what to install if mmcv or pkg_resources is missing.

    Needed by mmengine 0.10, which imports pkg_resources for ``_base_ = 'mmseg::...'``, and by setuptools 82, which
    removed it. Ends with an mmengine that uses ``importlib.metadata``. mmcv comes in two packages, mmcv-lite and mmcv,
    and therefore cannot be a plain dependency; this ends with mmseg.

    Raises:
        ImportError: mmcv or pkg_resources is missing.
    """
    if importlib.util.find_spec('mmcv') is None:
        raise MissingPackageError(f'mmcv is not installed: run {_INSTALL} (or mmcv, to compile its CUDA operators)')
    if importlib.util.find_spec('pkg_resources') is None:
        raise MissingPackageError(
            "mmengine needs pkg_resources, which setuptools 82 removed: run pip install 'setuptools<82'"
        )


class _MissingOps(types.ModuleType):
    """Stand in for ``mmcv._ext``: every operator exists, and raises when it is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> Any:
            raise MissingPackageError(
                f'mmcv operator {name!r} needs the compiled mmcv, but mmcv-lite is installed: '
                "run pip uninstall mmcv-lite, then pip install 'mmcv>=2.0.0,<2.2'"
            )

        return missing


def provide_ops_placeholder() -> None:
    """Let ``mmseg.models`` be imported with mmcv-lite.

    Needed by mmseg 1.2.2, which imports ``mmcv.ops`` (point sampling, focal loss, ...) with its models. That loads the
    compiled ``mmcv._ext``, which mmcv-lite does not have and Segmenter does not need. A compiled mmcv is left alone.
    Ends with an mmseg that imports its operators where it uses them.

    Without it, ``import mmseg.apis`` and ``import mmseg.models`` raise ``ModuleNotFoundError: mmcv._ext``. They work
    once ``mmseg_segmenter`` is imported, before them or after they failed.
    """
    if 'mmcv._ext' in sys.modules or importlib.util.find_spec('mmcv._ext') is not None:
        return
    placeholder = _MissingOps('mmcv._ext')
    # Without a loader mmcv.utils.check_ops_exist() still answers False.
    placeholder.__spec__ = importlib.machinery.ModuleSpec('mmcv._ext', loader=None)
    sys.modules['mmcv._ext'] = placeholder


@contextmanager
def hidden_if_broken(package: str) -> Iterator[None]:
    """Let an optional package count as not installed if it is installed but cannot be imported.

    Needed by mmseg 1.2.2 for timm and by mmengine 0.10 for torchvision: both try to import them and expect nothing
    worse than ``ImportError``. A torchvision that does not match torch raises ``RuntimeError: operator
    torchvision::nms does not exist``, and so does timm, which imports it. Ends with releases that expect this.

    The package is hidden within the context only: after it, importing the package raises its own error.

    Args:
        package: name of the package.
    """
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        pass  # not installed
    except Exception as error:
        reason = (str(error).splitlines() or [''])[0]
        print_log(
            f'{package} cannot be imported and is treated as not installed ({type(error).__name__}: {reason}); '
            'install a torchvision that matches torch',
            'current',
            logging.WARNING,
        )
        sys.modules[package] = None  # type: ignore[assignment]  # what makes Python raise ModuleNotFoundError
    try:
        yield
    finally:
        if package in sys.modules and sys.modules[package] is None:
            del sys.modules[package]


def import_mmseg() -> None:
    """Import mmseg, and leave it to its own check whether the versions of mmcv and mmengine fit.

    Needed by mmseg 1.2.2, whose check is an ``AssertionError`` that does not say what to install. Ends with an mmseg
    that declares the range of mmcv as a dependency.

    Raises:
        ImportError: mmcv or mmengine is outside mmseg's range.
    """
    with hidden_if_broken('timm'), warnings.catch_warnings():
        # mmcv-lite warns every user that it lacks an operator.
        warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')
        try:
            import mmseg
        except AssertionError as error:
            raise MissingPackageError(f'{error} To get a version that works: run {_INSTALL}') from None
        import mmseg.models  # noqa: F401


def silence_deprecations() -> None:
    """Hide warnings about code of the OpenMMLab packages that a user cannot change.

    Needed by mmengine 0.10, which imports pkg_resources whenever a config inherits from mmseg, and by mmseg 1.2.2,
    which builds the loss of every head with its own deprecated function. Ends with releases that do neither.
    """
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    warnings.filterwarnings('ignore', message='``build_loss`` would be deprecated soon')


def _statistic(cls: type, name: str) -> Any:
    """Return a statistic of ``HistoryBuffer``, all that mmengine's checkpoints need of ``getattr``.

    Raises:
        UnpicklingError: any other class or attribute.
    """
    from mmengine.logging import HistoryBuffer

    if cls is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'Unsupported global: getattr({cls!r}, {name!r})')
    return getattr(HistoryBuffer, name)


def _checkpoint_globals() -> list[Any]:
    """Return what a checkpoint of mmengine's ``Runner`` holds besides tensors and plain values.

    These are log histories, the numpy arrays in them, and numpy scalars.
    """
    from mmengine.logging import HistoryBuffer

    # numpy 2 renamed the module. A file has the name that its numpy used.
    core = getattr(np, '_core', None) or np.core
    rebuild = [core.multiarray._reconstruct, core.multiarray.scalar]
    numpy_types = {type(np.dtype(code)) for code in '?' + np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + 'SU'}
    return [
        HistoryBuffer,
        (_statistic, 'builtins.getattr'),
        *((f, f'numpy.{name}.multiarray.{f.__name__}') for f in rebuild for name in ('core', '_core')),
        np.ndarray,
        np.dtype,
        *numpy_types,
    ]


def allow_mmengine_checkpoints() -> None:
    """Let mmengine's own checkpoints be loaded with ``weights_only=True``, the default from torch 2.6 on.

    Needed by mmengine 0.10. Ends with an mmengine that registers its classes itself.
    """
    torch.serialization.add_safe_globals(_checkpoint_globals())


check_installation()
provide_ops_placeholder()
silence_deprecations()
import_mmseg()
allow_mmengine_checkpoints()
