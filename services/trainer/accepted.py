"""Which adapters an alias of the language model may point at: those that the adapter gate accepted for its task."""

from __future__ import annotations

from typing import Protocol

from services.common.language.adapter_manifest import AdapterManifest, AdapterVerdict
from services.common.language.adapter_name import AdapterName
from services.common.language.aliases import BASE_MODEL, task_of_llm_alias
from services.common.platform.errors import Conflict


class Adapters(Protocol):
    """The adapter store; see AdapterStore for the errors."""

    def manifest(self, name: AdapterName) -> AdapterManifest: ...  # noqa: D102
    def verdict(self, name: AdapterName) -> AdapterVerdict | None: ...  # noqa: D102


def check_target(alias: str, target: str, adapters: Adapters) -> None:
    """Return when the alias may point at the target. Blocks. Aliases of other kinds may point at anything.

    Raises:
        InvalidInput, NotFound: the target is no adapter's name, or no such adapter is published.
        Conflict: the adapter gate refused the adapter, could not decide, has not judged it, or judged it for another task.
        CorruptArtifact, Unavailable: what the adapter gate said cannot be read.
    """
    task = task_of_llm_alias(alias)
    if not task or target == BASE_MODEL:
        return
    name = AdapterName.parse(target)
    adapters.manifest(name)
    if name.task != task:
        raise Conflict(f"{name} was judged on the questions of task {name.task!r}, not on those of {task!r}")
    verdict = adapters.verdict(name)
    if verdict is None:
        raise Conflict(f"the adapter gate has not judged {name}: nothing is known of its answers")
    if verdict.is_undecided:
        raise Conflict(f"the adapter gate could not decide about {name}: {'; '.join(verdict.refusals) or 'without a reason'}")
    if not verdict.accepted:
        raise Conflict(f"the adapter gate refused {name}: {'; '.join(verdict.refusals) or 'without a reason'}")
