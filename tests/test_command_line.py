"""What the command-line tools print when something is wrong, and how they end."""

import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.registry import Registry

from mmseg_segmenter.command_line import errors_in_one_line
from mmseg_segmenter.errors import MissingFileError, UserError

TOOLS = Path(__file__).parent.parent / 'tools'


def ended(monkeypatch, error):
    """The exit code that an exception leads to; a text is printed on stderr and means code 1."""
    monkeypatch.setattr(sys, 'argv', ['/somewhere/tool.py'])
    with pytest.raises(SystemExit) as stop, errors_in_one_line():
        raise error
    return stop.value.code


@pytest.mark.parametrize('error', [UserError('a.pth: is\nwrong'), MissingFileError('a.pth: is\nwrong')])
def test_user_error_is_one_line(monkeypatch, error):
    assert ended(monkeypatch, error) == 'tool.py: a.pth: is wrong'


@pytest.mark.parametrize('error', [ValueError, OSError, FileNotFoundError, RuntimeError])
def test_bug_keeps_its_traceback(error):
    with pytest.raises(error, match='a bug'), errors_in_one_line():
        raise error('a bug')


def test_interrupt(monkeypatch, capsys):
    assert ended(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == 'tool.py: interrupted\n'


def test_error_in_a_nested_constructor_is_shown_as_it_is(monkeypatch):
    """Releases of mmengine before 0.10.7 put class and file of every level of a config before the message."""
    models = Registry('models', scope='mmseg')

    @models.register_module()
    class Inner:
        def __init__(self):
            raise UserError('num_heads=5, expected a divisor of 16')

    @models.register_module()
    class Outer:
        def __init__(self, inner):
            models.build(inner)

    with pytest.raises(UserError, match='num_heads') as caught:
        models.build(dict(type='Outer', inner=dict(type='Inner')))
    assert ended(monkeypatch, caught.value) == 'tool.py: num_heads=5, expected a divisor of 16'


# The examples of deployment stand alone, and import their runtime at the top.
TOOL_FILES = [path for path in TOOLS.rglob('*.py') if path.parent.name != 'examples']


@pytest.mark.parametrize('tool', sorted(path.relative_to(TOOLS).as_posix() for path in TOOL_FILES))
def test_help_is_quick(tool):
    code = f"""
import runpy, sys
sys.argv = ['tool', '--help']
try:
    runpy.run_path({str(TOOLS / tool)!r}, run_name='__main__')
except SystemExit as stop:
    assert not stop.code
assert 'torch' not in sys.modules and 'mmseg' not in sys.modules
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith('usage: '), result.stderr
