"""Training with a share of the state in each process equals training with all of it."""

import pickle
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner import CheckpointLoader
from mmseg.registry import MODELS
from processes import run_processes
from test_processes import assert_same_weights, train
from tiny_training import training_config, write_dataset

from mmseg_segmenter import engine
from mmseg_segmenter.engine.sharding import SafeReader, consolidate
from mmseg_segmenter.errors import UserError

# What has to work together with sharding.
RECIPE: dict[str, Any] = {
    'model.backbone.num_layers': 3,
    'optim_wrapper.optimizer': dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.01),
    'optim_wrapper.constructor': 'ViTLayerDecayOptimWrapperConstructor',
    'optim_wrapper.paramwise_cfg': dict(decay_rate=0.75),
    'optim_wrapper.clip_grad': dict(max_norm=1.0),
    'optim_wrapper.accumulative_counts': 2,
    'default_hooks.checkpoint': dict(_delete_=True, type='SegmenterCheckpointHook', by_epoch=False, interval=10),
    'train_cfg.max_iters': 20,
    'train_cfg.val_interval': 10,
}


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the work dir of an unsharded training, which starts from ``start/iter_2.pth`` beside it."""
    folder = tmp_path_factory.mktemp('whole')
    start = training_config(data, folder / 'start', 4, **{**RECIPE, 'train_cfg.max_iters': 2})
    run_processes(train, 1, start)
    run_processes(
        train, 1, training_config(data, folder / 'whole', 4, **RECIPE, load_from=str(folder / 'start' / 'iter_2.pth'))
    )
    return folder / 'whole'


@pytest.fixture(scope='module')
def sharded(data: Path, whole: Path) -> Path:
    """Return the work dir of the same training in two processes that share the state."""
    start = str(whole.parent / 'start' / 'iter_2.pth')
    path = training_config(data, whole.parent / 'sharded', 2, **RECIPE, runner_type='ShardedRunner', load_from=start)
    run_processes(train, 2, path)
    return whole.parent / 'sharded'


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = consolidate(str(path)) if path.is_dir() else torch.load(path, weights_only=True)
    state: dict[str, torch.Tensor] = checkpoint['state_dict']
    return state


def test_two_processes_equal_one(whole: Path, sharded: Path) -> None:
    """With decay by layer, clipped and accumulated gradients, and a validation in between."""
    assert_same_weights(weights_of(sharded / 'iter_20.pth'), weights_of(whole / 'iter_20.pth'), 1e-9)
    assert sorted(path.name for path in sharded.glob('iter*')) == ['iter_10.pth', 'iter_20.pth']


@pytest.mark.parametrize('processes', [1, pytest.param(4, marks=pytest.mark.slow)])
def test_resume_with_another_number_of_processes(
    processes: int, data: Path, whole: Path, sharded: Path, tmp_path: Path
) -> None:
    """The state of model and optimizer is shared out anew."""
    shutil.copytree(sharded / 'iter_10.pth', tmp_path / 'run' / 'iter_10.pth')
    path = training_config(data, tmp_path / 'run', 4 // processes, **RECIPE, runner_type='ShardedRunner', resume=True)
    run_processes(train, processes, path)
    assert_same_weights(weights_of(tmp_path / 'run' / 'iter_20.pth'), weights_of(whole / 'iter_20.pth'), 1e-9)


def test_one_file(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sharded2mmseg.py writes what load_from and test.py take; given the folder, they say so."""
    folder, file = str(sharded / 'iter_20.pth'), str(tmp_path / 'model.pth')
    with pytest.raises(UserError, match=r'is a folder, expected a file; .*sharded2mmseg\.py makes one'):
        engine.find_checkpoint(folder)
    monkeypatch.setattr(sys, 'argv', ['sharded2mmseg.py', folder, file])
    tool = Path(__file__).parents[2] / 'tools' / 'model_converters' / 'sharded2mmseg.py'
    runpy.run_path(str(tool), run_name='__main__')
    model = MODELS.build(engine.load_config(str(sharded / 'config.py')).model).double()
    checkpoint = CheckpointLoader.load_checkpoint(file)
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    assert_same_weights(model.state_dict(), weights_of(sharded / 'iter_20.pth'), 1e-12)
    assert checkpoint['meta']['iter'] == 20 and len(checkpoint['meta']['dataset_meta']['classes']) == 5


def shares(path: str) -> tuple[int, int]:
    """Return the bytes of parameters and optimizer state in this process, and the number of parameters."""
    runners = []

    class Keeping(engine.ShardedRunner):
        def train(self) -> Any:
            runners.append(self)
            return super().train()

    engine.ShardedRunner.from_cfg = classmethod(lambda _, cfg: super(engine.ShardedRunner, Keeping).from_cfg(cfg))
    cfg = engine.load_config(path, launcher='pytorch')
    cfg.runner_type = 'ShardedRunner'
    engine.run(cfg, 'train')
    (runner,) = runners
    params = list(runner.model.parameters())
    state = runner.optim_wrapper.optimizer.state
    kept = [*params, *(value for one in state.values() for value in one.values() if value.ndim)]
    return sum(one.to_local().numel() * one.element_size() for one in kept), sum(one.numel() for one in params)


@pytest.mark.slow
def test_memory_and_mixed_precision(data: Path, tmp_path: Path) -> None:
    """Each of four processes keeps a quarter, in float32, also if it computes in bfloat16."""
    recipe = {**RECIPE, 'train_cfg.max_iters': 2, 'model.backbone.embed_dims': 64, 'model.decode_head.in_channels': 64}
    mixed = dict(sharding=dict(param_dtype='bfloat16', reduce_dtype='float32'))
    path = training_config(data, tmp_path / 'run', 1, **recipe, **mixed)
    for found, parameters in run_processes(shares, 4, path):
        assert found == pytest.approx(parameters * 4 * 3 / 4, rel=0.05)  # weights and two moments


def test_the_index_executes_nothing(sharded: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'iter_10.pth'
    shutil.copytree(sharded / 'iter_10.pth', folder)
    (folder / '.metadata').write_bytes(pickle.dumps(sys.exit))
    with pytest.raises(UserError, match=r'\.metadata: not the index .*: it refers to sys\.exit'):
        SafeReader(folder).read_metadata()


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'found no meta\.pth'):
        consolidate(str(tmp_path))
    cfg = engine.load_config(training_config(tmp_path, tmp_path / 'run', 1))
    with pytest.raises(UserError, match=r'--shard needs several processes: start them with tools/dist_train\.sh'):
        engine.enable_sharding(cfg)
