"""Inputs of every kind are found, and their results never share a name."""

import os
import random

import fsspec
import pytest
from PIL import Image, TiffImagePlugin
from tiny_run import write_image

from mmseg_segmenter.apis.inputs import Task, find_tasks, read_header
from mmseg_segmenter.errors import MissingFileError, UserError


@pytest.fixture
def touch(tmp_path, monkeypatch):
    """Make empty files below the working directory."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return make


def names(*inputs, **options):
    return {task.source: task.name for task in find_tasks(inputs, **options)}


def test_folder(touch):
    touch('data/b.JPG', 'data/a.png', 'data/sub/deep/c.tif', 'data/notes.md', 'data/.hidden.png', 'data/.git/d.png')
    assert names('data') == {'data/a.png': 'a', 'data/b.JPG': 'b', 'data/sub/deep/c.tif': 'sub/deep/c'}
    assert [task.source for task in find_tasks(['data/'])] == ['data/a.png', 'data/b.JPG', 'data/sub/deep/c.tif']


def test_folder_with_links(touch, tmp_path):
    """Linked folders are searched; a link to a folder above does not go round for ever."""
    touch('data/a.png', 'elsewhere/b.png')
    os.symlink(tmp_path / 'elsewhere', 'data/linked')
    os.symlink(tmp_path / 'data', 'data/loop')
    assert sorted(names('data').values()) == ['a', 'linked/b']


def test_results_in_the_folder_of_the_images_are_no_inputs(touch):
    touch('data/a.png', 'data/out/overlay/a.jpg')
    assert names('data', exclude='data/out') == {'data/a.png': 'a'}
    assert names('data/**/*.*', exclude='data/out') == {'data/a.png': 'a'}


def test_files(touch):
    """Names keep the folders in which the files differ."""
    touch('x/1.png', 'y/1.png', 'y/2.png')
    assert names('x/1.png') == {'x/1.png': '1'}
    assert names('y/1.png', 'y/2.png') == {'y/1.png': '1', 'y/2.png': '2'}
    assert names('x/1.png', 'y/1.png', 'y/2.png') == {'x/1.png': 'x/1', 'y/1.png': 'y/1', 'y/2.png': 'y/2'}


def test_pattern(touch):
    touch('data/x/1.png', 'data/y/1.png', 'data/y/sub/2.png', 'data/y/notes')
    assert names('data/*/1.png') == {'data/x/1.png': 'x/1', 'data/y/1.png': 'y/1'}
    assert sorted(names('data/**/*.png').values()) == ['x/1', 'y/1', 'y/sub/2']
    assert sorted(names('d*').values()) == ['data/x/1', 'data/y/1', 'data/y/sub/2']


def test_file_with_the_signs_of_a_pattern(touch):
    touch('a[1].png', 'a1.png')
    assert names('a[1].png') == {'a[1].png': 'a[1]'}


def test_list(touch, tmp_path):
    touch('data/x/1.png', 'data/y/ 2 é\u2003.png', 'more/3.png')
    (tmp_path / 'list.txt').write_text('\ufeffdata/x/1.png\r\n\r\ndata/y/*.png\r\nmore\r\n', encoding='utf-8')
    assert names('list.txt') == {'data/x/1.png': '1', 'data/y/ 2 é\u2003.png': ' 2 é\u2003', 'more/3.png': '3'}


def test_bad_lists(touch, tmp_path):
    (tmp_path / 'empty.txt').write_text('\n \n')
    with pytest.raises(UserError, match=r'empty\.txt has no lines'):
        find_tasks(['empty.txt'])
    (tmp_path / 'binary.txt').write_bytes(b'\xff\xd8\xff')
    with pytest.raises(UserError, match=r'binary\.txt is not a text file'):
        find_tasks(['binary.txt'])
    (tmp_path / 'round.txt').write_text('round.txt\n')
    with pytest.raises(UserError, match='lists of lists'):
        find_tasks(['round.txt'])


def test_nothing_found(touch):
    touch('empty/notes.md')
    with pytest.raises(UserError, match='empty has no images'):
        find_tasks(['empty'])
    with pytest.raises(MissingFileError, match=r'nothing\.png not found'):
        find_tasks(['nothing.png'])
    with pytest.raises(MissingFileError, match=r'no file matches n\*\.png'):
        find_tasks(['n*.png'])


def test_one_input_named_twice(touch, tmp_path):
    touch('data/a.png')
    assert len(find_tasks(['data', 'data/a.png', str(tmp_path / 'data'), 'data/../data/*.png'])) == 1


@pytest.mark.parametrize('clash', [['a.png', 'a.jpg'], ['a.png', 'A.png'], ['a.png', 'a.jpg', 'a.jpg.png', 'A.JPG']])
def test_results_never_share_a_name(touch, clash):
    """Not even where case does not matter, in whatever order the inputs come."""
    touch(*(f'data/{name}' for name in clash))
    if len(os.listdir('data')) < len(clash):
        pytest.skip('case does not matter here')
    found = names('data')
    assert len({name.casefold() for name in found.values()}) == len(clash)
    files = [f'data/{name}' for name in clash]
    for _ in range(5):
        random.shuffle(files)
        assert names(*files) == found
    if len(clash) == 2 and clash[1] == 'a.jpg':
        assert found == {'data/a.png': 'a.png', 'data/a.jpg': 'a.jpg'}


def test_folders_that_share_names(touch):
    touch('x/1.png', 'y/1.png')
    found = names('x', 'y')
    assert len(set(found.values())) == 2 and names('y', 'x') == found


def test_known_names_are_kept(touch):
    """What a first run called `a` is still called so when a new image has the same stem."""
    touch('data/a.png')
    known = names('data')
    touch('data/a.jpg', 'data/b.png')
    found = names('data', known=known)
    assert found['data/a.png'] == 'a' and found['data/a.jpg'] == 'a.jpg' and found['data/b.png'] == 'b'


def test_known_names_of_other_inputs_are_taken(touch, tmp_path):
    """A second run in the same folder of results does not replace those of the first one."""
    touch('x/a.png', 'y/a.png')
    known = names('x')
    assert names('y', known=known) == {'y/a.png': 'a.png'}
    assert names(str(tmp_path / 'x'), known=known) == {str(tmp_path / 'x' / 'a.png'): 'a'}


def test_kinds(touch):
    touch('a.png', 'b.vrt', 'c.MP4')
    assert [task.kind for task in find_tasks(['.'])] == ['auto', 'raster', 'video']
    assert find_tasks(['camera:0']) == [Task('camera:0', 'camera-0', 'camera')]
    assert [task.kind for task in find_tasks(['a.png'], raster=True)] == ['raster']
    assert [task.kind for task in find_tasks(['a.png'], raster=False)] == ['image']


def test_header(tmp_path):
    path = write_image(tmp_path / 'a.png', (40, 56))
    assert read_header(str(path)) == (40 * 56, False, False)
    Image.open(path).save(tmp_path / 'a.tif')
    assert read_header(str(tmp_path / 'a.tif')) == (40 * 56, False, False)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[34735] = (1, 1, 0, 0)
    tags.tagtype[34735] = 3
    Image.open(path).save(tmp_path / 'b.tif', tiffinfo=tags)
    assert read_header(str(tmp_path / 'b.tif')) == (40 * 56, True, False)
    for name, animated in (('a.gif', True), ('a.webp', True), ('pages.tif', False)):
        Image.open(path).save(tmp_path / name, save_all=True, append_images=[Image.new('RGB', (56, 40))])
        assert read_header(str(tmp_path / name)) == (40 * 56, False, animated)
    (tmp_path / 'text.png').write_text('text')
    assert read_header(str(tmp_path / 'text.png')) is None
    assert read_header(str(tmp_path / 'nothing.png')) is None


@pytest.fixture
def memory():
    """Make empty files in fsspec's file system in memory."""
    fs = fsspec.filesystem('memory')

    def make(*paths):
        for path in paths:
            fs.pipe(path, b'')

    yield make
    fs.rm('/', recursive=True)


def test_uris(memory):
    memory('/bucket/x/1.png', '/bucket/y/1.png', '/bucket/y/notes.md', '/bucket/y/z/2.png')
    assert names('memory://bucket') == {
        'memory:///bucket/x/1.png': 'x/1', 'memory:///bucket/y/1.png': 'y/1', 'memory:///bucket/y/z/2.png': 'y/z/2'
    }  # fmt: skip
    assert list(names('memory://bucket/*/1.png').values()) == ['x/1', 'y/1']
    assert names('memory://bucket/x/1.png') == {'memory://bucket/x/1.png': '1'}
    assert list(names('memory://bucket/x/1.png', 'memory://bucket/y/z/2.png').values()) == ['x/1', 'y/z/2']
    with pytest.raises(UserError, match='memory://nothing/ has no images'):
        memory('/nothing/notes.md')
        find_tasks(['memory://nothing/'])


def test_http_is_named_without_its_query():
    found = names('http://host/a%20b.png?token=1', 'http://host/sub/../../c.png')
    assert list(found.values()) == ['a b', 'sub/c']


def test_unknown_scheme():
    with pytest.raises(UserError, match='nonsense://a'):
        find_tasks(['nonsense://a/*.png'])
