"""Find released encoders by name: in ``pretrain/``, in a cache, or on a server.

Environment variables:
    MMSEG_SEGMENTER_AUGREG_URL, MMSEG_SEGMENTER_DINOV2_URL: folders of these files on a mirror.
    HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME, HF_HUB_CACHE: as of ``huggingface_hub``.
"""

import glob
import os
import re
from collections.abc import Callable

from ..errors import MissingFileError, UserError
from .download import DownloadError, cache_folder, download
from .integrity import read_index

_AUGREG = 'https://storage.googleapis.com/vit_models/augreg'
_DINOV2 = 'https://dl.fbaipublicfiles.com/dinov2'
DINOV2 = tuple(f'vit{size}14{registers}' for registers in ('', '_reg') for size in 'sblg')
# Name -> name of the dataset of the pretraining.
DINOV3 = dict.fromkeys(('vits16', 'vits16plus', 'vitb16', 'vitl16', 'vith16plus', 'vit7b16'), 'lvd1689m') | {
    'vitl16_sat493m': 'sat493m',
    'vit7b16_sat493m': 'sat493m',
}
# Files of a repository that hold its weights, the best one first. The second is an index of several files.
_WEIGHTS = ('model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin')
_CONFIG = 'config.json'


def find(name: str) -> str | None:
    """Return the path of a released file, or None if the name has none of the schemes.

    If several processes want the same file, such as the ranks of a training, one downloads it and the others wait.

    Args:
        name: ``augreg://NAME``, ``dinov2://NAME``, ``dinov3://NAME`` or ``hf://ORG/NAME[@REVISION]``.

    Raises:
        MissingFileError: the file is not on disk and cannot be downloaded. The message says which file to put where.
        UserError: the name is malformed or not known.
        FileAccessError: the cache folder cannot be made.
    """
    for scheme, locate in SCHEMES.items():
        if name.startswith(scheme):
            return locate(name.removeprefix(scheme))
    return None


def augreg(name: str) -> str:
    """Return the path of a released AugReg file; ``.npz`` may be left out of its name."""
    file_name = name.removesuffix('.npz') + '.npz'
    if os.path.basename(file_name) != file_name:
        raise MissingFileError(f'augreg://{name}: expected the name of a file, without folders')
    return _one_file(f'augreg://{name}', _folder_url('AUGREG', _AUGREG), file_name)


def dinov2(name: str) -> str:
    """Return the path of a file of DINOv2's authors, such as ``vitb14`` or, with registers, ``vitb14_reg``."""
    _check_name('dinov2', name, DINOV2)
    model = f'dinov2_{name.removesuffix("_reg")}'
    file_name = f'{model}_reg4_pretrain.pth' if name.endswith('_reg') else f'{model}_pretrain.pth'
    return _one_file(f'dinov2://{name}', f'{_folder_url("DINOV2", _DINOV2)}{model}/', file_name)


def dinov3(name: str) -> str:
    """Return the path of a released DINOv3, such as ``vitl16``: the authors' file if it is on disk, else transformers'.

    The authors send the addresses of their files by e-mail, so only transformers' can be downloaded.
    """
    _check_name('dinov3', name, DINOV3)
    model, data = name.partition('_')[0], DINOV3[name]
    stem = f'dinov3_{model}_pretrain_{data}'
    for folder in ('pretrain', cache_folder()):
        found = sorted(glob.glob(os.path.join(glob.escape(folder), f'{stem}*.pth')))
        if len(found) > 1:
            raise UserError(f'dinov3://{name}: found {" and ".join(found)}, expected one of them')
        if found:
            return found[0]
    try:
        return hf(f'facebook/dinov3-{model}-pretrain-{data}')
    except MissingFileError as error:
        raise MissingFileError(
            f'dinov3://{name}: {error}. The file of the authors, {stem}-*.pth, is taken from '
            f'{os.path.abspath("pretrain")} too'
        ) from None


def hf(name: str) -> str:
    """Return the path of the weights of a repository of the Hugging Face hub: ``ORG/NAME`` or ``ORG/NAME@REVISION``.

    Looks in ``pretrain/NAME``, in the cache of ``huggingface_hub``, then in :func:`cache_folder`. A ``config.json``
    comes along, which tells the number of heads.
    """
    match = re.fullmatch(r'([\w-][\w.-]*)/([\w-][\w.-]*)(?:@([\w-][\w.-]*))?', name, re.ASCII)
    if match is None:
        raise UserError(f'hf://{name}: expected hf://ORG/NAME or hf://ORG/NAME@REVISION')
    organisation, repository, revision = match[1], match[2], match[3] or 'main'
    local = os.path.join('pretrain', repository)
    kept = os.path.join(cache_folder(), 'hf', organisation, repository, revision)
    for folder in (local, _snapshot(organisation, repository, revision), kept):
        if path := _weights_in(folder):
            return path
    page = f'{_endpoint()}/{organisation}/{repository}'
    try:
        return _download_repository(f'{page}/resolve/{revision}/', kept)
    except DownloadError as error:
        where = f'save its {_WEIGHTS[0]} and {_CONFIG} in {os.path.abspath(local)}'
        if error.status in (401, 403):
            reason = 'the token in HF_TOKEN has no access to it' if _token() else 'it does not exist or is gated'
            raise MissingFileError(
                f'hf://{name}: the server answered {error.status}, {reason}. Ask for access at {page} and set '
                f'HF_TOKEN, or {where}'
            ) from None
        raise MissingFileError(f'hf://{name}: {error}. Download {page} by other means and {where}') from None


SCHEMES: dict[str, Callable[[str], str]] = {
    'augreg://': augreg,
    'dinov2://': dinov2,
    'dinov3://': dinov3,
    'hf://': hf,
}


def _check_name(scheme: str, name: str, known: tuple[str, ...] | dict[str, str]) -> None:
    if name not in known:
        raise UserError(f'{scheme}://{name}: unknown name; expected one of {", ".join(known)}')


def _folder_url(name: str, default: str) -> str:
    return (os.environ.get(f'MMSEG_SEGMENTER_{name}_URL') or default).rstrip('/') + '/'


def _one_file(name: str, folder_url: str, file_name: str) -> str:
    """Return the path of a file that is in ``pretrain/``, in the cache, or downloaded from a folder of a server."""
    local, target = os.path.join('pretrain', file_name), os.path.join(cache_folder(), file_name)
    if os.path.isfile(local):
        return local
    try:
        download(folder_url + file_name, target)
    except DownloadError as error:
        raise MissingFileError(
            f'{name}: {error}. Download {folder_url}{file_name} by other means and save it as {os.path.abspath(local)} '
            f'or {target}'
        ) from None
    return target


def _endpoint() -> str:
    return (os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')


def _hf_home() -> str:
    return os.environ.get('HF_HOME') or os.path.expanduser('~/.cache/huggingface')


def _token() -> str | None:
    """Return the user's token for the hub: ``$HF_TOKEN``, or the one that ``hf auth login`` stored."""
    token = os.environ.get('HF_TOKEN')
    if not token:
        try:
            with open(os.environ.get('HF_TOKEN_PATH') or os.path.join(_hf_home(), 'token'), encoding='utf-8') as file:
                token = file.read(1000)
        except (OSError, ValueError):
            return None
    return token.strip() or None


def _snapshot(organisation: str, repository: str, revision: str) -> str:
    """Return the folder of a repository in the cache of ``huggingface_hub``, whether or not it exists."""
    cache = os.environ.get('HF_HUB_CACHE') or os.path.join(_hf_home(), 'hub')
    folder = os.path.join(cache, f'models--{organisation}--{repository}')
    try:
        with open(os.path.join(folder, 'refs', revision), encoding='utf-8') as file:
            commit = file.read(100).strip()
    except (OSError, ValueError):
        commit = revision
    return os.path.join(folder, 'snapshots', os.path.basename(commit))


def _weights_in(folder: str) -> str | None:
    """Return the path of the weights in a folder, or None if they are missing or not all there."""
    for name in _WEIGHTS:
        path = os.path.join(folder, name)
        if os.path.isfile(path) and all(os.path.isfile(os.path.join(folder, shard)) for shard in _shards(path)):
            return path
    return None


def _shards(path: str) -> list[str]:
    """Return the names of the files that an index lists, and none for other files.

    Raises:
        UserError: a name is not that of a file beside the index.
    """
    if not path.endswith('.index.json'):
        return []
    names = sorted(set(read_index(path).values()))
    for name in names:  # they become parts of URLs
        if not re.fullmatch(r'[\w-][\w.-]*', name, re.ASCII):
            raise UserError(f'{path}: shard {name!r}; expected the name of a file beside the index')
    return names


def _download_repository(url: str, folder: str) -> str:
    """Download the weights of a repository and its ``config.json`` to a folder, and return the path of the weights.

    Args:
        url: of the files of one revision, with a slash at the end.
        folder: for the files.
    """
    token = _token()
    try:
        download(url + _CONFIG, os.path.join(folder, _CONFIG), token, is_checkpoint=False)
    except DownloadError as error:
        if error.status != 404:
            raise
    for name in _WEIGHTS:
        path = os.path.join(folder, name)
        try:
            download(url + name, path, token)
        except DownloadError as error:
            if error.status != 404 or name == _WEIGHTS[-1]:
                raise
            continue
        for shard in _shards(path):
            download(url + shard, os.path.join(folder, shard), token)
        return path
    raise AssertionError('the loop returns or raises')
