"""Templates: what one may contain, and whether it can be used. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.events.chat import ROLES, Message, check_roles
from services.common.events.limits import check_name
from services.common.platform.errors import InvalidInput

FIRST_VERSION = 1
"""Answers while "production" was never set: a version that was only put is not live."""
MAX_TEMPLATE_BYTES = 32 * 1024
MAX_TEMPLATE_MESSAGES = 8
MAX_PROMPT_TOKENS = 131_072


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One version of a named template; never changes once it has a version (counted from 1; 0: not yet put)."""

    name: str
    version: int
    messages: tuple[Message, ...]
    max_prompt_tokens: int
    passage_format: str
    description: str = ""


def check_template(template: Template) -> None:
    """Raise InvalidInput, naming the field, unless the template can be used."""
    check_name("template.name", template.name, InvalidInput)
    messages = template.messages
    if not 1 <= len(messages) <= MAX_TEMPLATE_MESSAGES:
        raise InvalidInput(f"template.messages: {len(messages)} messages; a template has 1 to {MAX_TEMPLATE_MESSAGES}")
    check_roles("template.messages", messages, ROLES, InvalidInput)
    if messages[-1].role != "user" or "{question}" not in messages[-1].content:
        raise InvalidInput("template.messages: the last one must be of the user and contain {question}")
    if any("{question}" in message.content for message in messages[:-1]):
        raise InvalidInput("template.messages: {question} may stand in the last message only")
    size = sum(len(text.encode()) for text in (template.passage_format, template.description, *(message.content for message in messages)))
    if size > MAX_TEMPLATE_BYTES:
        raise InvalidInput(f"template: its texts have {size} bytes; at most {MAX_TEMPLATE_BYTES} are allowed")
    if not 1 <= template.max_prompt_tokens <= MAX_PROMPT_TOKENS:
        raise InvalidInput(f"template.max_prompt_tokens: {template.max_prompt_tokens} is not 1 to {MAX_PROMPT_TOKENS}")
    if takes_context(template) and "{text}" not in template.passage_format:
        raise InvalidInput("template.passage_format: it must contain {text}, since the messages contain {context}")


def takes_context(template: Template) -> bool:
    """Whether passages have a place in the template."""
    return any("{context}" in message.content for message in template.messages)
