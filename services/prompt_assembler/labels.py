"""The labels of the templates, as control.v1's aliases say them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from typing_extensions import override

from services.common.language.aliases import AliasView, prompt_alias
from services.prompt_assembler.core.assembler import Labels

_TARGET = re.compile(r"v([1-9][0-9]{0,8})")


class AliasLabels(Labels):
    """Meets `core.Labels`. A target that is no version ("v3") counts as not set."""

    def __init__(self, aliases: AliasView) -> None:
        """The view is kept up to date by its owner."""
        self._aliases = aliases

    @property
    @override
    def is_known(self) -> bool:
        return self._aliases.is_known

    @override
    def of(self, template: str) -> Mapping[str, int]:
        prefix = prompt_alias(template, "")
        targets = {alias.removeprefix(prefix): target for alias, target in self._aliases.all().items() if alias.startswith(prefix)}
        return {label: int(match[1]) for label, target in targets.items() if (match := _TARGET.fullmatch(target))}
