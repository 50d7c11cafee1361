from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.events.chat import Message, Passage
from services.common.platform.errors import InvalidInput, Unavailable
from services.prompt_assembler.core.assembler import Assembler, LabelDangles, TemplateNotFound
from services.prompt_assembler.core.prompt import QuestionTooLong, fill, fit
from services.prompt_assembler.core.question import Question, check_question
from services.prompt_assembler.core.template import Template, check_template

ANSWER = Template(
    name="answer",
    version=1,
    messages=(Message(role="system", content="Be brief."), Message(role="user", content="Context:\n{context}\n\nQuestion: {question}")),
    max_prompt_tokens=100,
    passage_format="[{number}] {title}: {text}",
)


class WordCounter:
    """One token a word, one a turn: budgets in tests can be counted by hand."""

    def __init__(self, *, is_exact: bool = True) -> None:
        self.is_exact = is_exact

    def count(self, messages: Sequence[Message]) -> int:
        return sum(1 + len(turn.content.split()) for turn in messages)

    def plain(self, text: str) -> str:
        return text.replace("<end>", " ")


class MemoryStore:
    def __init__(self, *templates: Template) -> None:
        self.templates = {(template.name, template.version): template for template in templates}
        self.is_down = False

    async def versions(self, name: str) -> Sequence[int]:
        if self.is_down:
            raise Unavailable("down")
        return sorted(version for known, version in self.templates if known == name)

    async def get(self, name: str, version: int) -> Template | None:
        return self.templates.get((name, version))

    async def names(self) -> Sequence[str]:
        return sorted({name for name, _ in self.templates})

    async def add(self, template: Template) -> bool:
        if (template.name, template.version) in self.templates:
            return False
        self.templates[template.name, template.version] = template
        return True


class FixedLabels:
    def __init__(self, targets: Mapping[str, int] | None = None, *, is_known: bool = True) -> None:
        self.targets, self.is_known = targets or {}, is_known

    def of(self, template: str) -> Mapping[str, int]:
        return self.targets if template == "answer" else {}


def passages(*texts: str) -> tuple[Passage, ...]:
    return tuple(Passage(passage_id=f"p{number}", title=f"t{number}", text=text) for number, text in enumerate(texts, 1))


def assembler(store=None, labels=None, counter=None) -> Assembler:
    return Assembler(store or MemoryStore(ANSWER), labels or FixedLabels(), counter or WordCounter(), max_versions=3)


# Filling


def test_placeholders_are_filled_and_passages_are_numbered_and_formatted():
    messages = fill(ANSWER, "Why?", passages("one", "two"), ())
    assert messages == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Context:\n[1] t1: one\n[2] t2: two\n\nQuestion: Why?"),
    )


def test_a_placeholder_inside_a_question_or_a_passage_stays_as_it_is_written():
    messages = fill(ANSWER, "What is {context}?", passages("{question} {title} {text}"), ())
    assert messages[-1].content == "Context:\n[1] t1: {question} {title} {text}\n\nQuestion: What is {context}?"


def test_other_braces_of_a_template_are_literal():
    template = replace(ANSWER, messages=(Message(role="user", content='{"q": "{question}", {x}}'),))
    assert fill(template, "Why?", (), ())[0].content == '{"q": "Why?", {x}}'


def test_without_passages_the_paragraph_about_the_context_is_left_out():
    assert fill(ANSWER, "Why?", (), ())[-1].content == "Question: Why?"


def test_without_passages_a_message_that_holds_only_the_context_is_left_out():
    template = replace(ANSWER, messages=(Message(role="system", content="Know: {context}"), Message(role="user", content="{question}")))
    assert fill(template, "Why?", (), ()) == (Message(role="user", content="Why?"),)


def test_without_passages_the_question_stays_even_where_it_shares_a_paragraph_with_the_context():
    template = replace(ANSWER, messages=(Message(role="user", content="{context}\n{question}"),))
    assert fill(template, "Why?", (), ())[0].content.strip() == "Why?"


def test_history_stands_before_the_question_and_behind_the_instructions():
    history = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello"))
    assert [turn.content for turn in fill(ANSWER, "Why?", (), history)] == ["Be brief.", "Hi", "Hello", "Question: Why?"]


# Fitting


def test_everything_that_fits_is_kept():
    messages, used, num_tokens = fit(ANSWER, Question(text="Why?", passages=passages("one", "two")), WordCounter())
    assert used == passages("one", "two") and num_tokens == WordCounter().count(messages) <= 100


def test_passages_that_do_not_fit_are_left_out_from_the_end():
    # Be brief. = 3, Context: Question: Why? + turn = 4, each passage "[n] tn: w w w w" = 6.
    question = Question(text="Why?", passages=passages(*["w w w w"] * 5), max_prompt_tokens=20)
    messages, used, num_tokens = fit(ANSWER, question, WordCounter())
    assert [passage.passage_id for passage in used] == ["p1", "p2"] and num_tokens == 19
    assert "[2] t2" in messages[-1].content and "[3]" not in messages[-1].content


def test_the_oldest_turns_go_first_and_before_any_passage():
    history = tuple(Message(role=role, content=f"{role} {number}") for number in range(3) for role in ("user", "assistant"))
    question = Question(text="Why?", passages=passages("one"), history=history, max_prompt_tokens=10 + 6)
    messages, used, _ = fit(ANSWER, question, WordCounter())
    assert len(used) == 1
    assert [turn.content for turn in messages[1:-1]] == ["user 2", "assistant 2"]


def test_an_answer_whose_question_was_left_out_goes_too():
    history = tuple(Message(role=role, content=f"{role} {number}") for number in range(2) for role in ("user", "assistant"))
    question = Question(text="Why?", history=history, max_prompt_tokens=6 + 10)
    messages, _, _ = fit(ANSWER, question, WordCounter())
    assert [turn.content for turn in messages[1:-1]] == ["user 1", "assistant 1"]


def test_a_question_alone_over_the_budget_is_refused_with_both_numbers():
    with pytest.raises(QuestionTooLong, match=r"6 tokens.*at most 5"):
        fit(ANSWER, Question(text="Why?", passages=passages("one"), max_prompt_tokens=5), WordCounter())


def test_a_template_without_context_uses_no_passage_and_says_so():
    template = replace(ANSWER, messages=(Message(role="user", content="{question}"),))
    messages, used, _ = fit(template, Question(text="Why?", passages=passages("one")), WordCounter())
    assert used == () and messages == (Message(role="user", content="Why?"),)


@given(
    lengths=st.lists(st.integers(1, 12), max_size=8),
    turns=st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.integers(1, 9)), max_size=8),
    budget=st.integers(6, 80),
)
def test_bisection_keeps_as_much_as_trying_every_step_would(lengths, turns, budget):
    history = tuple(Message(role=role, content="w " * size) for role, size in turns)
    question = Question(text="Why?", passages=passages(*("w " * size for size in lengths)), history=history, max_prompt_tokens=budget)
    counter = WordCounter()
    messages, used, num_tokens = fit(ANSWER, question, counter)
    assert num_tokens == counter.count(messages) <= budget
    dropped_turns = len(history) - (len(messages) - 2)
    if len(used) < len(lengths):
        assert dropped_turns == len(history), "a passage was left out while a turn stayed"
        one_more = fill(ANSWER, "Why?", question.passages[: len(used) + 1], ())
        assert counter.count(one_more) > budget
    if len(used) < len(lengths) or dropped_turns:
        assert counter.count(fill(ANSWER, "Why?", question.passages, history)) > budget or history[0].role == "assistant"


# Checks


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "Answer"}, "template.name"),
        ({"name": "../x"}, "template.name"),
        ({"name": "a" * 65}, "template.name"),
        ({"messages": ()}, "template.messages"),
        ({"messages": (Message(role="user", content="{question}"),) * 9}, "template.messages"),
        ({"messages": (Message(role="tool", content="{question}"),)}, r"template.messages\[0\].role"),
        ({"messages": (Message(role="user", content="no question"),)}, "template.messages"),
        ({"messages": (Message(role="user", content="{question}"), Message(role="assistant", content="ok"))}, "template.messages"),
        ({"messages": (Message(role="system", content="{question}"), Message(role="user", content="{question}"))}, "template.messages"),
        ({"max_prompt_tokens": 0}, "template.max_prompt_tokens"),
        ({"max_prompt_tokens": 131_073}, "template.max_prompt_tokens"),
        ({"passage_format": "{title}"}, "template.passage_format"),
        ({"description": "x" * 32_769}, "template: its texts"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_and_the_field_is_named(change, field):
    with pytest.raises(InvalidInput, match=field):
        check_template(replace(ANSWER, **change))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"text": " \n"}, "question"),
        ({"text": "x" * 32_769}, "question"),
        ({"passages": passages(*["x"] * 51)}, "passages"),
        ({"passages": passages("é" * 40_000)}, r"passages\[0\]"),
        ({"history": (Message(role="system", content="Obey."),)}, r"history\[0\].role"),
        ({"history": (Message(role="user", content="x"),) * 201}, "history"),
        ({"history": (Message(role="user", content="x" * 32_769),)}, r"history\[0\].content"),
        ({"max_prompt_tokens": 131_073}, "max_prompt_tokens"),
    ],
)
def test_a_question_beyond_the_limits_is_refused_and_the_field_is_named(change, field):
    with pytest.raises(InvalidInput, match=field):
        check_question(replace(Question(text="Why?"), **change))


# Versions and labels


def version(number: int) -> Template:
    return replace(ANSWER, version=number, description=f"v{number}")


async def test_the_label_decides_the_version():
    parts = assembler(MemoryStore(version(1), version(2), version(3)), FixedLabels({"production": 2, "canary": 3}))
    assert (await parts.assemble("answer", "", Question(text="Why?"))).prompt_version == "answer@v2"
    assert (await parts.assemble("answer", "canary", Question(text="Why?"))).prompt_version == "answer@v3"


async def test_a_version_that_was_only_put_is_not_live():
    parts = assembler(MemoryStore(version(1), version(2)))
    prompt = await parts.assemble("answer", "", Question(text="Why?"))
    assert (prompt.prompt_version, prompt.degraded_reason) == ("answer@v1", "")


async def test_before_the_labels_are_known_the_newest_version_answers_and_says_so():
    parts = assembler(MemoryStore(version(1), version(2)), FixedLabels(is_known=False))
    prompt = await parts.assemble("answer", "", Question(text="Why?"))
    assert (prompt.prompt_version, prompt.degraded_reason) == ("answer@v2", "labels_unavailable")


async def test_without_labels_and_without_a_store_the_built_in_version_answers_and_says_both():
    store = MemoryStore(version(1))
    store.is_down = True
    prompt = await assembler(store, FixedLabels(is_known=False)).assemble("answer", "", Question(text="Why?"))
    assert (prompt.prompt_version, prompt.degraded_reason) == ("answer@v1", "labels_unavailable,template_store_unavailable")


async def test_estimated_tokens_are_said():
    prompt = await assembler(counter=WordCounter(is_exact=False)).assemble("answer", "", Question(text="Why?"))
    assert prompt.degraded_reason == "tokens_estimated"


@pytest.mark.parametrize(("name", "label"), [("nope", ""), ("answer", "nope"), ("nope", "production")])
async def test_an_unknown_template_or_label_is_not_found(name, label):
    with pytest.raises(TemplateNotFound, match="nope"):
        await assembler().assemble(name, label, Question(text="Why?"))


async def test_a_label_that_points_at_a_version_that_is_not_there_is_no_reason_to_take_another_template():
    with pytest.raises(LabelDangles, match="v7"):
        await assembler(labels=FixedLabels({"production": 7})).assemble("answer", "", Question(text="Why?"))


async def test_nothing_in_a_question_a_passage_or_a_turn_can_end_its_own_turn():
    question = Question(text="Why?<end>", passages=passages("one<end>"), history=(Message(role="user", content="Hi<end>"),))
    prompt = await assembler().assemble("answer", "", question)
    assert not any("<end>" in message.content for message in prompt.messages)


async def test_put_counts_up_from_the_newest_version():
    parts = assembler()
    assert await parts.put(replace(ANSWER, version=0, description="new")) == 2
    assert await parts.put(replace(ANSWER, version=0, name="other")) == 1


async def test_the_same_text_as_the_newest_version_returns_that_version():
    store = MemoryStore(version(1), version(2))
    assert await assembler(store).put(replace(version(2), version=0)) == 2
    assert await assembler(store).put(replace(version(1), version=0)) == 3, "the text of an older version is a new version"


async def test_a_number_that_somebody_else_took_meanwhile_is_not_overwritten():
    class Raced(MemoryStore):
        async def add(self, template: Template) -> bool:
            if template.version == 2:
                self.templates["answer", 2] = version(2)
            return await super().add(template)

    store = Raced(version(1))
    assert await assembler(store).put(replace(ANSWER, version=0, description="mine")) == 3
    assert store.templates["answer", 2] == version(2) and store.templates["answer", 3].description == "mine"


async def test_a_template_has_a_bounded_number_of_versions():
    with pytest.raises(InvalidInput, match="3 versions already"):
        await assembler(MemoryStore(version(1), version(2), version(3))).put(replace(ANSWER, version=0))


async def test_put_refuses_a_version_number_of_the_caller():
    with pytest.raises(InvalidInput, match=r"template\.version"):
        await assembler().put(replace(ANSWER, version=5))


async def test_get_returns_a_version_with_the_labels_that_point_at_it():
    parts = assembler(MemoryStore(version(1), version(2)), FixedLabels({"production": 2, "canary": 2, "old": 1}))
    assert await parts.get("answer", 0, "") == (version(2), ("canary", "production"))
    assert await parts.get("answer", 1, "") == (version(1), ("old",))
    with pytest.raises(TemplateNotFound, match="no version 9"):
        await parts.get("answer", 9, "")


async def test_summaries_name_the_newest_version_and_the_labels():
    (summary,) = await assembler(MemoryStore(version(1), version(2)), FixedLabels({"production": 1})).summaries()
    assert (summary.name, summary.newest_version, summary.labels) == ("answer", 2, {"production": 1})
