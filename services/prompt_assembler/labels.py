"""The labels of the templates, as control.v1's aliases say them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from services.common.language.aliases import AliasView, prompt_alias

_TARGET = re.compile(r"v([1-9][0-9]{0,8})")


class AliasLabels:
    """Meets `core.Labels`. A target that is no version ("v3") counts as not set."""

    def __init__(self, aliases: AliasView) -> None:
        """The view is kept up to date by its owner."""
        self._aliases = aliases

    @property
    def is_known(self) -> bool:
        """See core.Labels."""
        return self._aliases.is_known

    def of(self, template: str) -> Mapping[str, int]:
        """See core.Labels."""
        prefix = prompt_alias(template, "")
        targets = {alias.removeprefix(prefix): target for alias, target in self._aliases.all().items() if alias.startswith(prefix)}
        return {label: int(match[1]) for label, target in targets.items() if (match := _TARGET.fullmatch(target))}
