"""What an image needs of what is installed."""

from packaging.requirements import Requirement

from services.mesh.images.locks import closure


def requires(**lines: list[str]) -> dict[str, list[Requirement]]:
    return {name.replace("_", "-"): [Requirement(line) for line in found] for name, found in lines.items()}


def test_a_root_brings_what_it_requires_and_nothing_else() -> None:
    known = requires(web=["Http_Core>1", "absent"], http_core=["web"], test_tool=["web"])
    assert closure([Requirement("Web")], known) == {"web", "http-core"}


def test_an_extra_counts_where_it_is_asked_for() -> None:
    known = requires(client=["plain", "fast; extra == 'fast'"], plain=[], fast=["faster; extra == 'all'"], faster=[])
    assert closure([Requirement("client")], known) == {"client", "plain"}
    assert closure([Requirement("client[fast]")], known) == {"client", "plain", "fast"}
    assert closure([Requirement("client[fast]"), Requirement("fast[all]")], known) == {"client", "plain", "fast", "faster"}


def test_a_requirement_of_another_system_is_left_out() -> None:
    known = requires(a=["b; sys_platform == 'win32'", "c; python_version >= '3'"], b=[], c=[])
    assert closure([Requirement("a")], known) == {"a", "c"}
