"""The command lines, as a user types them, on a tiny dataset and model."""

import contextlib
import importlib
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mmseg
import pytest
import torch
from evil import Evil
from forked_tool import run_tool

from mmseg_segmenter.datasets.shapes import make_shapes
from mmseg_segmenter.engine.precision import cpu_has_bfloat16

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / 'configs' / 'segmenter' / 'segmenter_demo_1xb16-1200_shapes.py'
MMSEG_TRAIN = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py'


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The demo config with a model and schedule that take seconds."""
    root = tmp_path_factory.mktemp('shapes')
    make_shapes(str(root / 'data'), num_images=10, size=(32, 40))
    path = root / 'tiny.py'
    path.write_text(f"""
_base_ = '{CONFIG}'
data_root = '{root / 'data'}'
model = dict(
    data_preprocessor=dict(size=(24, 24)),
    backbone=dict(img_size=(24, 24), embed_dims=16, num_layers=1, num_heads=2),
    decode_head=dict(in_channels=16, embed_dims=16, num_layers=1, num_heads=2),
    auxiliary_head=dict(in_channels=16),
    test_cfg=dict(crop_size=(24, 24), stride=(12, 12)),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomCrop', crop_size=(24, 24)),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,
                        dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=6, val_interval=3)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=3))
env_cfg = dict(cudnn_benchmark=False)
""")
    return path


def run(*args, check=True, **env):
    """In a folder of its own: mmseg leaves some behind where it runs. A tool runs in a fork of this process."""
    env |= {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    command = [str(a) for a in args]
    with tempfile.TemporaryDirectory() as folder:
        if command[0].endswith('.py'):
            result = run_tool(*command, cwd=folder, env=env)
        else:
            result = subprocess.run(
                command, capture_output=True, text=True, env=os.environ | env, cwd=folder, stdin=subprocess.DEVNULL
            )
    output = result.stdout + result.stderr
    assert not check or result.returncode == 0, output[-3000:]
    return output if check else (result.returncode, output)


def scores(output, split):
    return re.findall(rf'Iter\({split}\).*?(aAcc: [\d.]+ +mIoU: [\d.]+ +mAcc: [\d.]+)', output)


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('run')
    return work_dir, run(sys.executable, ROOT / 'tools/train.py', config, '--work-dir', work_dir)


def test_train_and_test_give_the_same_score(config, trained, tmp_path):
    work_dir, output = trained
    assert len(scores(output, 'val')) == 2
    tested = run(
        sys.executable, ROOT / 'tools/test.py', config, work_dir / 'iter_6.pth', '--work-dir', tmp_path / 'test',
        '--show-dir', tmp_path / 'pictures', '--out', tmp_path / 'labels',
    )  # fmt: skip
    assert scores(tested, 'test') == scores(output, 'val')[-1:]
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 2
    assert len(list((tmp_path / 'labels').glob('*.png'))) == 2
    names = {path.stem for path in (config.parent / 'data' / 'images' / 'validation').iterdir()}
    assert {path.name for path in (tmp_path / 'pictures').iterdir()} == {f'{name}.png' for name in names}
    assert {path.name for path in work_dir.glob('*/vis_data/vis_image/*')} == {
        f'val_{name}_{step}.png' for name in names for step in (3, 6)
    }
    assert 'Warning' not in tested


def test_tta(config, trained, tmp_path):
    output = run(
        ROOT / 'tools/test.py', config, trained[0] / 'iter_6.pth', '--tta', '--work-dir', tmp_path,
        '--show-dir', tmp_path / 'pictures',
    )  # fmt: skip
    assert len(scores(output, 'test')) == 1
    assert len(list((tmp_path / 'pictures').iterdir())) == 2


@pytest.mark.skipif(not cpu_has_bfloat16(), reason='needs a CPU with bfloat16')
def test_mixed_precision(config, trained, tmp_path):
    output = run(ROOT / 'tools/train.py', config, '--work-dir', tmp_path, '--amp')
    assert len(scores(output, 'val')) == 2
    assert torch.load(tmp_path / 'iter_6.pth')['state_dict']['backbone.pos_embed'].dtype == torch.float32
    tested = run(ROOT / 'tools/test.py', config, trained[0] / 'iter_6.pth', '--amp', '--work-dir', tmp_path)
    assert len(scores(tested, 'test')) == 1


def test_another_runtime(config, trained, tmp_path):
    """float32 has the scores of torch."""
    pytest.importorskip('onnxruntime')
    pytest.importorskip('openvino')
    tested = run(
        ROOT / 'tools/test.py', config, trained[0] / 'iter_6.pth', '--runtime', 'openvino',
        '--work-dir', tmp_path,
    )  # fmt: skip
    assert scores(tested, 'test') == scores(trained[1], 'val')[-1:]


def test_killed_training_resumes(config, tmp_path):
    command = [str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(tmp_path)]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''}
    options = ['--cfg-options', 'train_cfg.max_iters=100000']
    with open(tmp_path / 'log.txt', 'w') as log:
        process = subprocess.Popen(
            [sys.executable, *command, *options], stdout=log, stderr=log, env=env, stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while not (tmp_path / 'last_checkpoint').exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = Path((tmp_path / 'last_checkpoint').read_text())
    done = int(last.stem.removeprefix('iter_'))
    momenta = torch.load(last, weights_only=True)['optimizer']['state']
    assert momenta
    output = run(*command, '--resume', '--cfg-options', f'train_cfg.max_iters={done + 3}')
    assert f'resumed epoch: 0, iter: {done}' in output
    steps = [int(i) for i in re.findall(r'Iter\(train\) *\[ *(\d+)/', output)]
    assert steps == [done + 1, done + 2, done + 3]


def test_mmsegs_own_train_runs_our_config(config, tmp_path):
    output = run(sys.executable, MMSEG_TRAIN, config, '--work-dir', tmp_path)
    assert len(scores(output, 'val')) == 2 and (tmp_path / 'iter_6.pth').exists()


@pytest.fixture(scope='module')
def two_processes(config, tmp_path_factory):
    """Train with the launcher; return the work dir, the output and the environment."""
    work_dir = tmp_path_factory.mktemp('two')
    env = dict(PORT='29617', PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
    return work_dir, run('bash', ROOT / 'tools/dist_train.sh', config, 2, '--work-dir', work_dir, **env), env


def test_two_processes(two_processes):
    work_dir, output, _ = two_processes
    assert len(scores(output, 'val')) == 2
    assert re.search(r'Distributed training: True', output) and re.search(r'GPU number: 2', output)
    assert len(list(work_dir.glob('*/vis_data/vis_image/*'))) == 2  # of two validations, in the first process


@pytest.mark.slow
def test_test_in_two_processes(config, two_processes, tmp_path):
    work_dir, output, env = two_processes
    tested = run('bash', ROOT / 'tools/dist_test.sh', config, work_dir / 'iter_6.pth', 2, '--work-dir', tmp_path,
                 '--show-dir', tmp_path / 'pictures', **env)  # fmt: skip
    assert scores(tested, 'test') == scores(output, 'val')[-1:]
    assert len(list((tmp_path / 'pictures').iterdir())) == 2  # each process draws its image


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='reads the names of threads')
def test_no_thread_of_the_process_group_outlives_the_run(config, tmp_path):
    """One that is left may abort the interpreter when that ends, once in twenty runs."""
    script = tmp_path / 'script.py'
    script.write_text(f"""
from pathlib import Path
from mmseg_segmenter import engine
cfg = engine.load_config({str(config)!r}, {str(tmp_path / 'w')!r}, None, 'pytorch')
before = len(list(Path('/proc/self/task').iterdir()))
engine.run(cfg, 'train')
after = [(task / 'comm').read_text().strip() for task in Path('/proc/self/task').iterdir()]
assert len(after) <= before, after
""")
    group = dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1', MASTER_PORT='29618')
    output = run(script, **group)
    assert 'Distributed training: True' in output


# Wrong input


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Call a tool in this process, and return the line that it ends with."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)  # takes seconds

    def call(tool, *args):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv('LOCAL_RANK', '0')
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        message = stop.value.code
        assert isinstance(message, str) and message.startswith(f'{tool}: ') and '\n' not in message
        return message.removeprefix(f'{tool}: ')

    return call


def damaged(path):
    """Half a checkpoint."""
    torch.save(dict(state_dict=dict(weight=torch.ones(1000))), path)
    path.write_bytes(path.read_bytes()[:2000])


BAD_CHECKPOINTS = {
    'missing': (lambda path: None, 'not found'),
    'folder': (Path.mkdir, 'is a folder, expected a file'),
    'empty': (Path.touch, 'is not a readable checkpoint'),
    'text': (lambda path: path.write_text('not a checkpoint'), 'is not a readable checkpoint'),
    'damaged': (damaged, 'is not a readable checkpoint'),
    'pickle': (lambda path: torch.save(dict(state_dict={}, a=Evil('canary')), path), 'refused'),
}


@pytest.mark.parametrize('kind', BAD_CHECKPOINTS)
def test_bad_checkpoint(config, tmp_path, refused, kind):
    path = tmp_path / 'bad.pth'
    make, words = BAD_CHECKPOINTS[kind]
    make(path)
    message = refused('test.py', config, path, '--work-dir', tmp_path / 'w')
    assert f'{path}' in message and words in message
    message = refused('train.py', config, '--work-dir', tmp_path / 'w', '--cfg-options', f'load_from={path}')
    assert f'{path}' in message and words in message
    assert not (tmp_path / 'canary').exists()


def test_features_on_disk(config, tmp_path, refused):
    """The training itself is in datasets/test_feature_cache.py."""
    message = refused('train.py', config, '--work-dir', tmp_path / 'w', '--features', tmp_path / 'none')
    assert message.startswith(f'{tmp_path}/none/features.json not found; tools/cache_features.py CONFIG ')
    message = refused('cache_features.py', config, tmp_path / 'features')
    assert 'cached features need a frozen backbone' in message and 'frozen_exclude=[]' in message
    message = refused('cache_features.py', config, config)
    assert message.startswith(f'cannot write {config}: ') and 'is not a folder' in message
    assert not (tmp_path / 'w').exists() and not (tmp_path / 'features').exists()


def test_checkpoint_of_another_model(config, trained, tmp_path, refused):
    """Its scores would be those of random weights."""
    path = tmp_path / 'other.pth'
    torch.save(dict(state_dict={'backbone.weight': torch.ones(1)}), path)
    for option in ([], ['--tta']):
        message = refused('test.py', config, path, '--work-dir', tmp_path / 'w', *option)
        assert 'other.pth is not a checkpoint of this model: ' in message and 'backbone.' in message
    wider = [f'model.{key}={16 * 3}' for key in ('backbone.embed_dims', 'decode_head.in_channels')]
    options = ['--work-dir', tmp_path / 'w', '--cfg-options', *wider, 'model.auxiliary_head=None']
    assert 'tensors are missing or of another shape' in refused('test.py', config, trained[0] / 'iter_6.pth', *options)


def test_part_of_a_model_is_scored_when_asked(config, trained, tmp_path):
    """A checkpoint without the auxiliary head, which a test does not need."""
    content = torch.load(trained[0] / 'iter_6.pth', weights_only=True)
    state = {key: value for key, value in content['state_dict'].items() if not key.startswith('auxiliary_head')}
    torch.save(dict(state_dict=state), tmp_path / 'part.pth')
    output = run(
        ROOT / 'tools/test.py', config, tmp_path / 'part.pth', '--work-dir', tmp_path / 'w',
        '--allow-partial',
    )  # fmt: skip
    assert scores(output, 'test') == scores(trained[1], 'val')[-1:]


def test_checkpoint_of_another_model_for_mmsegs_own_class(config, tmp_path, refused):
    """Which notes nothing of what it loads by itself."""
    path = tmp_path / 'other.pth'
    torch.save(dict(state_dict={'backbone.weight': torch.ones(1)}), path)
    options = ['--work-dir', tmp_path / 'w', '--cfg-options', 'model.type=EncoderDecoder']
    assert 'is not a checkpoint of this model: ' in refused('test.py', config, path, *options)


def test_work_dir_that_cannot_be_made(config, trained, tmp_path, refused):
    (tmp_path / 'file').touch()
    for work_dir in ('file', 'file/below', '/proc/nothing'):
        test = ['test.py', config, trained[0] / 'iter_6.pth']
        for command in (['train.py', config], test):
            assert refused(*command, '--work-dir', work_dir).startswith(f'cannot write {work_dir}: ')
        for option in ('--out', '--show-dir'):
            assert refused(*test, option, work_dir).startswith(f'cannot write {work_dir}: ')
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('train_cfg.max_iters', 'train_cfg.max_iters: expected KEY=VALUE'),
        ('train_cfg..max_iters=3', 'train_cfg..max_iters=3: expected KEY=VALUE'),
        ('=3', '=3: expected KEY=VALUE'),
        ('a=[1,(2]', 'a=[1,(2]: '),
        ('default_scope.a=3', 'default_scope.a=3 does not fit '),
        ('train_pipeline.9.type=A', "train_pipeline.9.type='A' does not fit "),
    ],
)
def test_wrong_option(config, refused, option, message):
    assert refused('train.py', config, '--cfg-options', option).startswith(f'--cfg-options {message}')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a = 1\nmodel = dict(\n', 'line 2'),
        ('a = 1\n\nmodel = dict(a=1 b=2)\n', 'line 3'),
        ('a = 1\nb = c\n', "broken.py, line 2: NameError: name 'c' is not defined"),
        ("_base_ = 'nothing.py'\n", 'nothing.py'),
        ("custom_imports = dict(imports=['no_such_module'])\n", "failed: No module named 'no_such_module'"),
    ],
)
def test_broken_config(tmp_path, refused, text, message):
    path = tmp_path / 'broken.py'
    path.write_text(text)
    found = refused('train.py', path)
    assert found.startswith(f'config {path}: ') and message in found and len(found) < 300


def test_config_that_is_a_folder(tmp_path, refused):
    assert refused('train.py', tmp_path) == f'config {tmp_path} is a folder, expected a file'


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('model.type=Segmentr', 'Segmentr is not in the mmseg::model registry'),
        ('model.backbone.type=SegmenterVit', 'SegmenterVit is not in the mmseg::model registry'),
        ('model.backbone.embed_dim=16', "unexpected keyword argument 'embed_dim'"),
        ('model.decode_head.num_classes=1', 'num_classes=1, expected at least 2'),
        ('train_dataloader.dataset.type=Ade', "train_dataloader.dataset.type='Ade' is not a registered dataset"),
        ('train_dataloader.dataset.pipeline.2.type=Crop', 'Crop is not in the mmseg::transform registry'),
        ('model.auxiliary_head.embed_dim=16', "unexpected keyword argument 'embed_dim'"),
        ('default_hooks.logger.type=Logger', 'Logger is not in the mmseg::hook registry'),
        ('optim_wrapper.optimizer.type=SDG', "optim_wrapper.optimizer.type='SDG' is not a registered optimizer"),
        ('optim_wrapper.optimizer.momentumm=0.9', "unexpected keyword argument 'momentumm'"),
        ('optim_wrapper.type=Wrapper', 'Wrapper is not in the'),
        ('optim_wrapper.constructor=Constructor', 'Constructor is not in the'),
        ('param_scheduler.0.type=Poly', 'Poly is not in the'),
        ('train_cfg.type=Loop', 'Loop is not in the'),
        ('train_dataloader.sampler.type=Sampler', 'Sampler is not in the'),
        ('val_evaluator.type=Metric', 'Metric is not in the'),
    ],
)
def test_config_that_cannot_be_built(config, tmp_path, refused, option, message):
    assert message in refused('train.py', config, '--work-dir', tmp_path / 'w', '--cfg-options', option)


def test_visualizer_without_its_package(config, tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    path = tmp_path / 'drawn.py'
    path.write_text(
        f"_base_ = '{config}'\nvisualizer = dict(name='unique', vis_backends=[dict(type='TensorboardVisBackend')])\n"
    )
    message = refused('train.py', path, '--work-dir', tmp_path / 'w')
    assert message.startswith(f'{path}: Please run "pip install ') and 'tensorboard' in message


@pytest.mark.parametrize(
    ('launcher', 'variable'), [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_LOCAL_RANK')]
)
def test_launcher_without_its_environment(config, monkeypatch, refused, launcher, variable):
    monkeypatch.delenv(variable, raising=False)
    message = refused('train.py', config, '--launcher', launcher)
    assert message.startswith(f'--launcher {launcher}: the environment has no {variable}; start ')


def test_run_with_a_broken_torchvision(config, monkeypatch, tmp_path, refused):
    """It goes on to where the config is wrong."""
    (tmp_path / 'torchvision.py').write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ['--work-dir', tmp_path / 'w', '--cfg-options', 'default_hooks.logger.type=Logger']

    def collect_env():  # as mmengine's
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module('torchvision')
        return {}

    monkeypatch.setattr('mmengine.runner.runner.collect_env', collect_env)
    assert 'Logger is not in' in refused('train.py', config, *arguments)


def test_kept_config_of_a_confusion_matrix_can_be_read_again(config, trained, tmp_path):
    """By a process that imports what the config names, and nothing else."""
    matrix = ROOT / 'tools/analysis_tools/confusion_matrix.py'
    run(matrix, config, trained[0] / 'iter_6.pth', '--work-dir', tmp_path / 'a', '--out',
        tmp_path / 'a.png')  # fmt: skip
    output = run(sys.executable, ROOT / 'tools/test.py', tmp_path / 'a' / config.name, trained[0] / 'iter_6.pth',
                 '--work-dir', tmp_path / 'b')  # fmt: skip
    assert scores(output, 'test') == scores(trained[1], 'val')[-1:]


def last_line(output):
    return output.strip().splitlines()[-1]


def test_missing_dataset(config, tmp_path):
    code, output = run(
        ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'w',
        '--cfg-options', 'train_dataloader.dataset.data_root=nowhere', check=False,
    )  # fmt: skip
    assert code != 0
    assert 'train_dataloader: dataset folder nowhere/images/training not found' in last_line(output)
    assert not (tmp_path / 'w').exists()


def test_annotation_with_too_many_labels(config, tmp_path):
    code, output = run(
        ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'w',
        '--cfg-options', 'model.decode_head.num_classes=3', 'model.auxiliary_head.num_classes=3', check=False,
    )  # fmt: skip
    assert code != 0
    message = (
        'model.decode_head.num_classes=3, but train_dataloader.dataset has 5 classes (ground, disc, striped, ring, ch'
    )
    assert message in last_line(output)
