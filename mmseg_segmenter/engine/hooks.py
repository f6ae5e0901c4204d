"""Hooks of the runner."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ..models.load_report import check_all_loaded, report_loading
from .precision import segmentor_of


@HOOKS.register_module()
class RequireAllWeightsHook(Hook):
    """Stop a test whose checkpoint does not fill the model.

    Its scores would be those of random weights. The hook works in several processes and with test-time augmentation.
    """

    def before_run(self, runner: Runner) -> None:
        """Have models of any class note what they take of a checkpoint."""
        report_loading(segmentor_of(runner.model))

    def before_test(self, runner: Runner) -> None:
        """Check what the model took of the last checkpoint.

        Raises:
            UserError: as :func:`~mmseg_segmenter.models.load_report.check_all_loaded`.
        """
        check_all_loaded(segmentor_of(runner.model))
