"""Evaluate a model whose network another runtime computes."""

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ..engine.precision import segmentor_of
from ..errors import UserError
from .runtimes import check_precision, load_network


@HOOKS.register_module()
class RuntimeHook(Hook):
    """Load the network of a tested model into another runtime, once its weights are there.

    Args: as :func:`load_network`.
    """

    priority = 'LOW'  # after the check of the weights

    def __init__(self, runtime: str, precision: str = 'fp32', file: str | None = None) -> None:
        self._runtime, self._precision, self._file = runtime, precision, file

    def before_test(self, runner: Runner) -> None:
        """Replace the network.

        Raises:
            UserError: as :func:`load_network`.
        """
        model = segmentor_of(runner.model).eval()
        model.head_logits = load_network(model, self._runtime, self._precision, self._file)


def enable_runtime(cfg: Config, runtime: str, precision: str | None = None, file: str | None = None) -> None:
    """Test with another runtime than torch.

    Args:
        cfg: whole config; ``custom_hooks`` is changed, and mmseg's ``EncoderDecoder`` becomes a ``Segmenter``.
        runtime: as :func:`load_network`.
        precision: as :func:`load_network`; default float32.
        file: as :func:`load_network`.

    Raises:
        UserError: the runtime does not have the precision, or the test would run on a GPU.
    """
    check_precision(runtime, precision or 'fp32')
    if get_device() != 'cpu':
        raise UserError(f"--runtime {runtime} runs on the CPU, found a GPU; set CUDA_VISIBLE_DEVICES=''")
    if cfg.model.get('type') == 'EncoderDecoder':
        cfg.model.type = 'Segmenter'
    hook = dict(type='RuntimeHook', runtime=runtime, precision=precision or 'fp32', file=file)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
