"""What `tunemesh mig status` and `plan --on-host` make of NVML's answers."""

import pynvml
import pytest

from services.common.platform.errors import Unavailable
from services.mesh.mig.host import devices_of, read_host
from services.mesh.mig.override import commands, compose_names, expected_devices
from services.mesh.mig.placement import Need, Refusal, Slice, place
from services.mesh.mig.profiles import GPUS
from tests import mig_answers as answers


def plan(*needs: tuple[str, int]) -> tuple[Slice, ...]:
    found = place(GPUS["h100-80"], [Need(service=service, memory_gb=memory) for service, memory in needs])
    assert not isinstance(found, Refusal)
    return found


def test_the_slices_of_a_gpu_are_read_with_their_numbers_for_containers() -> None:
    nvml = answers.divided_h100()
    [gpu] = read_host(nvml)
    assert (gpu.index, gpu.name, gpu.memory_mib, gpu.mig) == (0, "NVIDIA H100 80GB HBM3", 81559, "on")
    assert [(one.index, one.profile, one.memory_mib, one.compute, one.start) for one in gpu.slices] == [
        (0, "3g.40gb", 40448, 3, 0),
        (1, "1g.20gb", 20096, 1, 4),
        (2, "1g.10gb", 9984, 1, 6),
    ]
    assert gpu.slices[0].uuid == "MIG-0000-0000"
    assert nvml.calls[-1] == "nvmlShutdown"


def test_every_state_of_mig_has_its_word_and_only_a_divided_gpu_is_asked_for_slices() -> None:
    gpus = read_host(answers.mixed())
    assert [gpu.mig for gpu in gpus] == ["not supported", "off", "on after a reset", "on"]
    assert [gpu.slices for gpu in gpus] == [(), (), (), ()]


def test_without_the_right_to_ask_a_slice_is_shown_without_its_start() -> None:
    [gpu] = read_host(answers.divided_h100(by_id=pynvml.NVML_ERROR_NO_PERMISSION))
    assert [one.start for one in gpu.slices] == [None, None, None]
    assert gpu.slices[1].profile == "1g.20gb"


def test_an_error_that_nobody_expects_is_no_missing_start() -> None:
    with pytest.raises(Unavailable, match="NVML stopped answering: GPU is lost"):
        read_host(answers.divided_h100(by_id=pynvml.NVML_ERROR_GPU_IS_LOST))


def test_a_machine_without_the_driver_says_so() -> None:
    nvml = answers.machine(num_gpus=0, errors={("nvmlInit",): pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})
    with pytest.raises(Unavailable, match="NVML does not answer on this machine: NVML Shared Library Not Found"):
        read_host(nvml)


def test_a_plan_finds_its_slices_on_the_machine_whatever_their_order() -> None:
    planned = plan(("triton", 10), ("llm", 40), ("tuner", 20))
    assert devices_of(planned, read_host(answers.divided_h100())) == {"triton": "0:2", "llm": "0:0", "tuner": "0:1"}
    assert expected_devices(planned) == {"llm": "0:0", "tuner": "0:1", "triton": "0:2"}


def test_a_plan_whose_slices_do_not_exist_names_them() -> None:
    said = devices_of(plan(("llm", 40), ("tuner", 40)), read_host(answers.divided_h100()))
    assert isinstance(said, str)
    assert "this machine has no 3g.40gb at 4 of GPU 0 (for tuner): create the slices" in said


def test_the_commands_divide_each_gpu_with_every_slice_at_its_place() -> None:
    assert commands(plan(("triton", 10), ("llm", 40), ("tuner", 20))) == [
        "nvidia-smi -i 0 -mig 1",
        "nvidia-smi mig -i 0 -cgi 3g.40gb:0,1g.20gb:4,1g.10gb:6 -C",
    ]


def test_a_need_is_for_the_gpu_variant_of_a_service_when_there_is_one() -> None:
    assert compose_names(["llm", "trainer"], {"llm", "llm-gpu", "trainer"}) == {"llm": "llm-gpu", "trainer": "trainer"}
