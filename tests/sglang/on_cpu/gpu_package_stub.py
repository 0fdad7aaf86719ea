"""Import stub: empty stand-ins for the GPU packages that SGLang imports at start-up even where it is told to run on a CPU.

Nothing in it computes. Names can be imported, subclassed, put into annotations and default arguments; calling one raises. Real packages
win, because the finder is asked last. Loaded by `sitecustomize` in every process of the server, and by the tests' conftest.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any, NoReturn

STUBBED = frozenset(["torchvision", "sgl_kernel"])


class _StandInType(type):
    """Attributes of a stand-in are stand-ins."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = stand_in(f"{cls.__qualname__}.{name}")
        setattr(cls, name, value)
        return value

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.__dict__.get("stands_in"):
            _refuse(cls.__qualname__)
        return super().__call__(*args, **kwargs)


def stand_in(name: str) -> Any:
    """A class that can be named and subclassed, and raises when it is called."""
    return _StandInType(name, (), {"stands_in": True, "__qualname__": name})


def _refuse(name: str) -> NoReturn:
    raise RuntimeError(f"{name} was called, but its package is not installed: gpu_package_stub only lets it be imported")


class _Module(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = stand_in(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in STUBBED or _is_a_question():
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def _is_a_question() -> bool:
    """Whether ``importlib.util.find_spec`` asks, as transformers does for optional packages: the true answer is that it is not there."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("importlib._"):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") == "importlib.util"


def install() -> None:
    """Adds the finder, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
