"""A stand-in for torchvision, so that timm can be imported beside a torch that torchvision has no build for."""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any


class _AnyName(type):
    """Give a class every attribute, its own name; timm reads members of enumerations when it is imported."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith('__'):
            raise AttributeError(name)
        return name


class _Module(ModuleType):
    __path__: list[str] = []  # noqa: RUF012 (a package, as the import system wants it)
    __version__ = '0'

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        return _AnyName(name, (), {})


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        is_torchvision = fullname.partition('.')[0] == 'torchvision'
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if is_torchvision else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def fake_torchvision() -> Iterator[None]:
    """Let imports of torchvision succeed meanwhile, if it is not installed."""
    if importlib.util.find_spec('torchvision') is not None:
        yield
        return
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
            del sys.modules[name]
