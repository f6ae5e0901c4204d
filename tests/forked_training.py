"""Train a tiny Segmenter in forked processes, so that many runs can be started and killed in minutes.

The config is a published one: its dropout, stochastic depth, augmentations, sampler and hooks. Only sizes are cut.
"""

import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from mmseg_segmenter import engine
from mmseg_segmenter.command_line import errors_in_one_line
from mmseg_segmenter.datasets.shapes import make_shapes

ROOT = Path(__file__).parent.parent
TINY = """
_base_ = '{root}/configs/segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k.py'
data_root = '{data}'
model = dict(
    data_preprocessor=dict(size=(32, 32)),
    backbone=dict(img_size=(32, 32), embed_dims=16, num_layers=2, num_heads=2, init_cfg=None),
    decode_head=dict(in_channels=16, embed_dims=16, num_layers=1, num_heads=2),
    test_cfg=dict(crop_size=(32, 32), stride=(16, 16)),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(48, 40), ratio_range=(0.8, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,
                        dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False,
                      dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=0, end=25, by_epoch=False)]
train_cfg = dict(max_iters=24, val_interval=6)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(interval=4, max_keep_ckpts=1, save_best='mIoU'),
)
custom_hooks = [dict(type='RecordHook', priority='VERY_HIGH')]
env_cfg = dict(cudnn_benchmark=False)
"""


@HOOKS.register_module(force=True)
class RecordHook(Hook):
    """Append a line for each iteration: its batch as a hash, and the exact loss and learning rate."""

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        digest = hashlib.sha256()
        for image, sample in zip(data_batch['inputs'], data_batch['data_samples'], strict=True):
            digest.update(image.numpy().tobytes() + sample.gt_sem_seg.data.numpy().tobytes())
            digest.update(os.path.basename(sample.img_path).encode())
        row = dict(
            iter=runner.iter + 1,
            batch=digest.hexdigest(),
            loss=float(outputs['loss']).hex(),
            lr=runner.optim_wrapper.get_lr()['lr'][0].hex(),
        )
        with open(Path(runner.work_dir) / f'record_{runner.rank}.jsonl', 'a') as file:
            file.write(json.dumps(row) + '\n')


def make_config(folder: Path, num_images: int = 10) -> Path:
    """Write the images and the config; return its path."""
    make_shapes(str(folder / 'data'), num_images=num_images, size=(48, 64))
    path = folder / 'tiny.py'
    path.write_text(TINY.format(root=ROOT, data=folder / 'data'))
    flat = folder / 'flat.py'  # saves looking up the bases in each run
    Config.fromfile(path).dump(flat)
    return flat


def _train(config: Path, work_dir: Path, options: Mapping[str, Any], prepare: Callable[[], None] | None) -> None:
    # Asking compilers for their versions and formatting the config would take seconds in each run.
    import mmengine.config.config
    import mmengine.runner.runner

    mmengine.runner.runner.collect_env = dict
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    launcher = 'pytorch' if 'RANK' in os.environ else 'none'
    cfg = engine.load_config(str(config), str(work_dir), options, launcher)
    engine.run(cfg, 'train')


def start(
    config: Path, work_dir: Path, prepare: Callable[[], None] | None = None, log: Path | None = None, **options: Any
) -> int:
    """Start a training in a forked process.

    Args:
        config: of :func:`make_config`.
        work_dir: of the run.
        prepare: called in the process before it trains. It may set the variables of torchrun.
        log: file that its output is appended to; default: ``work_dir`` with ``.log`` in place of its suffix.
        options: of the config by dotted key, with ``__`` for the dots.

    Returns:
        The process ID.
    """
    changes = {key.replace('__', '.'): value for key, value in options.items()}
    return fork(lambda: _train(config, work_dir, changes, prepare), log or work_dir.with_suffix('.log'))


def fork(function: Callable[[], None], log: Path) -> int:
    """Call a function in a forked process, with errors as those of our tools.

    Args:
        function: to call.
        log: file that its output is appended to.

    Returns:
        The process ID, which is also the ID of a new process group.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()  # so that all of it can be killed
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(i, 'w', buffering=1, closefd=False) for i in (1, 2))  # not pytest's
        sys.argv = ['train.py']
        with errors_in_one_line():
            function()
        code = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        else:
            code = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, timeout: float = 120) -> int:
    """Return the exit code of a process; minus the signal that ended it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f'process {pid} did not end within {timeout} s')


def train(config: Path, work_dir: Path, **options: Any) -> int:
    """Train to the end; return the exit code. Arguments as in :func:`start`."""
    return wait(start(config, work_dir, **options))


def records(work_dir: Path, rank: int = 0) -> list[dict[str, Any]]:
    """Return what was recorded of all iterations of all starts. A line that a kill cut off is left out."""
    lines = (work_dir / f'record_{rank}.jsonl').read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith('\n')]


def assert_same_training(work_dir: Path, reference: Path, last: str = 'iter_24.pth') -> None:
    """Compare a run that was interrupted with one that was not, bit for bit.

    Each iteration of each start must have had the batch, the loss and the learning rate of the reference; the last
    checkpoint the same weights, optimizer, schedule and random states.
    """
    wanted = {row['iter']: row for row in records(reference)}
    rows = records(work_dir)
    assert {row['iter'] for row in rows} == set(wanted)
    for row in rows:
        assert row == wanted[row['iter']]
    first, second = (torch.load(folder / last, weights_only=True) for folder in (work_dir, reference))
    for key in ('state_dict', 'optimizer', 'param_schedulers', 'ema_state_dict', 'exact_resume'):
        assert_equal(first.get(key), second.get(key), key)
    scores = [c['message_hub']['runtime_info'].get('best_score') for c in (first, second)]
    assert scores[0] == scores[1]


def assert_equal(one: Any, other: Any, place: str = '') -> None:
    """Compare nested containers of tensors and plain values exactly."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), place
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys(), place
        for key, value in one.items():
            assert_equal(value, other[key], f'{place}.{key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f'{place}[{i}]')
    else:
        assert one == other, f'{place}: {one!r} {other!r}'
