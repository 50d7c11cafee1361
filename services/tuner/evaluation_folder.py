"""The folder of evaluation files."""

from __future__ import annotations

from pathlib import Path

import yaml
from typing_extensions import override

from services.common.language.evaluation import Evaluation, parse_evaluation
from services.common.platform.errors import InvalidInput, NotFound
from services.tuner.tuner import Evaluations

# A thousand questions take a second with libyaml's loader, and ten without.
_LOADER: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_FILE_BYTES = 16 * 1024 * 1024
"""Of a file that people write for the tuner."""


class EvaluationFolder(Evaluations):
    """`FOLDER/TASK.yaml`, read anew for each tune. Every method blocks for a small file."""

    def __init__(self, folder: Path) -> None:
        """The folder need not exist yet."""
        self._folder = folder

    @override
    def file(self, task: str) -> Path:
        """Return where the task's file is, or would be."""
        return self._folder / f"{task}.yaml"

    @override
    def exists(self, task: str) -> bool:
        """Whether the file is there."""
        return self.file(task).is_file()

    @override
    def load(self, task: str) -> Evaluation:
        """Return the file's content.

        Raises:
            NotFound: there is no file.
            InvalidInput: it is too large, not YAML, or not of the form that `evaluation` describes.
        """
        path = self.file(task)
        try:
            size = path.stat().st_size
            if size > MAX_FILE_BYTES:
                raise InvalidInput(f"{path} has {size} bytes; at most {MAX_FILE_BYTES} are read")
            return parse_evaluation(yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER), where=str(path))
        except FileNotFoundError as error:
            raise NotFound(f"there is no evaluation file {path}") from error
        except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: bytes that are no UTF-8, and a date that is none (2023-02-30)
            raise InvalidInput(f"{path} cannot be read: {' '.join(str(error).split())}") from error
