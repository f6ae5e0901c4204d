"""The shell scripts that start train.py and test.py in several processes, with stand-ins for what they call."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / 'tools'

# Arguments that a shell would split, expand or run.
ODD = """a b'"$(touch hacked)`touch hacked`;*%s\\n[1] ü #.py"""

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='bash')


@pytest.fixture
def call(tmp_path: Path):
    """Call a script; return the command line that it ends with, one argument a line."""
    for name in ('python', 'srun'):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "PYTHONPATH $PYTHONPATH"\nprintf "%s\\n" {name} "$@"\n')
        program.chmod(0o755)

    def run(script: str, *args: str, **env: str) -> list[str]:
        path = f'{tmp_path}:{os.environ["PATH"]}'
        command = ['bash', str(TOOLS / script), *args]
        result = subprocess.run(command, capture_output=True, text=True, env={'PATH': path, **env})
        assert result.returncode == 0, result.stderr
        first, *rest = result.stdout.splitlines()
        assert Path(first.removeprefix('PYTHONPATH ').split(':')[0]).resolve() == TOOLS.parent
        return rest

    return run


@pytest.mark.parametrize(
    ('script', 'arguments', 'tool'),
    [
        ('dist_train.sh', [ODD, '2', '--work-dir', f'x {ODD}'], ['train.py', ODD]),
        ('dist_test.sh', [ODD, f'./-{ODD}.pth', '2', '--work-dir', f'x {ODD}'], ['test.py', ODD, f'./-{ODD}.pth']),
        (
            'dist_predict.sh',
            ['2', ODD, f'./-{ODD}.pth', '--work-dir', f'x {ODD}'],
            ['predict.py', ODD, f'./-{ODD}.pth'],
        ),
    ],
)
def test_torchrun(call, script, arguments, tool):
    end = [f'{TOOLS}/{tool[0]}', '--launcher', 'pytorch', *tool[1:], '--work-dir', f'x {ODD}']
    start = ['python', '-m', 'torch.distributed.run', '--nnodes=1', '--nproc_per_node=2']
    own = ['--node_rank=0', '--master_addr=127.0.0.1', '--master_port=29500', '--max_restarts=0']
    assert call(script, *arguments) == [*start, *own, *end]
    own = ['--rdzv_backend=c10d', '--rdzv_endpoint=127.0.0.1:29500', '--rdzv_id=mmseg_segmenter']
    own += ['--rdzv_conf=is_host=1', '--max_restarts=2']
    assert call(script, *arguments, MAX_RESTARTS='2') == [*start, *own, *end]
    start[3] = '--nnodes=3'
    env = dict(NNODES='3', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='7')
    own = ['--node_rank=1', '--master_addr=10.0.0.1', '--master_port=7', '--max_restarts=0']
    assert call(script, *arguments, **env) == [*start, *own, *end]
    own = ['--rdzv_backend=c10d', '--rdzv_endpoint=10.0.0.1:7', '--rdzv_id=mmseg_segmenter']
    own += ['--rdzv_conf=is_host=0', '--max_restarts=2']
    assert call(script, *arguments, **env, MAX_RESTARTS='2') == [*start, *own, *end]


@pytest.mark.parametrize(
    ('script', 'arguments', 'tool'),
    [
        ('slurm_train.sh', [ODD, '--work-dir', f'x {ODD}'], ['train.py', ODD]),
        ('slurm_test.sh', [ODD, f'./-{ODD}.pth', '--work-dir', f'x {ODD}'], ['test.py', ODD, f'./-{ODD}.pth']),
    ],
)
def test_slurm(call, script, arguments, tool):
    end = ['python', '-u', f'{TOOLS}/{tool[0]}', '--launcher', 'slurm', *tool[1:], '--work-dir', f'x {ODD}']
    start = ['srun', '-p', 'gpu', '--job-name=my job']
    sizes = ['--gres=gpu:8', '--ntasks=8', '--ntasks-per-node=8', '--cpus-per-task=5', '--kill-on-bad-exit=1']
    assert call(script, 'gpu', 'my job', *arguments) == [*start, *sizes, *end]
    sizes = ['--gres=gpu:4', '--ntasks=16', '--ntasks-per-node=4', '--cpus-per-task=2', '--kill-on-bad-exit=1']
    env = dict(GPUS='16', GPUS_PER_NODE='4', CPUS_PER_TASK='2', SRUN_ARGS='--quiet --time=3')
    assert call(script, 'gpu', 'my job', *arguments, **env) == [*start, *sizes, '--quiet', '--time=3', *end]


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'dist_predict.sh', 'slurm_train.sh', 'slurm_test.sh']
)
def test_usage(script):
    result = subprocess.run(['bash', TOOLS / script, 'one'], capture_output=True, text=True)
    assert result.returncode != 0 and f'usage: tools/{script} ' in result.stderr and result.stdout == ''
