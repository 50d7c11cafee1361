"""Where the two Python environments lie: `light` (all services but the torch ones) and `ml` (torch, Triton).

Imports the standard library only, since tests of either environment use it. Knows nothing about what is installed inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.common.platform.errors import ConfigurationError

REPOSITORY_ROOT = Path(__file__).resolve().parents[3]

EnvironmentName = Literal["light", "ml"]


@dataclass(frozen=True, slots=True)
class Environments:
    """The folders of the two virtual environments."""

    light: Path
    ml: Path

    @classmethod
    def of_repository(cls, root: Path = REPOSITORY_ROOT) -> Environments:
        """Return `.venv/light` and `.venv/ml` under `root`, where `make setup` puts them."""
        return cls(light=root / ".venv" / "light", ml=root / ".venv" / "ml")

    def python(self, name: EnvironmentName) -> Path:
        """Return the interpreter of an environment.

        Raises:
            ConfigurationError: the environment does not exist.
        """
        python = self._folder(name) / "bin" / "python"
        if not python.exists():
            raise ConfigurationError(f"the {name} environment has no interpreter at {python}: run `make setup`")
        return python

    def site_packages(self, name: EnvironmentName) -> Path:
        """Return the folder that holds an environment's packages.

        Raises:
            ConfigurationError: the environment does not exist.
        """
        found = sorted(self._folder(name).glob("lib/python3.*/site-packages"))
        if not found:
            raise ConfigurationError(f"the {name} environment has no site-packages under {self._folder(name)}: run `make setup`")
        return found[-1]

    def base_prefix(self, name: EnvironmentName) -> Path:
        """Return the prefix of the interpreter that an environment was made from (pyvenv.cfg, key `home`).

        Raises:
            ConfigurationError: the environment does not exist or is no virtual environment.
        """
        configuration = self._folder(name) / "pyvenv.cfg"
        if configuration.exists():
            for line in configuration.read_text(encoding="utf-8").splitlines():
                key, _, value = line.partition("=")
                if key.strip() == "home":
                    return Path(value.strip()).parent
        raise ConfigurationError(f"{configuration} names no base interpreter: run `make setup`")

    def _folder(self, name: EnvironmentName) -> Path:
        return {"light": self.light, "ml": self.ml}[name]


def installed(path: Path, package: str) -> Path:
    """Return `path`, which a pip package brings.

    Raises:
        ConfigurationError: it is not there.
    """
    if not path.exists():
        raise ConfigurationError(f"{path} is missing (package {package}): run `make setup`")
    return path
