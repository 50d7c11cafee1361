from __future__ import annotations

import asyncio
import stat
from dataclasses import replace

import pytest

from services.common.events.chat import Message
from services.common.platform.errors import ConfigurationError, InvalidInput, Unavailable
from services.prompt_assembler.core.template import Template
from services.prompt_assembler.store import FileTemplateStore, load_built_in, parse_template, write_template

PUT = Template(
    name="answer",
    version=2,
    messages=(Message(role="system", content="Kurz: ü – 日本\n"), Message(role="user", content="  {context}\n\n{question}")),
    max_prompt_tokens=50,
    passage_format="'{title}': {text}",
    description="# not a comment: a text",
)
BUILT_IN = replace(PUT, version=1, description="built in")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def store_at(url, clock) -> FileTemplateStore:
    return FileTemplateStore(str(url), [BUILT_IN], check_s=1.0, monotonic_s=clock)


def test_a_template_survives_its_file():
    assert parse_template(write_template(PUT), name="answer", version=2) == PUT


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "not YAML"),
        (b"format: 2\nmax_prompt_tokens: 5\nmessages: []", "key format"),
        (b"format: 1\nmax_prompt_tokens: 5\nmessages: []\nmesages: []", "key mesages"),
        (b"format: 1\nmax_prompt_tokens: 5\nmessages: [{role: user, content: bare}]", "{question}"),
        (b"!!python/object/apply:os.system ['true']", "not YAML"),
        (b"x" * 200_000, "more than"),
    ],
)
def test_a_damaged_file_is_refused_with_its_reason(raw, reason):
    with pytest.raises(InvalidInput, match=reason):
        parse_template(raw, name="answer", version=1)


def test_the_built_in_templates_can_be_used_and_are_called_by_their_files():
    assert [(template.name, template.version) for template in load_built_in()] == [("answer", 1)]


def test_a_built_in_template_that_cannot_be_used_stops_the_start_and_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("format: 1")
    with pytest.raises(ConfigurationError, match=r"bad\.yaml"):
        load_built_in(tmp_path)


async def test_what_was_put_is_found_by_another_store_on_the_same_folder(tmp_path, clock):
    assert await store_at(tmp_path, clock).add(PUT)
    other = store_at(tmp_path, clock)
    assert await other.get("answer", 2) == PUT
    assert list(await other.versions("answer")) == [1, 2]
    assert list(await other.names()) == ["answer"]


async def test_a_version_is_created_once_and_never_replaced(tmp_path, clock):
    first, second = store_at(tmp_path, clock), store_at(tmp_path, clock)
    assert await first.add(PUT)
    assert not await second.add(replace(PUT, description="other"))
    assert not await second.add(replace(BUILT_IN, description="other")), "nor is a built-in one"
    assert (await second.get("answer", 2)) == PUT
    assert [path.name for path in (tmp_path / "prompts" / "answer").iterdir()] == ["v2.yaml"], "nothing half-written stays"
    assert stat.S_IMODE((tmp_path / "prompts" / "answer" / "v2.yaml").stat().st_mode) == 0o644


async def test_of_many_that_create_the_same_version_at_once_one_succeeds(tmp_path, clock):
    templates = [replace(PUT, description=str(number)) for number in range(8)]
    added = await asyncio.gather(*(store_at(tmp_path, clock).add(template) for template in templates))
    assert sum(added) == 1
    assert (await store_at(tmp_path, clock).get("answer", 2)) == templates[added.index(True)]


async def test_a_store_that_is_no_local_folder_works_too(clock):
    store = store_at("memory://templates-test", clock)
    assert list(await store.versions("answer")) == [1]
    assert await store.add(PUT)
    assert not await store_at("memory://templates-test", clock).add(PUT)
    assert await store_at("memory://templates-test", clock).get("answer", 2) == PUT


async def test_a_version_of_another_replica_is_known_after_the_check_time(tmp_path, clock):
    store = store_at(tmp_path, clock)
    assert list(await store.versions("answer")) == [1] and await store.get("answer", 2) is None
    await store_at(tmp_path, clock).add(PUT)
    assert list(await store.versions("answer")) == [1] and await store.get("answer", 2) is None
    clock.now_s = 1.0
    assert list(await store.versions("answer")) == [1, 2] and await store.get("answer", 2) == PUT


async def test_an_own_version_is_known_at_once_even_where_it_was_missing_before(tmp_path, clock):
    store = store_at(tmp_path, clock)
    assert await store.get("answer", 2) is None and list(await store.versions("answer")) == [1]
    assert await store.add(PUT)
    assert await store.get("answer", 2) == PUT and list(await store.versions("answer")) == [1, 2]


async def test_what_callers_ask_for_in_vain_is_not_kept_for_ever(tmp_path, clock):
    store = store_at(tmp_path, clock)
    for number in range(2_500):
        assert await store.get(f"task-{number}", 1) is None
    assert len(store._missing) <= 1_000


async def test_a_damaged_file_is_unavailable_and_the_built_in_version_still_answers(tmp_path, clock):
    folder = tmp_path / "prompts" / "answer"
    folder.mkdir(parents=True)
    (folder / "v2.yaml").write_text("format: 1")
    (folder / "v03.yaml").write_text("not a version")
    store = store_at(tmp_path, clock)
    with pytest.raises(Unavailable, match=r"v2\.yaml is damaged"):
        await store.get("answer", 2)
    assert await store.get("answer", 1) == BUILT_IN
    assert list(await store.versions("answer")) == [1, 2]


async def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path, clock):
    (tmp_path / "prompts").write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match="cannot be written"):
        await store_at(tmp_path, clock).add(PUT)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts"]
