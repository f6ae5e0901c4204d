"""The report about a GPU, rehearsed on a CPU."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from mmseg_segmenter.analysis.benchmark import Case
from mmseg_segmenter.analysis.gpu_report import document, runner, steps
from mmseg_segmenter.analysis.gpu_report.__main__ import main
from mmseg_segmenter.analysis.gpu_report.runner import OutOfTime, Results, Step, run_steps, time_limit

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def results(tmp_path):
    return Results(str(tmp_path / 'performance_gpu.json'))


def soon(seconds=60.0):
    return time.time() + seconds


def test_results_of_each_step_are_kept_and_not_measured_again(results):
    calls = []
    todo = [Step(key, partial(lambda key: calls.append(key) or len(calls), key)) for key in 'abc']
    run_steps(todo[:2], results, soon())
    again = Results(results.path)
    run_steps(todo, again, soon())
    assert calls == ['a', 'b', 'c']
    assert [again.value(key) for key in 'abc'] == [1, 2, 3]


def test_a_step_that_fails_does_not_stop_the_next(results, capsys):
    def fail():
        raise RuntimeError('CUDA error\nmore of it')

    run_steps([Step('bad', fail), Step('good', lambda: 1)], results, soon())
    assert results.content['steps']['bad']['error'] == 'RuntimeError: CUDA error'
    assert results.value('good') == 1
    assert 'bad: RuntimeError: CUDA error' in capsys.readouterr().out


def test_a_step_that_takes_too_long_is_ended(results):
    started = time.time()
    run_steps([Step('slow', partial(time.sleep, 30), bound=0.2), Step('good', lambda: 1)], results, soon())
    assert time.time() - started < 10
    assert results.content['steps']['slow']['error'] == 'took longer than 0 s'
    assert results.value('good') == 1


def test_a_step_that_the_deadline_ends_is_tried_again(results, monkeypatch):
    monkeypatch.setattr(runner, '_LEAST_SECONDS', 0.1)
    run_steps([Step('slow', partial(time.sleep, 30))], results, soon(0.3))
    assert not results.finished('slow')
    run_steps([Step('slow', lambda: 'done')], Results(results.path), soon())
    assert Results(results.path).value('slow') == 'done'


def test_no_step_starts_after_the_deadline(results):
    run_steps([Step('a', lambda: 1)], results, soon(1))
    assert not results.finished('a')


def test_a_step_that_ended_the_process_twice_is_given_up(results):
    for attempts, outcome in ((1, dict(value=1)), (2, dict(error='the process ended during it, 2 times'))):
        results.content['steps'] = dict(deadly=dict(attempts=attempts))
        run_steps([Step('deadly', lambda: 1)], results, soon())
        assert outcome.items() <= results.content['steps']['deadly'].items()


def test_a_process_that_lost_its_gpu_ends_for_another(results, monkeypatch):
    monkeypatch.setattr(runner, '_gpu_answers', lambda: False)
    with pytest.raises(SystemExit) as ended:
        run_steps([Step('a', lambda: 1), Step('b', lambda: 1)], results, soon())
    assert ended.value.code == runner.RESTART
    assert results.finished('a') and not results.finished('b')


def test_the_time_limit_passes_handlers_of_exceptions():
    with pytest.raises(OutOfTime), time_limit(0.1):
        try:
            time.sleep(30)
        except Exception:
            pytest.fail('taken for an ordinary error')


def test_results_of_another_machine_are_refused(results):
    results.content['machine']['device'] = 'another GPU'
    results.save()
    with pytest.raises(ValueError, match='measured with device another GPU, expected'):
        Results(results.path)
    Path(results.path).write_text('{"machine": ')
    with pytest.raises(ValueError, match=r'performance_gpu\.json.*remove the file'):
        Results(results.path)


def test_tests_are_counted_and_failures_listed(tmp_path):
    (tmp_path / 'pytest.ini').write_text('[pytest]\nmarkers = gpu')
    folder = tmp_path / 'tests'
    folder.mkdir()
    (folder / 'test_some.py').write_text(
        'import pytest\n'
        '@pytest.mark.gpu\ndef test_good(): pass\n'
        '@pytest.mark.gpu\ndef test_bad(): assert 1 == 2\n'
        'def test_other(): assert False\n'
    )
    (folder / 'test_broken.py').write_text('import nothing_of_this_name')
    found = steps.run_tests(str(tmp_path / 'log.txt'), str(folder))
    assert found['summary'].startswith('1 failed, 1 passed, 1 deselected, 1 error')
    assert [line.split()[0] for line in found['failed']] == ['FAILED', 'ERROR']
    assert 'test_bad' in found['failed'][0] and 'test_broken' in found['failed'][1]
    assert 'not run: no folder' in steps.run_tests(str(tmp_path / 'log.txt'), str(tmp_path / 'none'))['summary']


def side(kind, seconds=0.5, **changes):
    figures = dict(peak_gb=2.0, model_gb=1.0, peak_share=0.5, agreement=1e-6, first_seconds=9.0, error=None)
    return dict(kind=kind, name=kind, median=seconds) | figures | changes


def test_the_page_names_what_failed_and_what_is_missing(results, tmp_path):
    cases = [Case('train', (64, 64), n, None, 'bf16') for n in (1, 2)] + [Case('slide', (64, 128), 1, None, 'fp16')]
    values = [
        [side('mmseg', 1.0), side('ours')],
        [side('mmseg', None, error='out of memory', peak_gb=None), side('ours')],
        [side('mmseg', None, error='KeyError: x'), side('ours', agreement=0.9999)],
    ]
    todo = [Step(steps.case_key('B', case), lambda: None) for case in cases]
    todo += [Step('forward B', lambda: None), Step('broken', lambda: None)]
    for step, case, sides in zip(todo, cases, values, strict=False):
        results.update(step.key, value=dict(model='B', case=vars(case), contenders=sides))
    results.update('broken', error='took longer than 45 s')
    results.update('GPU tests', value=dict(summary='1 failed', failed=['FAILED tests/test_a.py::test_b']))
    results.update(steps.peak_key('bf16'), value=800e3)
    page = Path(document.write_document(str(tmp_path), results, todo, smoke=False)).read_text()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in page.splitlines() if line.startswith('| B')]
    assert rows[0] == ['B', '64x64', '1', 'bf16', '1.0', '2.0', '2.00x', '50%', '50%', '2.00', '2.00', '1.0e-06']
    assert rows[1][4:7] == ['out of memory', '4.0', '-'] and rows[1][9:11] == ['-', '2.00']
    assert rows[2][4] == 'failed' and rows[2][-1] == '99.9900%'
    assert '| bf16  |   800.0 |' in page and '- `FAILED tests/test_a.py::test_b`' in page
    failed, missing = page.split('## Failed')[1].split('## Not measured')
    assert '- slide B, fp16, batch 1, mmseg, KeyError: x' in failed and '- broken: took longer than 45 s' in failed
    assert missing.strip().endswith('- forward B') and 'out of memory' not in failed
    assert (tmp_path / 'performance_gpu_memory.png').read_bytes().startswith(b'\x89PNG')
    assert '(performance_gpu_memory.png)' in page and 'throughput' not in page


def test_the_most_important_measurements_come_first(results):
    keys = [step.key for step in steps.plan(steps.Settings(), results, (), 'log.txt')]
    assert len(keys) == len(set(keys))
    assert keys[0] == 'GPU tests' and keys[5] == 'forward B, 512x512, batch 8, bf16'
    for mode in ('forward', 'train', 'slide', 'tta', 'backbone'):
        for model in 'TSBL':
            assert any(key.startswith(f'{mode} {model}, ') for key in keys)
    for dtype in ('float32', 'tf32', 'fp16', 'bf16'):
        assert {f'forward L, 640x640, batch {n}, {dtype}' for n in (1, 8, 64)} <= set(keys)
        assert f'train L, 640x640, batch 8, {dtype}' in keys
    assert {f'forward B, 512x512, batch {2**i}, bf16' for i in range(7)} <= set(keys)
    assert {f'forward {model}, batch 8, bf16, compiled' for model in 'TSB'} <= {
        key.replace(' 512x512,', '') for key in keys
    }


@pytest.mark.slow
def test_one_command(tmp_path):
    """The whole report with tiny models, in two calls of which the first has no time."""
    command = [
        str(ROOT / 'tools/analysis_tools/gpu_report.sh'),
        '--smoke',
        '--no-tests',
        '--out',
        str(tmp_path / 'out'),
    ]
    env = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    for minutes, complete in (('0.1', False), ('10', True)):
        done = subprocess.run(
            [*command, '--minutes', minutes], capture_output=True, text=True, env=env, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        page = (tmp_path / 'out/performance_gpu.md').read_text()
        assert ('## Not measured' not in page) is complete
    content = json.loads((tmp_path / 'out/performance_gpu.json').read_text())
    assert all('value' in entry for entry in content['steps'].values()), page
    for record in (entry['value'] for key, entry in content['steps'].items() if ', batch ' in key):
        theirs, ours = record['contenders'][:2]
        if record['case']['mode'] == 'train' and record['case']['dtype'] == 'fp16':  # needs a GPU
            assert 'needs a GPU' in ours['error']
            continue
        assert theirs['median'] > 0 and ours['median'] > 0, record
        if record['case']['dtype'] in ('float32', 'tf32') and record['case']['mode'] in ('forward', 'train'):
            assert ours['agreement'] < 1e-4 and ours['peak_share'] > 0
    for title in ('Forward pass', 'Backbone', 'Training step', 'Sliding windows', 'Compiled', 'Loader', 'Failed'):
        assert f'## {title}' in page


def test_without_a_gpu_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['gpu_report', '--out', str(tmp_path)])
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='gpu_report: found no CUDA device; --smoke rehearses on a CPU'):
        main()
    assert not os.listdir(tmp_path)
