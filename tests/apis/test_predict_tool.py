"""tools/predict.py, as a user types it."""

import csv
import functools
import http.server
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import CLASSES, save_run, tiny_config, write_image

from mmseg_segmenter.apis import Predictor

ROOT = Path(__file__).parent.parent.parent
TOOL = str(ROOT / 'tools' / 'predict.py')


@pytest.fixture
def predict(monkeypatch, tmp_path, capsys):
    """Call the tool in this process; return exit code, stdout and stderr."""

    def call(*args):
        capsys.readouterr()
        monkeypatch.setattr(sys, 'argv', [TOOL, '--device', 'cpu', *map(str, args)])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(TOOL, run_name='__main__')
        out, err = capsys.readouterr()
        if isinstance(stop.value.code, str):
            return 1, out, stop.value.code
        return stop.value.code, out, err

    return call


@pytest.fixture
def images(tmp_path):
    for i in range(4):
        write_image(tmp_path / 'images' / f'{i // 2}' / f'{i}.png', seed=i)
    return tmp_path / 'images'


def summary(out):
    with open(out / 'summary.csv', newline='') as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ('package', 'arguments', 'extra'),
    [
        ('rasterio', ['images', '--raster', '--out', 'out'], 'raster'),
        ('pyarrow', ['images', '--engine', 'ray', '--out', 'out'], 'ray'),
        ('s3fs', ['s3://bucket/images', '--out', 'out'], 's3'),
        ('s3fs', ['images', '--out', 's3://bucket/out'], 's3'),
    ],
)
def test_without_an_extra(predict, run_folder, images, tmp_path, monkeypatch, package, arguments, extra):
    """One line says what to install, before the model is built."""
    monkeypatch.setitem(sys.modules, package, None)
    code, _, error = predict(run_folder, *arguments)
    assert code == 1 and error.count('\n') == 0 and f"pip install 'mmseg_segmenter[{extra}]'" in error
    assert not (tmp_path / 'out').exists()


def test_only_failed_inputs(predict, run_folder, tmp_path, monkeypatch):
    """Nothing is said about results that do not exist."""
    pytest.importorskip('rasterio')
    (tmp_path / 'a.vrt').write_text('no raster')
    code, out, error = predict(run_folder, 'a.vrt', '--out', 'out')
    assert code == 1 and '1 of 1 inputs failed' in error
    assert 'results are in' not in out and 'rasters:' not in out


def test_both_forms(predict, run_folder, images, tmp_path):
    """CONFIG CHECKPOINT INPUT... and RUN_FOLDER INPUT... give the same."""
    for i, model in enumerate(([run_folder / 'config.py', run_folder / 'model.pth'], [run_folder],
                               [run_folder, run_folder / 'model.pth'])):  # fmt: skip
        code, out, _ = predict(*model, images, '--out', tmp_path / f'out{i}', '--outputs', 'labels,overlay')
        assert code == 0 and '4 of 4 inputs in ' in out and f'results are in {tmp_path / f"out{i}"}' in out
    predictor = Predictor(run_folder, device='cpu')
    for path in images.rglob('*.png'):
        name = path.relative_to(images)
        wanted = predictor.predict(path).labels
        for i in range(3):
            assert np.array_equal(np.asarray(Image.open(tmp_path / f'out{i}' / 'labels' / name)), wanted)
            assert (tmp_path / f'out{i}' / 'overlay' / name.with_suffix('.jpg')).exists()
    rows = summary(tmp_path / 'out0')
    assert [row['name'] for row in rows] == ['0/0', '0/1', '1/2', '1/3']
    assert abs(sum(float(rows[0][f'share of {name}']) for name in CLASSES) - 1) < 1e-5


def test_options_reach_the_model(predict, run_folder, images, tmp_path):
    predict(run_folder, images, '--out', tmp_path / 'a', '--outputs', 'labels', '--tta', '--batch-size', '3')
    predictor = Predictor(run_folder, device='cpu', tta=True)
    for path in images.rglob('*.png'):
        found = np.asarray(Image.open(tmp_path / 'a' / 'labels' / path.relative_to(images)))
        assert np.array_equal(found, predictor.predict(path).labels)
    predict(run_folder, images, '--out', tmp_path / 'b', '--outputs', 'labels', '--window-batch-size', '1',
            '--cfg-options', 'model.test_cfg.stride=(32,32)')  # fmt: skip
    predictor = Predictor(run_folder, device='cpu', cfg_options={'model.test_cfg.stride': (32, 32)})
    path = next(images.rglob('*.png'))
    found = np.asarray(Image.open(tmp_path / 'b' / 'labels' / path.relative_to(images)))
    assert np.array_equal(found, predictor.predict(path).labels)


def test_list_and_annotations(predict, run_folder, images, tmp_path):
    (tmp_path / 'list.txt').write_text('images/0/0.png\nimages/1/*.png\n')
    for name in ('0', '2', '3'):
        (tmp_path / 'gt').mkdir(exist_ok=True)
        Image.fromarray(np.zeros((40, 56), np.uint8)).save(tmp_path / 'gt' / f'{name}.png')
    code, _, _ = predict(run_folder, tmp_path / 'list.txt', '--out', tmp_path / 'out', '--annotations', tmp_path / 'gt')
    assert code == 0
    assert sorted(p.name for p in (tmp_path / 'out' / 'comparison').iterdir()) == ['0.png', '2.png', '3.png']
    assert (tmp_path / 'out' / 'overlay').is_dir()


def test_bad_files(predict, run_folder, images, tmp_path):
    """They are listed at the end; the others are done; the exit code tells."""
    (images / 'text.png').write_text('text')
    (images / 'cut.png').write_bytes((images / '0' / '0.png').read_bytes()[:99])
    code, out, err = predict(run_folder, images, '--out', tmp_path / 'out')
    assert code == 1 and '4 of 6 inputs in' in out
    assert re.search(r'^failed: .*text\.png \(4 bytes\) is not an image of a known format$', err, re.M)
    assert '2 of 6 inputs failed' in err
    rows = {row['name']: row for row in summary(tmp_path / 'out')}
    assert rows['text']['status'] == 'failed' and rows['0/0']['status'] == 'done'
    write_image(images / 'text.png')
    code, out, err = predict(run_folder, images, '--out', tmp_path / 'out', '--resume')
    assert code == 1 and '4 of 6 inputs are done already' in out and '1 of 2 inputs in' in out
    assert len(summary(tmp_path / 'out')) == 6


def test_resume_and_force(predict, run_folder, images, tmp_path):
    out = tmp_path / 'out'
    command = [run_folder, images, '--out', out, '--outputs', 'labels,mask']
    assert predict(*command)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*.png')}
    code, _, err = predict(*command)
    assert code == 1 and 'has results of an earlier run; continue it with --resume' in err and '\n' not in err
    (out / 'mask' / '0' / '1.png').unlink()
    write_image(images / 'new.png')
    code, text, _ = predict(*command, '--resume')
    assert code == 0 and '3 of 5 inputs are done already' in text and '2 of 2 inputs in' in text
    after = {path: path.stat().st_mtime_ns for path in out.rglob('*.png')}
    changed = {path.relative_to(out).as_posix() for path in after if after[path] != before.get(path)}
    assert changed == {'labels/0/1.png', 'mask/0/1.png', 'labels/new.png', 'mask/new.png'}
    assert len(summary(out)) == 5 and all(row['status'] == 'done' for row in summary(out))
    code, _, err = predict(*command, '--resume', '--tta')
    assert code == 1 and 'has results for tta=False, not True' in err
    code, text, _ = predict(*command, '--resume')
    assert code == 0 and '5 of 5 inputs are done already' in text
    code, _, err = predict(run_folder, 'nothing.png', '--out', out, '--outputs', 'labels,mask', '--force')
    assert code == 1 and 'nothing.png not found' in err
    code, text, _ = predict(*command, '--resume')
    assert code == 0 and '5 of 5 inputs are done already' in text
    code, text, _ = predict(*command, '--force', '--tta')
    assert code == 0 and '5 of 5 inputs in' in text


def test_resume_with_other_inputs(predict, run_folder, images, tmp_path):
    """Their results join those of the first run, and replace none."""
    write_image(tmp_path / 'more' / '0' / '0.png', seed=9)
    command = [run_folder, '--out', tmp_path / 'out', '--outputs', 'labels']
    assert predict(*command, images)[0] == 0
    assert predict(*command, '--resume', 'more')[0] == 0
    rows = {row['source']: row['name'] for row in summary(tmp_path / 'out')}
    assert len(rows) == 5 and len(set(rows.values())) == 5 and rows['more/0/0.png'] == '0/0.png'
    # the same files by another path
    code, text, _ = predict(*command, '--resume', 'images')
    assert code == 0 and '4 of 4 inputs are done already' in text


def test_raster(predict, run_folder, tmp_path):
    pytest.importorskip('rasterio')
    write_image(tmp_path / 'a.png', (70, 90))
    code, text, _ = predict(run_folder, 'a.png', '--out', 'out', '--raster')
    assert code == 0 and 'rasters: 1; for them only labels (GeoTIFF) are written, no overlay' in text
    with Image.open(tmp_path / 'out' / 'labels' / 'a.tif') as labels:
        wanted = Predictor(run_folder, device='cpu').predict(tmp_path / 'a.png').labels
        assert np.array_equal(np.asarray(labels), wanted)
    assert summary(tmp_path / 'out')[0]['kind'] == 'raster'


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['nothing.png'], 'nothing.png not found'),
        (['empty'], 'empty has no images'),
        (['images', '--outputs', 'masks'], "outputs='masks'; expected some of overlay"),
        (['images', '--opacity', '3'], 'opacity=3.0; expected 0 to 1'),
        (['images', '--batch-size', '0'], 'batch_size=0; expected at least 1'),
        (['images', '--annotations', 'nothing'], 'folder nothing not found'),
        (['images', '--cfg-options', 'a'], '--cfg-options a: expected KEY=VALUE'),
        (['images', '--out', 'file'], 'cannot write file'),
        (['images', '--out', '/proc/nothing'], 'cannot write /proc/nothing'),
        (['images', '--out', 'nonsense://a'], 'nonsense'),
        (['images', '--device', 'tpu'], "device='tpu'"),
        (['images', '--device', 'cuda:99'], "device='cuda:99'"),
        (['other.pth'], 'no input after the checkpoint other.pth'),
        (['other.pth', 'images'], 'checkpoint other.pth not found'),
    ],
)
def test_wrong_arguments(predict, run_folder, images, tmp_path, args, message):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').touch()
    out = [] if '--out' in args else ['--out', 'out']
    code, _, err = predict(run_folder, *args, *out)
    assert code == 1 and message in err and '\n' not in err
    assert not (tmp_path / 'out').exists()


def test_strange_names(predict, run_folder, tmp_path):
    """Unicode, spaces, newlines, quotes and leading dashes."""
    names = [
        'ünï 日本.png',
        ' two  spaces .png',
        'new\nline.png',
        '-dash.png',
        'quote"\'.png',
        'a%20b.png',
        '$(x).png',
        'x,y;.png',
    ]
    for i, name in enumerate(names):
        write_image(tmp_path / 'images' / 'süb dir' / name, seed=i)
    (tmp_path / 'images' / 'bad\nname.png').write_text('text')
    code, _, err = predict(run_folder, tmp_path / 'images', '--out', tmp_path / 'ö ut', '--outputs', 'labels,overlay')
    assert code == 1 and 'bad name.png' in err and '1 of 9 inputs failed' in err
    assert sorted(p.name for p in (tmp_path / 'ö ut' / 'labels' / 'süb dir').iterdir()) == sorted(names)
    assert {row['source'] for row in summary(tmp_path / 'ö ut') if row['status'] == 'done'} == {
        str(tmp_path / 'images' / 'süb dir' / name) for name in names
    }
    code, out, _ = predict(run_folder, tmp_path / 'images', '--out', tmp_path / 'ö ut', '--outputs', 'labels,overlay',
                           '--resume')  # fmt: skip
    assert '8 of 9 inputs are done already' in out


def test_http(predict, run_folder, images, tmp_path):
    """A loopback server; a missing file is one that failed."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(images))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}'
        uris = (f'{url}/0/0.png?x=1', f'{url}/1/2.png', f'{url}/nothing.png')
        code, _, err = predict(run_folder, *uris, '--out', tmp_path / 'out',
                               '--outputs', 'labels')  # fmt: skip
        server.shutdown()
    assert code == 1 and f'failed: cannot read {url}/nothing.png: HTTP status 404' in err
    wanted = Predictor(run_folder, device='cpu').predict(images / '0' / '0.png').labels
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'out' / 'labels' / '0' / '0.png')), wanted)
    assert (tmp_path / 'out' / 'labels' / '1' / '2.png').exists()


@pytest.mark.skipif(sys.platform == 'win32', reason='signals')
def test_interrupt(tmp_path):
    """Ctrl-C leaves whole files and says how to go on; --resume does the rest."""
    run = save_run(tmp_path / 'run', tiny_config(model__backbone__num_layers=8))
    for i in range(30):
        write_image(tmp_path / 'images' / f'{i:02}.png', (300, 400), i)
    out = tmp_path / 'out'
    command = [sys.executable, TOOL, str(run), str(tmp_path / 'images'), '--out', str(out), '--outputs', 'labels']
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob('labels/*.png')) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130, err[-2000:]
    assert re.search(r'interrupted; \d+ inputs are left. The same command with --resume continues', err)
    assert 'Traceback' not in err
    first = {path: path.stat().st_mtime_ns for path in out.glob('labels/*')}
    assert 0 < len(first) < 30 and all(np.asarray(Image.open(path)).shape == (300, 400) for path in first)
    assert len(summary(out)) == len(first)
    second = subprocess.run([*command, '--resume'], env=env, capture_output=True, text=True, check=True)
    assert f'{len(first)} of 30 inputs are done already' in second.stdout
    assert len(list(out.glob('labels/*'))) == 30 and len(summary(out)) == 30
    assert all(path.stat().st_mtime_ns == written for path, written in first.items())


def test_help_is_quick_and_complete():
    start = time.monotonic()
    text = subprocess.run([sys.executable, TOOL, '--help'], capture_output=True, text=True, check=True).stdout
    assert time.monotonic() - start < 5  # it imports nothing
    assert 'CONFIG CHECKPOINT INPUT... --out DIR' in text and 'Exit codes' in text
