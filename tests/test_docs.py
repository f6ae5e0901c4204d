"""Documents agree with the code: links resolve, commands parse, files exist, Python blocks run."""

import argparse
import configparser
import re
import runpy
import shlex
import sys
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS

import mmseg_segmenter

ROOT = Path(__file__).parent.parent
DOCS = sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')])
# What precedes the arguments of train.py, test.py or predict.py in those of the scripts around them.
LAUNCHERS = {
    'tools/dist_train.sh': ('tools/train.py', ['CONFIG', 'GPUS']),
    'tools/dist_test.sh': ('tools/test.py', ['CONFIG', 'CHECKPOINT', 'GPUS']),
    'tools/dist_predict.sh': ('tools/predict.py', ['GPUS']),
    'tools/slurm_train.sh': ('tools/train.py', ['PARTITION', 'JOB_NAME', 'CONFIG']),
    'tools/slurm_test.sh': ('tools/test.py', ['PARTITION', 'JOB_NAME', 'CONFIG', 'CHECKPOINT']),
}
FOREIGN = r'git|pip|pytest|python -m segm\.\S+|tensorboard'  # programs whose options are not ours
TOOLS = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob('tools/**/*.py'))


def read(doc: str) -> str:
    return (ROOT / doc).read_text(encoding='utf-8')


def blocks(doc: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf'^ *```{language}\n(.*?)^ *```', read(doc), re.S | re.M)


def prose(doc: str) -> str:
    return re.sub(r'^ *```.*?^ *```', '', read(doc), flags=re.S | re.M)


def anchors(doc: str) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r'^#+ (.+)$', prose(doc), re.M)
    return {re.sub(r'[^\w\- ]', '', h.lower()).strip().replace(' ', '-') for h in headings}


@pytest.mark.parametrize('doc', DOCS)
def test_links_resolve(doc):
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(doc)):
        if re.match(r'https?://', target):
            continue
        path, _, anchor = target.partition('#')
        found = (ROOT / doc).parent / path if path else ROOT / doc
        assert found.exists(), f'{doc}: {target}'
        if anchor:
            assert anchor in anchors(found.resolve().relative_to(ROOT).as_posix()), f'{doc}: {target}'


def test_every_document_is_linked_from_the_readme():
    linked = set(re.findall(r'\]\(([^)#\s]+\.md)', read('README.md')))
    assert linked == set(DOCS) - {'README.md'}


@pytest.mark.parametrize('doc', DOCS)
def test_named_files_exist(doc):
    """Files of the reader's own are called ``my_*``."""
    pattern = (
        r'(?<![\w/.-])(?:configs|docs|mmseg_segmenter|requirements|tests|tools)/[\w./-]+\.(?:py|sh|md|txt|yaml|yml)\b'
    )
    for path in re.findall(pattern, read(doc)):
        assert (ROOT / path).exists() or Path(path).name.startswith(('my_', 'test_my_')), f'{doc}: {path}'


def commands(doc: str) -> list[list[str]]:
    """The command lines of the shell blocks that run a tool or make, split into words."""
    found = []
    for line in '\n'.join(blocks(doc, 'bash')).replace('\\\n', ' ').splitlines():
        if not re.search(r'(^|\s)(tools/\S+\.(py|sh)|make)\s', line):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars='|&;<>')
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ';']:
            if re.fullmatch('[|&;<>]+', word):
                start = next((i for i, w in enumerate(words) if re.match(r'tools/|make$', w)), None)
                if start is not None:
                    found.append(words[start:])
                words = []
            else:
                words.append(word)
    return found


class _Found(BaseException):
    """Carries a parser out of a tool."""


@cache
def parser_of(tool: str) -> argparse.ArgumentParser:
    """The parser of a tool, which runs up to the point where it reads its arguments."""

    def stop(self, *_, **__):
        raise _Found(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Found) as found:
        patch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        patch.setattr(argparse.ArgumentParser, 'parse_intermixed_args', stop)
        patch.setattr(sys, 'argv', [tool])
        runpy.run_path(str(ROOT / tool), run_name='__main__')
    return found.value.args[0]


@pytest.mark.parametrize('doc', DOCS)
def test_commands_are_understood(doc, capsys):
    targets = set(re.findall(r'^([a-z][\w-]*):', read('Makefile'), re.M))
    for tool, *arguments in commands(doc):
        if tool == 'make':
            names = [word for word in arguments if '=' not in word]
            assert set(names) <= targets, f'{doc}: make {arguments}'
            continue
        assert (ROOT / tool).stat().st_mode & 0o100, f'{doc}: {tool} is not executable'
        if tool in LAUNCHERS:
            tool, own = LAUNCHERS[tool]
            assert len(arguments) >= len(own), f'{doc}: {tool} {arguments}'
            arguments = [o for o in own if o in ('CONFIG', 'CHECKPOINT')] + arguments[len(own) :]
        if tool.endswith('.py'):
            try:
                parser_of(tool).parse_args([a for a in arguments if a != '$DATA'])
            except SystemExit:
                pytest.fail(f'{doc}: {tool} {" ".join(arguments)}: {capsys.readouterr().err}')


@pytest.mark.parametrize('doc', DOCS)
def test_options_in_running_text_exist(doc):
    """Those behind the name of a tool are its own; others are of any tool."""
    every = {option for tool in TOOLS for option in parser_of(tool)._option_string_actions}
    for span in re.findall(r'`([^`]+)`', prose(doc)):
        named = [tool for tool in TOOLS if re.search(rf'(^|[\s/]){re.escape(Path(tool).name)}\s', span)]
        known = set(parser_of(named[0])._option_string_actions) if named else every
        for option in re.findall(r'(?<!\S)--[a-z][\w-]*', span):
            assert option in known or re.match(rf'({FOREIGN}) ', span), f'{doc}: {span}'


def test_commands_are_found():
    """The search above sees what is there: a document whose commands all went unseen would pass."""
    assert len(commands('docs/training.md')) >= 10
    assert ['tools/train.py', 'CONFIG', '--resume'] in commands('docs/training.md')
    assert ['make', 'demo'] in commands('README.md')
    assert any(c[0] == 'tools/dataset_converters/rgb2labels.py' for c in commands('docs/own_dataset.md'))


@pytest.mark.parametrize('doc', DOCS)
def test_python_blocks_compile(doc):
    for block in blocks(doc, 'python'):
        compile(block, doc, 'exec')


@pytest.fixture(scope='module')
def tiny(tmp_path_factory) -> dict[str, str]:
    """Files for the placeholders: a small Segmenter on ADE20K's classes, its checkpoint and an image."""
    folder = tmp_path_factory.mktemp('model')
    cfg = Config.fromfile(ROOT / 'configs/segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k.py')
    cfg.model.backbone.update(embed_dims=16, num_layers=1, num_heads=2, init_cfg=None, img_size=(32, 32))
    cfg.model.decode_head.update(in_channels=16, embed_dims=16, num_layers=1, num_heads=2)
    cfg.model.test_cfg.update(crop_size=(32, 32), stride=(24, 24))
    for transform in cfg.test_pipeline:
        if transform['type'] == 'Resize':
            transform['scale'] = (96, 32)
    cfg.dump(folder / 'config.py')
    meta = dict(dataset_meta=dict(classes=[f'class {i}' for i in range(150)], palette=[[i, i, i] for i in range(150)]))
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta=meta), folder / 'model.pth')
    cv2.imwrite(str(folder / 'image.png'), np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    return {name: str(folder / file) for name, file in
            (('CONFIG', 'config.py'), ('CHECKPOINT', 'model.pth'), ('IMAGE', 'image.png'))}  # fmt: skip


@pytest.mark.parametrize('doc', ['README.md', 'docs/evaluation.md'])
def test_inference_in_python(doc, tiny):
    code = '\n'.join(block for block in blocks(doc, 'python') if 'model' in block and 'custom_imports' not in block)
    for placeholder, path in tiny.items():
        assert f"'{placeholder}'" in code
        code = code.replace(f"'{placeholder}'", repr(path))
    names: dict = {}
    exec(compile(code, doc, 'exec'), names)
    assert names['labels'].shape == (1, 48, 64) and names['labels'].dtype == torch.int64
    if 'logits' in names:
        assert torch.equal(names['logits'].argmax(0, keepdim=True), names['labels'])
        assert names['names'] == [f'class {i}' for i in names['labels'].unique().tolist()]


def test_prediction_in_python(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks('docs/prediction.md', 'python'):
        for placeholder, path in tiny.items():
            assert f"'{placeholder}'" in block
            block = block.replace(f"'{placeholder}'", repr(path))
        names: dict = {}
        exec(compile(block, 'docs/prediction.md', 'exec'), names)
    assert {path.as_posix() for path in Path().rglob('*.png')} == {'overlay.png', 'mask.png', 'results/mask/image.png'}


def test_installation():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    extras = set(config['options.extras_require'])
    text = read('docs/install.md')
    assert set(re.findall(r'^\| `\[(\w+)\]`', text, re.M)) == extras
    for doc in DOCS:
        for named in re.findall(r'\.\[([\w,]+)\]|`\[(\w+)\]`', read(doc)):
            assert {*''.join(named).split(',')} <= extras, doc
    pins = dict(re.findall(r'^([\w-]+)==(\S+)$', read('requirements/tested.txt'), re.M))
    assert f'torch {pins["torch"]}' in text
    assert f'Python {config["options"]["python_requires"].strip(">=")} or later' in text
    assert f'setuptools<{re.search("setuptools<([0-9]+)", read("setup.cfg"))[1]}' in text
    makefile = read('Makefile')
    for line in blocks('docs/install.md', 'bash')[3].splitlines():
        command = line.removeprefix('pip install ').replace('[lite]', '[lite,dev]')
        assert command in makefile, line  # what the tests are run with


def test_changelog_has_the_version():
    assert re.search(rf'^## \[?{re.escape(mmseg_segmenter.__version__)}\b', read('CHANGELOG.md'), re.M)
    assert re.search(r'^## \[?Unreleased\b', read('CHANGELOG.md'), re.M)
