"""`tunemesh mig plan` from its arguments to the override, and the wrong arguments that it refuses."""

import argparse
from fractions import Fraction

import pytest
import yaml

from services.mesh.__main__ import main
from services.mesh.mig.command_line import parse_need
from services.mesh.mig.placement import Need


class _Loader(yaml.SafeLoader):
    """Reads compose's !override as the value itself."""


_Loader.add_constructor("!override", lambda loader, node: loader.construct_mapping(node, deep=True))


@pytest.mark.parametrize(
    ("text", "need"),
    [
        ("llm=40g", Need(service="llm", memory_gb=40)),
        ("llm=40g,share=3/7", Need(service="llm", memory_gb=40, share=Fraction(3, 7))),
        ("llm=40g,share=0.5", Need(service="llm", memory_gb=40, share=Fraction(1, 2))),
        ("prompt_assembler=5g,share=1", Need(service="prompt_assembler", memory_gb=5, share=Fraction(1))),
    ],
)
def test_a_need_is_read(text: str, need: Need) -> None:
    assert parse_need(text) == need


@pytest.mark.parametrize(
    "text", ["llm", "llm=40", "llm=0g", "=40g", "llm=40g,share=0", "llm=40g,share=8/7", "llm=40g,share=1/0", "llm=40g,share=.."]
)
def test_a_need_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_need(text)


def test_the_printed_override_is_compose_and_gives_each_service_its_slice(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpu", "h100-80", "--need", "llm=40g,share=3/7", "--need", "tuner=20g", "--need", "triton=10g"]
    assert main(["mig", "plan", *arguments]) == 0
    printed = capsys.readouterr().out
    services = yaml.load(printed, _Loader)["services"]
    devices = {name: one["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for name, one in services.items()}
    assert devices == {"llm-gpu": ["0:0"], "tuner-gpu": ["0:1"], "triton-gpu": ["0:2"]}
    assert "# llm                    0  3g.40gb    0-3            3/7" in printed
    assert "# nvidia-smi mig -i 0 -cgi 3g.40gb:0,1g.20gb:4,1g.10gb:6 -C" in printed


def test_a_gpu_of_four_slices_is_planned_in_fourths(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpu", "rtx-pro-6000-96", "--need", "llm=40g,share=3/7", "--need", "tuner=20g", "--need", "triton=20g"]
    assert main(["mig", "plan", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "# llm                    0  2g.48gb    0-1            2/4" in printed
    assert "# nvidia-smi mig -i 0 -cgi 2g.48gb:0,1g.24gb:2,1g.24gb:3 -C" in printed


def test_needs_that_do_not_fit_end_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mig", "plan", "--gpu", "a100-40", "--need", "llm=40g", "--need", "tuner=5g"]) == 1
    assert "nothing fits on 1 × a100-40: together the needs take at least 9 memory slices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--need", "nobody=10g"], "the compose file has no service nobody-gpu or nobody"),
        (["--need", "llm=10g", "--need", "llm=20g"], "name each service once"),
    ],
)
def test_wrong_needs_are_one_line_and_exit_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["mig", "plan", "--gpu", "h100-80", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
