"""Counts a prompt's tokens as the served model does: its chat template written out, its tokenizer over that. Or bounds them.

Knows no template of ours and no budget.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template as JinjaTemplate
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from typing_extensions import override

from services.common.events.chat import Message
from services.common.language.token_bound import TOKENS_PER_PROMPT, TOKENS_PER_TURN, most_tokens
from services.common.platform.errors import ConfigurationError, InvalidInput
from services.prompt_assembler.core.prompt import TokenCounter

_MAX_FILE_BYTES = 64 * 1024 * 1024

_log = logging.getLogger(__name__)


class EstimatedTokens:
    """Meets `core.TokenCounter` without a tokenizer."""

    is_exact = False

    def count(self, messages: Sequence[Message]) -> int:
        """Return what no tokenizer exceeds, in any language."""
        return sum(most_tokens(turn.content) + TOKENS_PER_TURN for turn in messages) + TOKENS_PER_PROMPT

    def plain(self, text: str) -> str:
        """Return the text as it is: which marks the model knows is not known."""
        return text


class ChatTokens:
    """Meets `core.TokenCounter` with the model's own tokenizer and chat template."""

    is_exact = True

    def __init__(self, tokenizer: Tokenizer, chat_template: JinjaTemplate, special_tokens: dict[str, str]) -> None:
        """`special_tokens`: what the chat template may name, e.g. bos_token. See `load`."""
        self._tokenizer, self._chat_template, self._special_tokens = tokenizer, chat_template, special_tokens
        marks = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special and token.content]
        self._marks = re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))) if marks else None

    @classmethod
    def load(cls, tokenizer_file: Path) -> ChatTokens:
        """Read tokenizer.json, and beside it tokenizer_config.json and, if it is there, chat_template.jinja.

        Raises:
            ConfigurationError: a file is missing, too large or not what it should be.
        """
        try:
            if tokenizer_file.stat().st_size > _MAX_FILE_BYTES:
                raise ConfigurationError(f"tokenizer {tokenizer_file} has more than {_MAX_FILE_BYTES} bytes")
            config = json.loads((tokenizer_file.parent / "tokenizer_config.json").read_text(encoding="utf-8"))
            source = _chat_template_of(tokenizer_file.parent, config)
            special_tokens = {key: _text_of(value) for key, value in config.items() if key.endswith("_token") and value}
            return cls(_tokenizer_of(tokenizer_file), _environment().from_string(source), special_tokens)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, TemplateError) as error:
            raise ConfigurationError(f"tokenizer {tokenizer_file} cannot be used: {' '.join(str(error).split())}") from error

    def count(self, messages: Sequence[Message]) -> int:
        """Return the tokens of the prompt as the model gets it, the beginning of its answer included.

        Raises:
            InvalidInput: the model's chat format has no place for these turns.
        """
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        try:
            text = self._chat_template.render(messages=turns, add_generation_prompt=True, **self._special_tokens)
        except TemplateError as error:
            raise InvalidInput(f"messages: the model's chat template refuses them: {error}") from error
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def plain(self, text: str) -> str:
        """Return the text with a space in place of each special token, so that no question or passage can end its own turn."""
        return self._marks.sub(" ", text) if self._marks is not None else text


class LateTokens(TokenCounter):
    """Estimates until the tokenizer is there: the models may still be made while this service starts."""

    def __init__(self, find: Callable[[], Path | None], until_then: TokenCounter | None = None) -> None:
        """`find` returns the tokenizer.json, or None while there is none; `until_then` counts meanwhile (None: a bound by bytes)."""
        self._find = find
        self._counter: TokenCounter = until_then or EstimatedTokens()

    @property
    @override
    def is_exact(self) -> bool:
        return self._counter.is_exact

    def look(self) -> bool:
        """Look for the tokenizer; return whether it is there. Reads files: call it off the event loop."""
        if self._counter.is_exact:
            return True
        path = self._find()
        if path is None:
            return False
        try:
            self._counter = ChatTokens.load(path)
        except ConfigurationError as error:
            _log.warning("%s: tokens are estimated", error)
            return False
        _log.info("tokens are counted with %s", path)
        return True

    @override
    def count(self, messages: Sequence[Message]) -> int:
        return self._counter.count(messages)

    @override
    def plain(self, text: str) -> str:
        return self._counter.plain(text)


def _tokenizer_of(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library has no error class of its own
        raise ValueError(str(error)) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _environment() -> ImmutableSandboxedEnvironment:
    """A chat template comes with the weights: it runs in a sandbox, as transformers does it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _chat_template_of(folder: Path, config: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else config["chat_template"]
    if not isinstance(template, str):
        raise TypeError("several chat templates are not supported")
    return template


def _text_of(token: str | dict[str, Any]) -> str:
    """A special token is written as text, or as an object with its content."""
    return token if isinstance(token, str) else str(token["content"])
