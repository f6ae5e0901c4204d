"""Many inputs: reading, the model and writing overlap, and one that fails stops nothing."""

import csv
import json
import os
import threading
import time

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import CLASSES, PALETTE, write_image

from mmseg_segmenter.apis import Predictor
from mmseg_segmenter.apis import pipeline as pipeline_module
from mmseg_segmenter.apis.inputs import Task, find_tasks
from mmseg_segmenter.apis.journal import Journal, Result, Results, write_summary
from mmseg_segmenter.apis.loading import AnnotationFormat, annotation_format
from mmseg_segmenter.apis.outputs import Annotations, OutputSpec
from mmseg_segmenter.apis.pipeline import Pipeline
from mmseg_segmenter.errors import ExistingFileError, UserError


@pytest.fixture(scope='module')
def predictor(run_folder):
    return Predictor(run_folder, device='cpu')


@pytest.fixture
def images(tmp_path):
    """A folder of images of three sizes, in sub-folders."""
    sizes = [(40, 56), (40, 56), (64, 32), (40, 56), (33, 71), (64, 32), (40, 56)]
    for i, size in enumerate(sizes):
        write_image(tmp_path / 'images' / ('even' if i % 2 == 0 else 'odd') / f'{i}.png', size, i)
    return tmp_path / 'images'


def run(predictor, images, out, kinds=('labels',), **options):
    pipeline = Pipeline(predictor, OutputSpec(str(out), kinds), **options)
    return {result.name: result for result in pipeline.run(find_tasks([str(images)]))}


@pytest.mark.parametrize('batch_size', [1, 3])
def test_results_are_those_of_the_predictor(predictor, images, tmp_path, batch_size):
    results = run(predictor, images, tmp_path / 'out', batch_size=batch_size)
    assert sorted(results) == ['even/0', 'even/2', 'even/4', 'even/6', 'odd/1', 'odd/3', 'odd/5']
    for name, result in results.items():
        assert result.status == 'done' and result.kind == 'image' and result.seconds > 0
        wanted = predictor.predict(images / f'{name}.png').labels
        assert (result.height, result.width) == wanted.shape
        assert result.files == (f'labels/{name}.png',)
        assert np.array_equal(np.asarray(Image.open(tmp_path / 'out' / 'labels' / f'{name}.png')), wanted)
        assert list(result.pixels) == np.bincount(wanted.ravel(), minlength=5).tolist()


def test_images_of_one_size_share_batches(predictor, images, tmp_path, monkeypatch):
    sizes = []
    segment = predictor.segment
    monkeypatch.setattr(predictor, 'segment', lambda batch: sizes.append(len(batch)) or segment(batch))
    run(predictor, images, tmp_path / 'out', batch_size=2)
    assert sorted(sizes) == [1, 2, 2, 2]


def test_every_output(predictor, images, tmp_path):
    for path in images.rglob('*.png'):
        labels = predictor.predict(path).labels.copy()
        labels[:8] = 255
        target = tmp_path / 'annotations' / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(target)
    kinds = ('overlay', 'mask', 'labels', 'probabilities', 'comparison', 'legend')
    annotations = Annotations(str(tmp_path / 'annotations'), AnnotationFormat('.jpg', '.png', False))
    outputs = OutputSpec(str(tmp_path / 'out'), kinds, opacity=1.0, overlay_suffix='.png', annotations=annotations)
    results = list(Pipeline(predictor, outputs).run(find_tasks([str(images)])))
    assert [result.status for result in results] == ['done'] * 7
    assert {path.parent.parent.name for path in (tmp_path / 'out').rglob('*.*')} == set(kinds)
    assert sorted(results[0].files) == sorted(p.relative_to(tmp_path / 'out').as_posix() for kind in kinds
                                              for p in (tmp_path / 'out' / kind).glob('even/0.*'))  # fmt: skip
    for path in images.rglob('*.png'):
        prediction, name = predictor.predict(path), path.relative_to(images).with_suffix('')
        colours = np.array(PALETTE, np.uint8)[prediction.labels]
        for kind in ('overlay', 'mask'):
            image = Image.open(tmp_path / 'out' / kind / f'{name}.png')
            assert np.array_equal(np.asarray(image.convert('RGB')), colours)
        assert np.array_equal(np.asarray(image), prediction.labels) and image.mode == 'P'
        with np.load(tmp_path / 'out' / 'probabilities' / f'{name}.npz') as file:
            assert np.array_equal(file['probabilities'], prediction.probabilities)
            assert file['probabilities'].dtype == np.float16 and tuple(file['classes']) == CLASSES
        assert Image.open(tmp_path / 'out' / 'comparison' / f'{name}.png').width > 4 * prediction.labels.shape[1]
        legend = np.asarray(Image.open(tmp_path / 'out' / 'legend' / f'{name}.png'))
        shown = {tuple(colour) for colour in legend.reshape(-1, 3).tolist()}
        for entry in prediction.legend():
            assert entry.colour in shown


def test_annotations_that_do_not_fit(predictor, images, tmp_path):
    (tmp_path / 'annotations').mkdir()
    annotations = Annotations(str(tmp_path / 'annotations'), AnnotationFormat('.jpg', '.png', False))
    outputs = OutputSpec(str(tmp_path / 'out'), ('comparison',), annotations=annotations)
    tasks = find_tasks([str(images / 'even' / '0.png')])
    (result,) = Pipeline(predictor, outputs).run(tasks)
    assert result.status == 'failed' and 'annotations/0.png of ' in result.error and 'not found' in result.error
    for labels, words in (
        (np.zeros((40, 55), np.uint8), 'annotation of size (40, 55), expected (40, 56)'),
        (np.full((40, 56), 7, np.uint8), 'found label 7, expected 0 to 4'),
        (np.zeros((40, 56, 3), np.uint8), 'expected a label map with one channel'),
    ):
        Image.fromarray(labels).save(tmp_path / 'annotations' / '0.png')
        (result,) = Pipeline(predictor, outputs).run(tasks)
        assert result.status == 'failed' and words in result.error


def test_format_of_annotations():
    from mmengine.config import Config

    def of(**dataset):
        return annotation_format(Config(dict(test_dataloader=dict(dataset=dataset))))

    assert of(type='ADE20KDataset') == ('.jpg', '.png', True)
    assert of(type='CityscapesDataset') == ('_leftImg8bit.png', '_gtFine_labelTrainIds.png', False)
    assert of(type='BaseSegDataset', img_suffix='.tif') == ('.tif', '.png', False)
    loading = dict(type='LoadAnnotations', reduce_zero_label=True)
    assert of(type='BaseSegDataset', pipeline=[loading]) == ('.jpg', '.png', True)


def test_annotations_with_label_0_for_nothing(tmp_path):
    Image.fromarray(np.array([[0, 1, 255, 5]], np.uint8)).save(tmp_path / 'a_gt.png')
    annotations = Annotations(str(tmp_path), AnnotationFormat('_image.jpg', '_gt.png', True))
    assert annotations.read('somewhere/a_image.jpg', 'a_image').tolist() == [[255, 0, 255, 4]]


def test_a_bad_file_stops_nothing(predictor, images, tmp_path):
    (images / 'odd' / 'text.png').write_text('text')
    (images / 'cut.png').write_bytes((images / 'odd' / '1.png').read_bytes()[:100])
    for batch_size in (1, 3):
        results = run(predictor, images, tmp_path / f'out{batch_size}', batch_size=batch_size)
        failed = {name: result.error for name, result in results.items() if result.status == 'failed'}
        assert len(results) == 9 and set(failed) == {'odd/text', 'cut'}
        assert 'text.png' in failed['odd/text'] and 'is not an image' in failed['odd/text']


def test_an_image_on_which_the_model_fails(predictor, images, tmp_path, monkeypatch):
    """Out of memory, say. The others of its batch are done."""
    segment = predictor.segment

    def limited(batch):
        if any(one.image.source.endswith('3.png') for one in batch):
            raise torch.OutOfMemoryError('CUDA out of memory.\nTried to allocate 20.00 GiB')
        return segment(batch)

    monkeypatch.setattr(predictor, 'segment', limited)
    results = run(predictor, images, tmp_path / 'out', batch_size=4)
    failed = [result for result in results.values() if result.status == 'failed']
    assert [result.name for result in failed] == ['odd/3'] and len(results) == 7
    assert failed[0].error.startswith('out of memory; try --batch-size 1') and '\n' not in failed[0].error


def test_a_result_that_cannot_be_written(predictor, images, tmp_path):
    (tmp_path / 'out' / 'labels' / 'odd').mkdir(parents=True)
    (tmp_path / 'out' / 'labels' / 'odd' / '3.png').mkdir()
    results = run(predictor, images, tmp_path / 'out')
    failed = [result for result in results.values() if result.status == 'failed']
    assert [result.name for result in failed] == ['odd/3'] and '3.png' in failed[0].error


def test_stop(predictor, images, tmp_path):
    """Whole files are left, each of them reported."""
    pipeline = Pipeline(predictor, OutputSpec(str(tmp_path / 'out'), ('labels',)))
    results = []
    for result in pipeline.run(find_tasks([str(images)]), stop=lambda: len(results) >= 2):
        results.append(result)
    assert 2 <= len(results) < 7
    written = sorted(path.relative_to(tmp_path / 'out').as_posix() for path in (tmp_path / 'out').rglob('*.png'))
    assert written == sorted(file for result in results for file in result.files)
    assert not list((tmp_path / 'out').rglob('*.part'))


def test_abandoned_run_ends_its_threads(predictor, images, tmp_path):
    before = threading.active_count()
    pipeline = Pipeline(predictor, OutputSpec(str(tmp_path / 'out'), ('labels',)))
    for _ in pipeline.run(find_tasks([str(images)])):
        break
    assert threading.active_count() == before


def test_memory_bounds_what_is_read_ahead(predictor, images, tmp_path, monkeypatch):
    """With room for two images, no third one is read before one is written; a large one goes alone."""
    monkeypatch.setattr(pipeline_module, '_BYTES', 2 * 40 * 56 * 16)
    alive, most, lock = [0], [0], threading.Lock()
    prepare, write = predictor.prepare, OutputSpec.write

    def counted(image):
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        return prepare(image)

    def slow_write(self, prediction, name):
        time.sleep(0.02)
        files = write(self, prediction, name)
        with lock:
            alive[0] -= 1
        return files

    monkeypatch.setattr(predictor, 'prepare', counted)
    monkeypatch.setattr(OutputSpec, 'write', slow_write)
    write_image(images / 'large.png', (200, 200))
    results = run(predictor, images, tmp_path / 'out', batch_size=4, readers=4)
    assert len(results) == 8 and {result.status for result in results.values()} == {'done'}
    assert most[0] <= 2


def test_other_kinds_of_input(predictor, images, tmp_path, monkeypatch):
    """They run through their handlers, and can be stopped."""

    def handler(predictor, task, outputs, batch_size, progress):
        for i in range(4):
            progress(i / 4)
        if task.name == 'bad':
            raise UserError('cannot')
        return Result(task.source, task.name, 'video', height=1, width=2)

    monkeypatch.setitem(pipeline_module.HANDLERS, 'video', handler)
    shares = []
    pipeline = Pipeline(
        predictor, OutputSpec(str(tmp_path / 'out'), ('labels',)), progress=lambda task, share: shares.append(share)
    )
    tasks = [Task('a', 'a', 'video'), *find_tasks([str(images)]), Task('b', 'bad', 'video')]
    results = {result.name: result for result in pipeline.run(tasks)}
    assert len(results) == 9 and results['a'].status == 'done' and results['a'].width == 2
    assert results['bad'].status == 'failed' and results['bad'].error == 'cannot'
    assert shares == [0, 0.25, 0.5, 0.75] * 2
    stopped = Pipeline(predictor, pipeline.outputs, progress=lambda *_: shares.clear())
    (result,) = stopped.run([Task('a', 'a', 'video')], stop=lambda: not shares)
    assert result.status == 'failed' and result.error == 'interrupted'


def test_results_at_a_uri(predictor, images, run_folder):
    fs = fsspec.filesystem('memory')
    try:
        for path in images.rglob('*.png'):
            fs.pipe(f'/in/{path.relative_to(images)}', path.read_bytes())
        pipeline = Pipeline(predictor, OutputSpec('memory://out', ('mask', 'probabilities')))
        results = list(pipeline.run(find_tasks(['memory://in'])))
        assert [result.status for result in results] == ['done'] * 7
        for result in results:
            with fs.open('/out/' + result.files[0]) as file:
                labels = np.asarray(Image.open(file))
            assert np.array_equal(labels, predictor.predict(images / f'{result.name}.png').labels)
        assert len(fs.find('/out')) == 14
    finally:
        fs.rm('/', recursive=True)


def test_wrong_outputs():
    with pytest.raises(UserError, match="outputs='overlays'; expected some of overlay, mask"):
        OutputSpec('out', ('overlays',))
    with pytest.raises(UserError, match=r'opacity=2\.0'):
        OutputSpec('out', opacity=2.0)
    with pytest.raises(UserError, match='needs the folder of the annotations'):
        OutputSpec('out', ('comparison',))


# The journal

ROW = Result('in/a.png', 'a', height=2, width=3, pixels=(4, 2), seconds=0.5, files=('labels/a.png',))


@pytest.fixture(params=['folder', 'uri'])
def place(request, tmp_path):
    if request.param == 'folder':
        yield str(tmp_path / 'out')
        return
    yield 'memory://journals'
    fsspec.filesystem('memory').rm('/', recursive=True)


def test_journal(place):
    """What one process writes, the next one reads, from all writers."""
    settings = dict(tta=False, options={'bands': (1, 2)})
    failed = ROW._replace(source='b', name='b', status='failed', error='why')
    first, second = Journal(place, settings, '0'), Journal(place, settings, '1')
    assert first.start() == {}
    first.write(ROW)
    second.write(failed)
    first.write(ROW._replace(source='c', name='c\nd'))
    first.flush()
    second.flush()
    found = Journal(place, settings).start(resume=True)
    assert found == {'in/a.png': ROW, 'b': failed, 'c': ROW._replace(source='c', name='c\nd')}
    third = Journal(place, settings)
    third.write(failed._replace(status='done', error=''))
    third.write(failed)
    third.flush()
    assert Journal(place, settings).start(resume=True)['b'].status == 'done'
    with pytest.raises(ExistingFileError, match='continue it with --resume, or replace them with --force'):
        Journal(place, settings).start()
    with pytest.raises(UserError, match='has results for tta=False, not True'):
        Journal(place, {**settings, 'tta': True}).start(resume=True)
    assert Journal(place, {}).start(force=True) == {}
    assert len(Journal(place, settings).start(resume=True)) == 3  # still there, should the run not begin
    Journal(place, {}).clear()
    assert Journal(place, {}).start() == {}


def test_results_in_a_file():
    """They come back as they were, in their order, also from a path that is not text."""
    strange = os.fsdecode(b'in/\xff\n.png')
    rows = {strange: ROW._replace(source=strange), 'b': ROW._replace(status='failed', error='why'), 'a': ROW}
    results = Results({'b': ROW, **rows})
    assert list(results.items()) == [('b', rows['b']), (strange, rows[strange]), ('a', ROW)] and len(results) == 3
    del results['b']
    assert 'b' not in results and results.get('b') is None and results == {strange: rows[strange], 'a': ROW}
    with pytest.raises(KeyError):
        del results['b']


def test_half_a_line(tmp_path):
    """Of a process that was killed. What follows is on a line of its own."""
    journal = Journal(str(tmp_path), {})
    journal.write(ROW)
    (path,) = (tmp_path / 'journal').iterdir()
    with open(path, 'a') as file:
        file.write('{"source": "b", "na')
    again = Journal(str(tmp_path), {})
    assert again.start(resume=True) == {'in/a.png': ROW}
    again.write(ROW._replace(source='c'))
    assert set(Journal(str(tmp_path), {}).start(resume=True)) == {'in/a.png', 'c'}
    assert json.loads(path.read_text().splitlines()[0]) == {'settings': {}}


def test_summary(tmp_path):
    failed = Result('b\n"x".png', 'b', status='failed', error='why, oh why')
    write_summary(str(tmp_path), [ROW, failed], ['sky', 'road, wet'])
    with open(tmp_path / 'summary.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert rows[0]['share of sky'] == '0.666667' and rows[0]['share of road, wet'] == '0.333333'
    assert rows[0]['seconds'] == '0.5' and rows[0]['height'] == '2'
    assert rows[1]['source'] == failed.source and rows[1]['error'] == failed.error and rows[1]['share of sky'] == ''
