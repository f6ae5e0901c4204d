"""What the released OpenMMLab stack needs on current torch.

Importing this module applies the entries below, once. Each says which release
needs it and when it can go.
"""

import importlib.machinery
import importlib.util
import pickle
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .errors import MissingPackageError

_INSTALL = "pip install 'mmcv-lite>=2.0.0,<2.2'"


def check_installation() -> None:
    """Say in one sentence what to install, instead of a chain of tracebacks.

    Raises:
        ImportError: mmcv is missing, or setuptools no longer has
            pkg_resources.
    """
    if importlib.util.find_spec('mmcv') is None:
        raise MissingPackageError(f'mmcv is not installed: run {_INSTALL} (or mmcv, to compile its CUDA operators)')
    # mmengine 0.10 imports pkg_resources for `_base_ = 'mmseg::...'`; setuptools 82 removed it. Can go with an
    # mmengine that uses importlib.metadata.
    if importlib.util.find_spec('pkg_resources') is None:
        raise MissingPackageError(
            "mmengine needs pkg_resources, which setuptools 82 removed: run pip install 'setuptools<82'"
        )


class _MissingOps(types.ModuleType):
    """Stands in for ``mmcv._ext``: any operator exists, calling one raises."""

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
    """Let ``mmseg`` import with ``mmcv-lite``.

    mmseg 1.2.2 imports ``mmcv.ops`` (point sampling, focal loss, ...) with its
    models, and that loads the compiled ``mmcv._ext``, which mmcv-lite does not
    have and Segmenter does not need. With a compiled mmcv nothing is touched.
    Can go when mmseg imports its operators where it uses them.
    """
    if 'mmcv._ext' in sys.modules or importlib.util.find_spec('mmcv._ext') is not None:
        return
    placeholder = _MissingOps('mmcv._ext')
    # Without a loader mmcv.utils.check_ops_exist() still answers False.
    placeholder.__spec__ = importlib.machinery.ModuleSpec('mmcv._ext', loader=None)
    sys.modules['mmcv._ext'] = placeholder


def import_mmseg() -> None:
    """Import mmseg, whose own range check decides about mmcv and mmengine.

    Raises:
        ImportError: mmcv or mmengine is outside mmseg's range.
    """
    with warnings.catch_warnings():
        # mmcv-lite tells every user that it lacks an operator.
        warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')
        try:
            import mmseg
        except AssertionError as error:
            raise MissingPackageError(f'{error} To get a version that works: run {_INSTALL}') from None
        import mmseg.models  # noqa: F401


def silence_deprecations() -> None:
    """Drop warnings about code of the stack that a user cannot change.

    mmengine 0.10 imports pkg_resources whenever a config inherits from mmseg;
    mmseg 1.2.2 builds every head's loss with its own deprecated function.
    """
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    warnings.filterwarnings('ignore', message='``build_loss`` would be deprecated soon')


def _statistic(cls: type, name: str) -> Any:
    """Stands in for ``getattr`` while unpickling: a statistic of HistoryBuffer.

    That is the one thing mmengine's checkpoints ask ``getattr`` for.
    """
    from mmengine.logging import HistoryBuffer

    if cls is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'Unsupported global: getattr({cls!r}, {name!r})')
    return getattr(HistoryBuffer, name)


def _checkpoint_globals() -> list[Any]:
    """What a checkpoint of mmengine's Runner holds besides plain values.

    Log histories, the numpy arrays in them and numpy scalars; nothing else.
    """
    from mmengine.logging import HistoryBuffer

    # numpy 2 renamed the module; a file carries the name of the numpy that wrote it
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
    """Make mmengine load its own checkpoints under ``weights_only=True``."""
    torch.serialization.add_safe_globals(_checkpoint_globals())


check_installation()
provide_ops_placeholder()
silence_deprecations()
import_mmseg()
allow_mmengine_checkpoints()
