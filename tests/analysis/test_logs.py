import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_segmenter.analysis import logs

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'analyze_logs.py'


def train(step, loss, **more):
    return dict(lr=1e-3 / step, loss=loss, data_time=0.1, time=0.2, iter=step, step=step, **more)


def val(step, score):
    return dict(aAcc=80.0, mIoU=score, mAcc=50.0, data_time=0.0, time=0.1, step=step)


def start(work_dir, timestamp, records, tail=''):
    """Write what a start of a runner leaves behind, and return its scalars."""
    folder = work_dir / timestamp / 'vis_data'
    folder.mkdir(parents=True)
    text = ''.join(json.dumps(record) + '\n' for record in records) + tail
    for name in ('scalars.json', f'{timestamp}.json'):
        (folder / name).write_text(text)
    return folder / 'scalars.json'


@pytest.fixture
def resumed(tmp_path):
    """Write a run that was killed at 45 after a checkpoint at 30, killed again before it logged, and resumed to 60."""
    run = tmp_path / 'run'
    start(run, '20260101_100000', [train(10, 4.0), train(20, 3.0), val(20, 11.0), train(30, 2.5), train(40, 9.0),
                                   val(40, 99.0)], tail='{"lr": 0.1, "lo')  # fmt: skip
    start(run, '20260101_110000', [])
    start(run, '20260101_120000', [train(40, 2.0), val(40, 22.0), train(50, 1.5), train(60, 1.0), val(60, 33.0)])
    return run


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_starts_are_joined(resumed, tmp_path):
    summary = logs.analyze([str(resumed)], str(tmp_path / 'out'))
    rows = table(tmp_path / 'out.csv')
    assert [int(row['iteration']) for row in rows] == [10, 20, 30, 40, 50, 60]
    assert [float(row['loss']) for row in rows] == [4.0, 3.0, 2.5, 2.0, 1.5, 1.0]
    assert [row['mIoU'] for row in rows] == ['', '11.0', '', '22.0', '', '33.0']
    assert list(rows[0]) == ['run', 'iteration', 'loss', 'lr', 'mIoU']
    assert summary == 'run: 60 iterations, loss 1, lr 1.667e-05, mIoU 33.00 (highest 33.00 at 60)'
    assert Image.open(tmp_path / 'out.png').size[0] > 1000


def test_a_later_start_from_the_beginning_replaces_everything(resumed):
    start(resumed, '20260102_000000', [train(5, 7.0)])
    run = logs.read_run(str(resumed), 'run')
    assert list(run.train) == [5] and not run.val


def test_one_start_alone(resumed):
    for path in ('20260101_120000', '20260101_120000/vis_data', '20260101_120000/vis_data/scalars.json'):
        assert list(logs.read_run(str(resumed / path), 'run').train) == [40, 50, 60]


def test_logged_by_epoch(tmp_path):
    """The `step` of a validation is then the epoch, or 0 in a training by iterations."""
    records = [train(8, 2.0, epoch=1), val(1, 10.0), train(16, 1.0, epoch=2), val(2, 20.0)]
    file = start(tmp_path, '20260101_100000', records)
    assert logs.read_run(str(file), '').series('mIoU')[0].tolist() == [8, 16]
    file = start(tmp_path, '20260101_110000', [train(50, 2.0), val(0, 10.0)])
    assert logs.read_run(str(file), '').series('mIoU')[0].tolist() == [50]


def test_several_runs(resumed, tmp_path):
    start(tmp_path / 'other', '20260101_100000', [train(25, 5.0)])
    logs.analyze([str(resumed), str(tmp_path / 'other')], str(tmp_path / 'out'), ['loss', 'mIoU'], ['a', 'b'])
    rows = table(tmp_path / 'out.csv')
    assert [row['run'] for row in rows] == ['a'] * 6 + ['b'] and rows[-1]['mIoU'] == ''


def test_labels_tell_runs_apart(tmp_path):
    for name in ('a/seed0', 'b/seed0', 'b/seed1'):
        start(tmp_path / name, '20260101_100000', [train(1, 1.0)])
    assert logs.run_names([f'{tmp_path}/a/seed0/', f'{tmp_path}/b/seed1']) == ['seed0', 'seed1']
    assert logs.run_names([f'{tmp_path}/a/seed0', f'{tmp_path}/b/seed0']) == ['a/seed0', 'b/seed0']
    files = [f'{tmp_path}/{n}/seed0/20260101_100000/vis_data/scalars.json' for n in 'ab']
    assert logs.run_names(files) == ['a/seed0/20260101_100000', 'b/seed0/20260101_100000']


def test_smoothing():
    values = np.array([3.0, 1.0, np.nan, 2.0, 5.0])
    expected = []
    for i, value in enumerate(values):
        weights = np.array([0.5 ** abs(i - j) for j in range(5)])
        known = np.isfinite(values)
        expected.append((weights * values)[known].sum() / weights[known].sum() if np.isfinite(value) else np.nan)
    np.testing.assert_allclose(logs.smooth(values, 0.5), expected, rtol=1e-12)
    np.testing.assert_array_equal(logs.smooth(values, 0), values)
    assert np.isnan(logs.smooth(np.full(3, np.nan), 0.9)).all()


def test_loss_that_is_not_a_number(tmp_path):
    start(tmp_path / 'run', '20260101_100000', [train(1, 2.0), train(2, float('nan')), train(3, float('inf'))])
    logs.analyze([str(tmp_path / 'run')], str(tmp_path / 'out'))
    assert [row['loss'] for row in table(tmp_path / 'out.csv')] == ['2.0', 'nan', 'inf']


def test_validation_only(tmp_path):
    file = start(tmp_path, '20260101_100000', [val(0, 12.0)])
    assert 'mIoU 12.00' in logs.analyze([str(file)], str(tmp_path / 'out'))


# Wrong input


def call(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, 'argv', ['analyze_logs.py', *map(str, args)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOL), run_name='__main__')
    return str(stopped.value.code)


@pytest.mark.parametrize('suffix', ['', '.png'])
def test_command_line(monkeypatch, capsys, resumed, tmp_path, suffix):
    out = f'{tmp_path}/new/p{suffix}'
    monkeypatch.setattr(sys, 'argv', ['x', str(resumed), '--out', out, '--keys', 'lr', '--smooth', '0'])
    runpy.run_path(str(TOOL), run_name='__main__')
    assert (
        capsys.readouterr().out
        == f'run: 60 iterations, lr 1.667e-05\nwrote {tmp_path}/new/p.png {tmp_path}/new/p.csv\n'
    )
    assert sorted(p.name for p in (tmp_path / 'new').iterdir()) == ['p.csv', 'p.png']


def test_unknown_key(monkeypatch, capsys, resumed, tmp_path):
    message = call(monkeypatch, capsys, resumed, '--out', tmp_path / 'p', '--keys', 'loss', 'miou', 'x')
    assert message.startswith('analyze_logs.py: key miou, x was not logged; found aAcc, ')
    assert not (tmp_path / 'p.png').exists()


def test_missing_runs(monkeypatch, capsys, tmp_path):
    assert f'{tmp_path}/no not found' in call(monkeypatch, capsys, tmp_path / 'no', '--out', tmp_path / 'p')
    message = call(monkeypatch, capsys, tmp_path, '--out', tmp_path / 'p')
    assert f'{tmp_path}: no */vis_data/scalars.json in it; expected the work dir of a training' in message


def test_empty_log(monkeypatch, capsys, tmp_path):
    start(tmp_path, '20260101_100000', [])
    start(tmp_path, '20260101_110000', [], tail='{"lr"')
    message = call(monkeypatch, capsys, tmp_path, '--out', tmp_path / 'p')
    assert f'{tmp_path}: no training or validation was logged yet' in message


@pytest.mark.parametrize('line', ['{"lr": 0.1, "lo', '[1, 2]', '\x00\x00'])
def test_damaged_line(monkeypatch, capsys, tmp_path, line):
    file = start(tmp_path, '20260101_100000', [train(1, 2.0)], tail=line + '\n' + json.dumps(train(3, 1.0)))
    message = call(monkeypatch, capsys, tmp_path, '--out', tmp_path / 'p')
    assert f'{file}, line 2: expected scalars as JSON' in message


def test_nothing_to_draw(monkeypatch, capsys, tmp_path):
    start(tmp_path, '20260101_100000', [dict(acc=1.0, step=1, iter=1)])
    assert 'none of loss, lr, mIoU was logged; found acc' in call(monkeypatch, capsys, tmp_path, '--out', 'p')


def test_wrong_arguments(monkeypatch, capsys, resumed, tmp_path):
    out = ['--out', tmp_path / 'p']
    assert 'weight=1.0; expected 0 <= weight < 1' in call(monkeypatch, capsys, resumed, *out, '--smooth', 1)
    assert '1 runs, labels a, b; expected one label per run' in call(
        monkeypatch, capsys, resumed, *out, '--labels', 'a', 'b'
    )
    assert '; expected different ones' in call(monkeypatch, capsys, resumed, f'{resumed}/', *out)
    assert 'is a folder' in call(monkeypatch, capsys, resumed, '--out', tmp_path)
