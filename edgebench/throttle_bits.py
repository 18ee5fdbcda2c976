"""What firmware and drivers say in bits about why a processor is slow: one table for each of them.

Sensors write them in words for a person, ``analysis`` judges a run by them.
"""

from __future__ import annotations

PI_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
"""Bits of the Raspberry Pi's ``get_throttled`` (Raspberry Pi documentation, vcgencmd): now."""
PI_SINCE_BOOT = 16
"""The same flags, shifted by so many bits, stay set from their first time until the next boot."""

NVML_REASONS = {
    0: "idle",
    1: "clock set by an application",
    2: "power limit",
    3: "hardware slowdown",
    4: "synchronised with other GPUs",
    5: "software temperature limit",
    6: "hardware temperature limit",
    7: "power brake",
    8: "display clock",
}
"""Bits of the clocks-event reasons of an NVIDIA GPU (nvml.h, nvmlClocksEventReason*)."""
NVML_SLOWED = (2, 3, 5, 6, 7)
"""The bits that mean: slower than the GPU could be."""
NVML_POWER_LIMIT = 2
"""The one among them that is normal at full load, above all in a laptop."""
