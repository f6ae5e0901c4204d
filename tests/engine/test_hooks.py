from types import SimpleNamespace

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from mmseg.models import SegTTAModel
from torch import distributed, nn

from mmseg_segmenter.engine import RequireAllWeightsHook


class Tiny(nn.Linear):
    """What a test-time augmentation accepts as a segmentor."""

    def test_step(self, data):
        return data


@pytest.fixture
def process_group(tmp_path):
    distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures('process_group')
@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('tta', [False, True])
def test_incomplete_checkpoint_stops_a_test(several, tta):
    model = SegTTAModel(Tiny(2, 1)) if tta else Tiny(2, 1)
    runner = SimpleNamespace(model=MMDistributedDataParallel(model) if several else model)
    hook = RequireAllWeightsHook()
    hook.before_run(runner)
    _load_checkpoint_to_model(model, dict(state_dict=dict(weight=torch.ones(1, 2))))
    with pytest.raises(ValueError, match='1 tensors are missing or of another shape, the first bias'):
        hook.before_test(runner)
    _load_checkpoint_to_model(model, dict(state_dict=dict(weight=torch.ones(1, 2), bias=torch.ones(1))))
    hook.before_test(runner)
