"""Training with a share of the state in each process equals training with all of it."""

import os
import pickle
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from evil import Evil
from mmengine.hooks import Hook
from mmengine.runner import CheckpointLoader
from mmseg.registry import HOOKS, MODELS
from processes import run_processes
from test_processes import assert_same_weights, train
from tiny_training import training_config, write_dataset
from torch.distributed.checkpoint.state_dict_saver import save

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


def train_and_spoil(path: str) -> None:
    """Train, and make weights in the share of process 1 NaN after the first iteration."""

    @HOOKS.register_module(force=True)
    class Spoil(Hook):
        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            if runner.rank == 1:
                runner.model.backbone.layers[0].ln1.weight.data.to_local().fill_(float('nan'))

    train(path)


def test_weights_that_are_not_finite_are_not_saved(data: Path, tmp_path: Path) -> None:
    """All processes end, although one of them has none in its share."""
    hooks = [dict(type='FiniteLossHook'), dict(type='Spoil', priority=0)]
    recipe = {**RECIPE, 'runner_type': 'ShardedRunner', 'custom_hooks': hooks, 'optim_wrapper.accumulative_counts': 1}
    recipe['default_hooks.checkpoint'] = RECIPE['default_hooks.checkpoint'] | dict(interval=1)
    path = training_config(data, tmp_path / 'run', 2, **recipe)
    with pytest.raises(RuntimeError, match=r'iteration 1: backbone\.layers\.0\.ln1\.weight has values that'):
        run_processes(train_and_spoil, 2, path)
    assert not list((tmp_path / 'run').glob('iter*'))


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


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return a sharded checkpoint of two tensors."""
    folder = tmp_path / 'iter_1.pth'
    save({'model.a': torch.ones(2, 3), 'model.b': torch.zeros(4)}, checkpoint_id=folder, no_dist=True)
    torch.save(dict(meta=dict(iter=1, param_groups=[], state_dict_metadata={})), folder / 'meta.pth')
    return folder


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    metadata = SafeReader(folder).read_metadata()
    change(metadata)
    (folder / '.metadata').write_bytes(pickle.dumps(metadata))


def test_the_index_executes_nothing(small: Path, tmp_path: Path) -> None:
    assert torch.equal(consolidate(str(small))['state_dict']['a'], torch.ones(2, 3))
    for content, reason in (
        (pickle.dumps(sys.exit), r'it refers to sys\.exit'),
        (pickle.dumps(Evil(tmp_path / 'canary')), r'it refers to posix\.mkdir'),
        (b'(' + b'0' * 20, ''),
        (b'', ''),
    ):
        (small / '.metadata').write_bytes(content)
        with pytest.raises(UserError, match=rf'\.metadata: not the index of a sharded checkpoint: .*{reason}'):
            consolidate(str(small))
    assert not (tmp_path / 'canary').exists()


def other_file(name: str) -> Callable[[Any], None]:
    def change(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = name

    return change


def long(metadata: Any) -> None:
    next(iter(metadata.storage_data.values())).length = 10**12


def compressed(metadata: Any) -> None:
    next(iter(metadata.storage_data.values())).transform_descriptors = ['zstd']


def pickled(metadata: Any) -> None:
    metadata.state_dict_metadata['model.a'] = None


def outside(metadata: Any) -> None:
    metadata.state_dict_metadata['model.a'].chunks[0].offsets = torch.Size([2, 0])


def missing(metadata: Any) -> None:
    metadata.state_dict_metadata['model.a'].chunks.clear()


def unknown(metadata: Any) -> None:
    metadata.storage_data.clear()


def huge(metadata: Any) -> None:
    metadata.state_dict_metadata['model.a'].size = torch.Size([10**9, 10**6])
    metadata.state_dict_metadata['model.a'].chunks[0].sizes = torch.Size([10**9, 10**6])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (other_file('../other'), r"refers to '\.\./other'; expected the name of a file beside it"),
        (other_file('/etc/passwd'), "refers to '/etc/passwd'; expected"),
        (other_file('missing.distcp'), "refers to 'missing.distcp'; expected"),
        (other_file('pipe'), "refers to 'pipe'; expected"),
        (huge, r'its tensors have 4,000,000,000,000,0\d\d bytes, the files '),
        (long, r'refers to bytes .* of __0_0\.distcp, which has '),
        (compressed, 'is compressed'),
        (pickled, r'model\.a is no tensor'),
        (outside, r'the parts of model\.a do not make up its shape \(2, 3\)'),
        (missing, r'the parts of model\.a do not make up'),
        (unknown, 'bytes'),
    ],
)
def test_an_index_that_cannot_be_right(small: Path, change: Callable[[Any], None], message: str) -> None:
    os.mkfifo(small / 'pipe')
    (small.parent / 'other').touch()
    edit(small, change)
    with pytest.raises(UserError, match=message) as error:
        consolidate(str(small))
    assert '\n' not in str(error.value)


def test_code_in_the_rest_of_a_sharded_checkpoint(small: Path, tmp_path: Path) -> None:
    torch.save(dict(meta=Evil(tmp_path / 'canary')), small / 'meta.pth')
    with pytest.raises(UserError, match=r'meta\.pth: refused, it holds more than tensors'):
        consolidate(str(small))
    (shard,) = small.glob('*.distcp')
    torch.save(dict(meta=dict(param_groups=[], state_dict_metadata={})), small / 'meta.pth')
    size = shard.stat().st_size
    torch.save([Evil(tmp_path / 'canary'), bytes(size)], shard)

    def whole_file(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            info.offset, info.length = 0, shard.stat().st_size

    edit(small, whole_file)
    with pytest.raises(UserError, match='cannot read the sharded checkpoint'):
        consolidate(str(small))
    assert not (tmp_path / 'canary').exists()


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'found no meta\.pth'):
        consolidate(str(tmp_path))
    cfg = engine.load_config(training_config(tmp_path, tmp_path / 'run', 1))
    with pytest.raises(UserError, match=r'--shard needs several processes: start them with tools/dist_train\.sh'):
        engine.enable_sharding(cfg)
