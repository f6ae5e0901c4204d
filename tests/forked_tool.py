"""Run a tool as a user would, in a forked process: it need not import torch and mmseg again, which takes seconds."""

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import forked_training
import torch


def run_tool(
    script: str | Path, *arguments: object, cwd: str | Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script and wait for it; like ``subprocess.run([sys.executable, ...], capture_output=True, text=True)``.

    Logs do not have the versions of compilers, and configs in it are not formatted: both take seconds.
    """
    command = [str(script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, name) for name in ('stdout', 'stderr')}

        def call() -> None:
            import mmengine.config.config
            import mmengine.runner.runner

            mmengine.runner.runner.collect_env = dict
            mmengine.config.config.FormatCode = lambda text, **_: (text, True)
            torch.set_num_threads(1)
            os.dup2(os.open(files['stderr'], os.O_WRONLY | os.O_CREAT), 2)
            os.environ.update(env or {})
            os.chdir(cwd or os.getcwd())
            sys.argv = command
            sys.path.insert(0, str(Path(script).parent))
            runpy.run_path(command[0], run_name='__main__')

        code = forked_training.wait(forked_training.fork(call, files['stdout']))
        output = {name: path.read_text() if path.exists() else '' for name, path in files.items()}
    return subprocess.CompletedProcess(command, code, **output)
