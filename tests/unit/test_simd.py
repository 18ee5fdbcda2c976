"""Flags of the CPU against the build string of llama.cpp."""

from __future__ import annotations

import pytest

from edgebench.analysis.simd import missing_simd

# Said by llama_print_system_info of a native build on an AMD EPYC of family 25.
NATIVE = (
    "CPU : SSE3 = 1 | SSSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | BMI2 = 1 | AVX512 = 1 | AVX512_VBMI = 1 | "
    "AVX512_VNNI = 1 | AVX512_BF16 = 1 | LLAMAFILE = 1 | OPENMP = 1 | REPACK = 1 | "
)
X86 = ["ssse3", "fma", "avx", "f16c", "bmi2", "avx2"]
AVX512 = ["avx512f", "avx512dq", "avx512bw", "avx512cd", "avx512vl"]
EPYC = [*X86, *AVX512, "avx512vbmi", "avx512_vnni", "avx512_bf16"]
ALDER_LAKE = [*X86, "avx_vnni"]
CORTEX_A76 = ["fp", "asimd", "aes", "atomics", "fphp", "asimdhp", "asimdrdm", "asimddp"]


def test_a_native_build_leaves_nothing_out():
    assert missing_simd(EPYC, NATIVE, "x86_64") == []


def test_a_set_that_is_zero_or_absent_is_missing():
    build = NATIVE.replace("AVX2 = 1", "AVX2 = 0").replace("F16C = 1 | ", "")
    assert missing_simd(EPYC, build, "x86_64") == ["AVX2", "F16C"]


def test_a_set_that_the_cpu_lacks_is_not_missing():
    assert missing_simd(["ssse3", "avx"], "CPU : SSE3 = 1 | SSSE3 = 1 | AVX = 1", "x86_64") == []


def test_avx512_is_missing_only_when_the_cpu_has_every_part_that_the_code_needs():
    build = "CPU : SSSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | BMI2 = 1"
    assert "AVX512" in missing_simd(EPYC, build, "x86_64")
    assert "AVX512" not in missing_simd([flag for flag in EPYC if flag != "avx512vl"], build, "x86_64")


def test_a_generic_build_on_a_hybrid_laptop_misses_vnni():
    build = "CPU : SSE3 = 1 | SSSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | BMI2 = 1 | REPACK = 1"
    assert missing_simd(ALDER_LAKE, build, "x86_64") == ["AVX_VNNI"]


def test_the_narrow_vnni_is_not_missed_where_the_wide_one_is_built():
    assert missing_simd([*EPYC, "avx_vnni"], NATIVE, "x86_64") == []


def test_a_build_for_any_armv8_misses_dotprod_on_a_raspberry_pi_5():
    assert missing_simd(CORTEX_A76, "CPU : NEON = 1 | ARM_FMA = 1 | LLAMAFILE = 1", "aarch64") == ["FP16_VA", "DOTPROD"]


def test_i8mm_has_another_name_in_the_build():
    build = "CPU : NEON = 1 | ARM_FMA = 1 | FP16_VA = 1 | DOTPROD = 1"
    assert missing_simd([*CORTEX_A76, "i8mm"], build, "arm64") == ["MATMUL_INT8"]
    assert missing_simd([*CORTEX_A76, "i8mm"], build + " | MATMUL_INT8 = 1", "arm64") == []


def test_the_line_of_another_backend_before_it_does_no_harm():
    assert missing_simd(CORTEX_A76, "CUDA : ARCHS = 870 | CPU : NEON = 1 | FP16_VA = 1 | DOTPROD = 1", "aarch64") == []


@pytest.mark.parametrize("text", ["", "scripted times, no engine", "fake 1", "CPU"])
def test_a_text_that_names_no_set_says_nothing_about_missing_ones(text):
    assert missing_simd(EPYC, text, "x86_64") == []


def test_an_unknown_machine_misses_nothing():
    assert missing_simd(["v"], "CPU : RISCV_V = 0 | LLAMAFILE = 1", "riscv64") == []
