"""Which instruction sets the processor has and a build of llama.cpp does not use.

A build made for "any x86-64" or "any ARMv8" runs everywhere and slowly: without AVX2 or DOTPROD the quantized dot
products fall back to narrow code, and the repacked weight layouts silently disappear. llama.cpp reports what was
compiled in as ``CPU : SSE3 = 1 | AVX2 = 1 | ...``; a set that is absent from that line was not compiled in. The kernel
reports what the processor has, in names of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Name in the build string, and the kernel's flags that must all be there for the code to run.
_X86 = {
    "SSSE3": {"ssse3"},
    "AVX": {"avx"},
    "AVX2": {"avx2"},
    "F16C": {"f16c"},
    "FMA": {"fma"},
    "BMI2": {"bmi2"},
    "AVX_VNNI": {"avx_vnni"},
    "AVX512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "AVX512_VBMI": {"avx512vbmi"},
    "AVX512_VNNI": {"avx512_vnni"},
    "AVX512_BF16": {"avx512_bf16"},
    "AMX_INT8": {"amx_tile", "amx_int8"},
}
_ARM = {
    "NEON": {"asimd"},
    "FP16_VA": {"asimdhp"},
    "DOTPROD": {"asimddp"},
    "MATMUL_INT8": {"i8mm"},
    "SVE": {"sve"},
    "SME": {"sme"},
}
_TABLES = {"x86_64": _X86, "amd64": _X86, "i686": _X86, "aarch64": _ARM, "arm64": _ARM}
_ITEM = re.compile(r"\b([A-Z][A-Z0-9_]*) = (\d+)")


def missing_simd(cpu_flags: Iterable[str], build_text: str, machine: str) -> list[str]:
    """Instruction sets that the CPU has and the build leaves unused, by their names in the build string.

    Args:
        cpu_flags: flags in the kernel's names (``avx2``, ``asimddp``).
        build_text: what ``llama_print_system_info`` said. A text of another form names nothing, so nothing is missing.
        machine: ``uname -m``; a machine that is neither x86 nor 64-bit ARM gives an empty list.
    """
    built = {name for name, value in _ITEM.findall(build_text) if value != "0"}
    if not built:
        return []
    has = set(cpu_flags)
    table = _TABLES.get(machine.lower(), {})
    missing = [name for name, needs in table.items() if needs <= has and name not in built]
    if "AVX_VNNI" in missing and "AVX512_VNNI" in built:
        missing.remove("AVX_VNNI")  # the same instructions in a wider form are used instead
    return missing
