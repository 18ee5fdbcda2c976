"""The storage formats of ggml: how many weights share a block, and how many bytes a block takes.

Source: the block structs in ggml's ``ggml-common.h`` and the ids of ``enum ggml_type`` in ``ggml.h``; the names of
whole files are ``enum llama_ftype`` in ``llama.h``. Ids that ggml has retired (4, 5, 31-33, 36-38) are absent on
purpose: no current engine reads them.
"""

from __future__ import annotations

from typing import NamedTuple


class GGMLType(NamedTuple):
    """``block`` weights are stored together in ``bytes`` bytes."""

    name: str
    block: int
    bytes: int


GGML_TYPES: dict[int, GGMLType] = {
    0: GGMLType("f32", 1, 4),
    1: GGMLType("f16", 1, 2),
    2: GGMLType("q4_0", 32, 2 + 16),
    3: GGMLType("q4_1", 32, 2 + 2 + 16),
    6: GGMLType("q5_0", 32, 2 + 4 + 16),
    7: GGMLType("q5_1", 32, 2 + 2 + 4 + 16),
    8: GGMLType("q8_0", 32, 2 + 32),
    9: GGMLType("q8_1", 32, 2 + 2 + 32),
    10: GGMLType("q2_k", 256, 16 + 64 + 2 + 2),
    11: GGMLType("q3_k", 256, 32 + 64 + 12 + 2),
    12: GGMLType("q4_k", 256, 2 + 2 + 12 + 128),
    13: GGMLType("q5_k", 256, 2 + 2 + 12 + 32 + 128),
    14: GGMLType("q6_k", 256, 128 + 64 + 16 + 2),
    15: GGMLType("q8_k", 256, 4 + 256 + 32),
    16: GGMLType("iq2_xxs", 256, 2 + 64),
    17: GGMLType("iq2_xs", 256, 2 + 64 + 8),
    18: GGMLType("iq3_xxs", 256, 2 + 96),
    19: GGMLType("iq1_s", 256, 2 + 32 + 16),
    20: GGMLType("iq4_nl", 32, 2 + 16),
    21: GGMLType("iq3_s", 256, 2 + 64 + 8 + 32 + 4),
    22: GGMLType("iq2_s", 256, 2 + 64 + 8 + 8),
    23: GGMLType("iq4_xs", 256, 2 + 2 + 4 + 128),
    24: GGMLType("i8", 1, 1),
    25: GGMLType("i16", 1, 2),
    26: GGMLType("i32", 1, 4),
    27: GGMLType("i64", 1, 8),
    28: GGMLType("f64", 1, 8),
    29: GGMLType("iq1_m", 256, 32 + 16 + 8),
    30: GGMLType("bf16", 1, 2),
    34: GGMLType("tq1_0", 256, 2 + 4 + 48),
    35: GGMLType("tq2_0", 256, 2 + 64),
    39: GGMLType("mxfp4", 32, 1 + 16),
    40: GGMLType("nvfp4", 64, 4 + 32),
    41: GGMLType("q1_0", 128, 2 + 16),
    42: GGMLType("q2_0", 64, 2 + 16),
}

FILE_TYPES: dict[int, str] = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    7: "q8_0",
    8: "q5_0",
    9: "q5_1",
    10: "q2_k",
    11: "q3_k_s",
    12: "q3_k_m",
    13: "q3_k_l",
    14: "q4_k_s",
    15: "q4_k_m",
    16: "q5_k_s",
    17: "q5_k_m",
    18: "q6_k",
    19: "iq2_xxs",
    20: "iq2_xs",
    21: "q2_k_s",
    22: "iq3_xs",
    23: "iq3_xxs",
    24: "iq1_s",
    25: "iq4_nl",
    26: "iq3_s",
    27: "iq3_m",
    28: "iq2_s",
    29: "iq2_m",
    30: "iq4_xs",
    31: "iq1_m",
    32: "bf16",
    36: "tq1_0",
    37: "tq2_0",
    38: "mxfp4_moe",
    39: "nvfp4",
    40: "q1_0",
    41: "q2_0",
}
