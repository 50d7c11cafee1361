"""Documents of the operator's commands as tables on a terminal. `--json` prints the same documents whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

# More items, features or letters than these do not fit a screen; --json has all.
_MAX_ITEMS = 20
_MAX_TEXT = 400
_PIPED_WIDTH = 220


def _console() -> Console:
    """The terminal; where there is none, wide enough for the names of features."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=_PIPED_WIDTH)


def print_json(document: Any) -> None:
    """Print a document for programs: one JSON value, keys in the document's order."""
    print(json.dumps(document, indent=1, ensure_ascii=False))


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print a document as names and values."""
    _console().print(_fields(fields))


def print_rows(rows: Sequence[Mapping[str, Any]], *, empty: str) -> None:
    """Print rows of equal keys as a table, or a line when there are none."""
    _console().print(_rows(rows) if rows else Text(empty))


def print_lineage(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the document of `lineage` about features: a row each, versions as a range."""
    shown = [
        {
            "feature": row["feature"],
            "kind": row["kind"],
            "makes": ", ".join(row["makes"]) or "–",
            "from": ", ".join(f"{source['reference']} ({source['topic']})" for source in row["sources"]),
            "versions": _range(row["versions"]),
        }
        for row in rows
    ]
    print_rows(shown, empty="the spec has no features")


def print_version(document: Mapping[str, Any]) -> None:
    """Print the document of `lineage` about a version."""
    head = {key: document[key] for key in ("version", "checkpoint", "written_at", "schema_hash")}
    features = Text(", ".join(document["features"]))
    _console().print(Group(_fields(head), _titled("made from", _rows(document["sources"])), _titled("features", features)))


def print_documents(document: Mapping[str, Any]) -> None:
    """Print the document of `documents`: what is searched, then files and what is wrong with them."""
    passages = ", ".join(f"{count:,} of {source}" for source, count in document["passages"].items()) or "none"
    parts: list[RenderableType] = [_fields({"passages": passages, "index version": document["index_version"]})]
    for title, key in (("refused", "refused"), ("indexed in part", "incomplete")):
        rows = [{"file": name, "why": reason} for name, reason in document[key].items()]
        parts.append(_titled(title, _rows(rows)) if rows else Text(f"no file is {title}"))
    _console().print(Group(*parts))


def _range(versions: Sequence[str]) -> str:
    if len(versions) < 2:
        return versions[0] if versions else "none kept"
    return f"{versions[0]} to {versions[-1]} ({len(versions)} kept)"


def print_recommendation(report: Mapping[str, Any]) -> None:
    """Print the document of `why` about a recommendation; features are those of the best items."""
    items = report["items"]
    shown = items[:_MAX_ITEMS]
    top = [
        {
            "rank": item["rank"],
            "item": item["item_id"],
            "score": _number(item["score"]),
            "channel": item["channel"] or "?",
            "propensity": _number(item["propensity"]),
            "samples": ", ".join(_sample(sample) for sample in item["samples"]),
        }
        for item in shown
    ]
    parts: list[RenderableType] = [_fields(_head(report) | {"features missing": report["features_missing"]}), _titled("items", _rows(top))]
    if len(items) > len(shown):
        parts.append(Text(f"… {len(items) - len(shown)} more items (--json)"))
    for side in ("context", "profile"):
        if report[side]:
            brought = {name: str(value)[:_MAX_TEXT] for name, value in list(report[side].items())[:_MAX_ITEMS]}
            parts.append(_titled(f"{side} of the request", _fields(brought)))
    if report["user_features"]:
        of_user = {name: _number(value) for name, value in report["user_features"].items()}
        parts.append(_titled("user features", _fields(of_user | {name: _words(words) for name, words in report["user_rows"].items()})))
        newest = [f"{entry['item_key']} ({_number(entry['value'])})" for entry in report["history"]]
        parts.append(Text(f"history, newest first: {', '.join(newest) or 'empty'}"))
        for name, events in report["sequences"].items():
            rows = [{part: _words(words) for part, words in event.items()} for event in events[:_MAX_ITEMS]]
            parts.append(_titled(f"{name}, newest first", _rows(rows) if rows else Text("no event")))
        parts.append(_titled("item features", _features(shown)))
    _console().print(Group(*parts, *_followed(report)))


def print_generation(report: Mapping[str, Any]) -> None:
    """Print the document of `why` about an answer."""
    head = _head(report) | {
        "task": report["task"],
        "prompt version": report["prompt_version"],
        "passages": ", ".join(report["passage_ids"]),
        "tokens": f"{report['tokens']['prompt']} in the prompt, {report['tokens']['completion']} answered ({report['finish_reason']})",
        "times": f"first token after {report['first_token_ms']} ms, done after {report['finished_ms']} ms",
    }
    prompt = [{"role": message["role"], "content": message["content"]} for message in report["messages"]]
    parts: list[RenderableType] = [_fields(head), _titled("prompt", _rows(prompt)), _titled("answer", Text(report["answer"]))]
    if report["examples"]:
        examples = [{**example, "answer": _short(example["answer"])} for example in report["examples"]]
        parts.append(_titled("examples made of it", _rows(examples)))
    _console().print(Group(*parts, *_followed(report)))


def _head(report: Mapping[str, Any]) -> dict[str, Any]:
    at = report["logged_at"]
    return {
        "request": f"{report['request_id']} ({report['kind']})",
        "user": report["user_id"],
        "at": report["at"],
        "variant": f"{report['variant']}{' of ' + report['experiment'] if report['experiment'] else ''}",
        "model version": report["model_version"],
        "degraded": report["degraded_reason"],
        "logged": f"{at['topic']}[{at['partition']}]@{at['offset']}",
    }


def _followed(report: Mapping[str, Any]) -> list[RenderableType]:
    """What came after the request: feedback, dead letters, and what could not be read."""
    parts: list[RenderableType] = []
    parts.append(_titled("feedback", _rows(report["feedback"])) if report["feedback"] else Text("no feedback"))
    if report["dead_letters"]:
        parts.append(_titled("dead letters", _rows(report["dead_letters"])))
    if report["incomplete"]:
        parts.append(Text(f"not read to the end (TUNEMESH_OPERATE_SCAN_RECORDS): {', '.join(report['incomplete'])}", style="yellow"))
    return parts


def _sample(sample: Mapping[str, Any]) -> str:
    labels = " ".join(f"{task}={value:g}" for task, value in sample["labels"].items())
    if sample["is_passed_over"]:
        return f"{labels} passed over by a rollback"
    learned = {True: " learned", False: " not learned yet", None: ""}[sample["is_learned"]]
    return f"{labels}{learned}"


def _features(items: Sequence[Mapping[str, Any]]) -> Table:
    """One row per feature, one column per item: there are more features than fit beside each other."""
    table = Table(show_edge=False, header_style="bold")
    table.add_column("feature")
    few = items[:8]
    for item in few:
        table.add_column(escape(item["item_id"]), justify="right")
    for name in few[0]["features"] if few else ():
        table.add_row(name, *(_number(item["features"][name]) for item in few))
    for name in few[0]["rows"] if few else ():
        table.add_row(name, *(escape(_words(item["rows"][name])) for item in few))
    return table


def _fields(fields: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, show_edge=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value not in ("", None):
            table.add_row(escape(name), escape(str(value)))
    return table


def _rows(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(show_edge=False, header_style="bold")
    for name in rows[0] if rows else ():
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row.values()))
    return table


def _titled(title: str, body: RenderableType) -> Group:
    return Group(Text(f"\n{title}", style="bold underline"), body)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    return "" if value is None else str(value)


def _words(words: Sequence[str]) -> str:
    """Rows of a table in a cell."""
    return _short(", ".join(words))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
