"""The command lines, as a user types them, on a tiny dataset and model."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mmseg
import pytest
import torch

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


def run(*args, check=True):
    """In a folder of its own: mmseg leaves some behind where it runs."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [str(a) for a in args], capture_output=True, text=True, env=env, cwd=folder, stdin=subprocess.DEVNULL
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


def test_tta(config, trained, tmp_path):
    output = run(
        sys.executable, ROOT / 'tools/test.py', config, trained[0] / 'iter_6.pth', '--tta', '--work-dir', tmp_path
    )
    assert len(scores(output, 'test')) == 1


@pytest.mark.skipif(not cpu_has_bfloat16(), reason='needs a CPU with bfloat16')
def test_mixed_precision(config, trained, tmp_path):
    output = run(sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path, '--amp')
    assert len(scores(output, 'val')) == 2
    assert torch.load(tmp_path / 'iter_6.pth')['state_dict']['backbone.pos_embed'].dtype == torch.float32
    tested = run(
        sys.executable, ROOT / 'tools/test.py', config, trained[0] / 'iter_6.pth', '--amp', '--work-dir', tmp_path
    )
    assert len(scores(tested, 'test')) == 1


def test_killed_training_resumes(config, tmp_path):
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(tmp_path)]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''}
    options = ['--cfg-options', 'train_cfg.max_iters=100000']
    with open(tmp_path / 'log.txt', 'w') as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log, env=env, stdin=subprocess.DEVNULL)
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


@pytest.mark.skipif(sys.platform == 'win32', reason='bash')
def test_two_processes(config, tmp_path):
    python = str(Path(sys.executable).parent)
    env = dict(PORT='29617', PATH=f'{python}:{os.environ["PATH"]}')
    output = run('env', *(f'{k}={v}' for k, v in env.items()), ROOT / 'tools/dist_train.sh', config, 2,
                 '--work-dir', tmp_path)  # fmt: skip
    assert len(scores(output, 'val')) == 2
    assert re.search(r'Distributed training: True', output) and re.search(r'GPU number: 2', output)
    tested = run('env', *(f'{k}={v}' for k, v in env.items()), ROOT / 'tools/dist_test.sh', config,
                 tmp_path / 'iter_6.pth', 2, '--work-dir', tmp_path / 'test')  # fmt: skip
    assert scores(tested, 'test') == scores(output, 'val')[-1:]


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
    output = run('env', *(f'{k}={v}' for k, v in group.items()), sys.executable, script)
    assert 'Distributed training: True' in output


# Wrong input


def last_line(output):
    return output.strip().splitlines()[-1]


def test_missing_dataset(config, tmp_path):
    code, output = run(
        sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'w',
        '--cfg-options', 'train_dataloader.dataset.data_root=nowhere', check=False,
    )  # fmt: skip
    assert code != 0
    assert 'train_dataloader: dataset folder nowhere/images/training not found' in last_line(output)
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('content', [None, b'not a checkpoint'])
def test_bad_checkpoint(config, tmp_path, content):
    path = tmp_path / 'bad.pth'
    if content is not None:
        path.write_bytes(content)
    code, output = run(sys.executable, ROOT / 'tools/test.py', config, path, '--work-dir', tmp_path / 'w', check=False)
    assert code != 0
    assert f'{path}' in last_line(output)
    assert ('not found' if content is None else 'is not a readable checkpoint') in last_line(output)


def test_annotation_with_too_many_labels(config, tmp_path):
    code, output = run(
        sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'w',
        '--cfg-options', 'model.decode_head.num_classes=3', 'model.auxiliary_head.num_classes=3', check=False,
    )  # fmt: skip
    assert code != 0
    assert re.search(
        r'annotations/training/scene_\d+\.png: found label .*expected 0 to 2 \(num_classes=3\)', last_line(output)
    )


def test_mask_head_with_one_class(config, tmp_path):
    code, output = run(
        sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'w',
        '--cfg-options', 'model.decode_head.num_classes=1', check=False,
    )  # fmt: skip
    assert code != 0 and 'num_classes=1, expected at least 2' in last_line(output)
