"""Owns where a domain's files come from: the `inspect-evals` package, or the folder that ``TAU2_DATA_DIR`` names, in upstream's layout.

A file that the folder lacks is taken from the package. Refuses a folder that has nothing of tau2: a typo must not fall back in silence.
"""

import gzip
import hashlib
import importlib.util
import os
import tomllib
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

DATA_DIR_VARIABLE = "TAU2_DATA_DIR"
TERMINATED = frozenset(
    Path(name)
    for name in (
        "domains/retail/policy.md",
        "domains/mock/policy_solo.md",
        "user_simulator/simulation_guidelines.md",
        "user_simulator/simulation_guidelines_tools.md",
    )
)
"""Texts that end in a newline in upstream's data. In the package all do."""


class DataFiles:
    """The files of one domain. ``folder`` is the domain's folder name, such as ``telecom`` for telecom-workflow too."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._package = package_data()
        self._override = override_data(folder)
        self._texts: dict[Path, str] = {}

    @cached_property
    def source(self) -> str:
        """Package and version; with ``TAU2_DATA_DIR`` also a short digest over the domain's files there."""
        package = f"inspect-evals {version('inspect-evals')}"
        return package if self._override is None else f"{package} + {DATA_DIR_VARIABLE} {_digest(self._override, self._folder)}"

    def path(self, name: str) -> Path:
        """Where ``name`` (relative to the domain's folder, as upstream calls it) is. Raises FileNotFoundError."""
        return self._find(Path("domains") / self._folder / name)

    def text(self, name: str) -> str:
        """A policy, such as ``policy.md``."""
        return self._text(Path("domains") / self._folder / name)

    def guidelines(self, *, tools: bool) -> str:
        """The user simulator's guidelines, for a user with or without tools."""
        text = self._text(Path("user_simulator") / f"simulation_guidelines{'_tools' if tools else ''}.md")
        # The package has an empty line there that upstream does not have.
        return text.replace("\n\nRemember: ", "\nRemember: ")

    def _text(self, name: Path) -> str:
        if name not in self._texts:
            path = self._find(name)
            text = path.read_text(encoding="utf-8")
            packaged = path.is_relative_to(self._package)
            self._texts[name] = text.removesuffix("\n") if packaged and name not in TERMINATED else text
        return self._texts[name]

    def _find(self, name: Path) -> Path:
        # The port calls texts .txt and compresses what is large.
        own = [self._package / name.with_suffix(suffix) for suffix in (name.suffix, ".txt", f"{name.suffix}.gz")]
        candidates = own if self._override is None else [self._override / name, *own]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        raise FileNotFoundError(f"{self._folder}: no file {name} in {' or '.join(str(path.parent) for path in candidates[:2])}")


@cache
def package_data() -> Path:
    """The package's data folder, found without importing the package (which takes seconds)."""
    spec = importlib.util.find_spec("inspect_evals")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the package inspect-evals is not installed; install frontdesk[agent-runner]")
    return Path(spec.submodule_search_locations[0]) / "tau2" / "data"


def override_data(folder: str) -> Path | None:
    """``$TAU2_DATA_DIR/tau2`` where the variable is set and the domain is there. Raises ValueError where it names no tau2 data."""
    root = os.environ.get(DATA_DIR_VARIABLE)
    if not root:
        return None
    data = Path(root).expanduser().resolve() / "tau2"
    if not (data / "domains").is_dir():
        raise ValueError(f"{DATA_DIR_VARIABLE}: {root} has no folder tau2/domains; name the folder that holds tau2, or unset the variable")
    return data if (data / "domains" / folder).is_dir() else None


@cache
def _digest(data: Path, folder: str) -> str:
    digest = hashlib.sha256()
    for root in (data / "domains" / folder, data / "user_simulator"):
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(data)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def read_bytes(path: Path) -> bytes:
    """A file's bytes, decompressed where it ends in ``.gz``."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def read_database(path: Path, model: type[Any]) -> Any:
    """A validated ``model`` from a JSON or TOML file, plain or ``.gz``. Raises ValueError with the file and the fields at fault."""
    try:
        content = read_bytes(path)
        if ".toml" in path.suffixes:
            return model.model_validate(tomllib.loads(content.decode()))
        return model.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(f"{path}: not a {model.__name__}: {explained(error)}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a database file (JSON or TOML, plain or .gz): {error}") from error


def explained(error: ValidationError) -> str:
    """The first three faults of a validation, each as ``field.path: what is wrong``."""
    faults = error.errors(include_url=False, include_input=False)
    told = [f"{'.'.join(str(part) for part in fault['loc']) or 'the whole'}: {fault['msg']}" for fault in faults[:3]]
    more = f" (and {len(faults) - len(told)} more)" if len(faults) > len(told) else ""
    return "; ".join(told) + more
