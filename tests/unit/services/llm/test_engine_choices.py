import os

from services.llm.engine import compute_dtype, engine_cores


def test_a_processor_without_bfloat16_computes_in_float32():
    assert compute_dtype("auto", on_cpu=True, capabilities={"avx2": True}) == "float32"


def test_a_processor_with_bfloat16_uses_it():
    assert compute_dtype("auto", on_cpu=True, capabilities={"avx512_bf16": True}) == "bfloat16"
    assert compute_dtype("auto", on_cpu=True, capabilities={"amx_bf16": True}) == "bfloat16"


def test_an_accelerator_and_a_named_type_are_left_to_vllm():
    assert compute_dtype("auto", on_cpu=False, capabilities={}) == "auto"
    assert compute_dtype("float16", on_cpu=True, capabilities={}) == "float16"


def test_all_cores_are_those_that_the_process_may_use():
    assert engine_cores("all") == ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    assert engine_cores("0-3") == "0-3"
