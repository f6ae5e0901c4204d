"""Call the converters of checkpoints in this process, which is faster than to start another one."""

import runpy
import sys
from pathlib import Path
from unittest import mock

TOOLS = Path(__file__).parent.parent / 'tools' / 'model_converters'


def timm2mmseg(*arguments: str | Path) -> None:
    """Run ``timm2mmseg.py``, which also reads the files of ``vitjax2mmseg.py``."""
    with mock.patch.object(sys, 'argv', ['timm2mmseg.py', *map(str, arguments)]):
        runpy.run_path(str(TOOLS / 'timm2mmseg.py'), run_name='__main__')
