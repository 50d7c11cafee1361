from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace

from services.common.events.chat import Message
from services.common.platform.errors import ConfigurationError, InvalidInput
from services.prompt_assembler.tokens import ChatTokens, EstimatedTokens, LateTokens

CHATML = (
    "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('bad role') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + ' ' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)


@pytest.fixture
def tokenizer_file(tmp_path):
    words = ["[UNK]", "system", "user", "assistant", "Why", "?", "be", "brief"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML, "eos_token": {"content": "<|im_end|>"}}))
    return tmp_path / "tokenizer.json"


TURNS = (Message(role="system", content="be brief"), Message(role="user", content="Why ?"))


def test_a_prompt_is_counted_with_what_the_chat_format_adds_and_without_the_tokenizers_own_cut(tokenizer_file):
    # Per turn: start, role, two words, end. Then start and "assistant".
    assert ChatTokens.load(tokenizer_file).count(TURNS) == 5 + 5 + 2


def test_a_chat_template_in_a_file_of_its_own_is_taken(tokenizer_file):
    (tokenizer_file.parent / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert ChatTokens.load(tokenizer_file).count(TURNS) == 2


def test_special_tokens_in_a_text_become_spaces_and_cannot_be_put_together_again(tokenizer_file):
    tokens = ChatTokens.load(tokenizer_file)
    assert tokens.plain("a<|im_end|>b") == "a b"
    assert "<|im_end|>" not in tokens.plain("<|im_<|im_end|>end|>")
    assert tokens.plain("plain <b>text</b>") == "plain <b>text</b>"


def test_turns_that_the_models_format_refuses_are_the_callers_mistake(tokenizer_file):
    with pytest.raises(InvalidInput, match="bad role"):
        ChatTokens.load(tokenizer_file).count([Message(role="tool", content="x")])


def test_a_chat_template_cannot_reach_out_of_its_sandbox(tokenizer_file):
    (tokenizer_file.parent / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidInput, match="unsafe"):
        ChatTokens.load(tokenizer_file).count(TURNS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "["),
        ("tokenizer_config.json", "{}"),
        ("tokenizer_config.json", '{"chat_template": "{%"}'),
    ],
)
def test_a_damaged_tokenizer_is_refused_and_named(tokenizer_file, name, content):
    (tokenizer_file.parent / name).write_text(content)
    with pytest.raises(ConfigurationError, match="tokenizer"):
        ChatTokens.load(tokenizer_file)


@pytest.mark.parametrize(
    "text", ["Films go back within seven days.", "影片可以保留九天。" * 100, "เก็บได้เก้าวัน", "0123456789", "👩‍👩‍👧", "10⁶"]
)
def test_an_estimate_is_a_bound_in_any_language(text):
    by_bytes = Tokenizer(BPE({char: number for number, char in enumerate(sorted(ByteLevel.alphabet()))}, []))
    by_bytes.pre_tokenizer = ByteLevel(add_prefix_space=False)  # no byte pair was merged: as many tokens as there can be
    assert EstimatedTokens().count([Message(role="user", content=text)]) > len(by_bytes.encode(text).ids) >= len(text)
    assert not EstimatedTokens.is_exact


def test_tokens_are_estimated_until_the_tokenizer_is_there_and_counted_from_then_on(tokenizer_file):
    found = []
    tokens = LateTokens(lambda: found[0] if found else None)
    assert not tokens.look() and not tokens.is_exact
    assert tokens.count(TURNS) == EstimatedTokens().count(TURNS)
    found.append(tokenizer_file)
    assert tokens.look() and tokens.is_exact
    assert tokens.count(TURNS) == 12 and tokens.plain("<|im_end|>") == " "


def test_somebody_else_may_count_until_the_tokenizer_is_there(tokenizer_file):
    tokens = LateTokens(lambda: None, ChatTokens.load(tokenizer_file))
    assert tokens.count(TURNS) == 12


def test_a_tokenizer_that_is_half_written_is_looked_for_again(tokenizer_file):
    whole = tokenizer_file.read_text()
    tokenizer_file.write_text(whole[:100])
    tokens = LateTokens(lambda: tokenizer_file)
    assert not tokens.look()
    tokenizer_file.write_text(whole)
    assert tokens.look()
