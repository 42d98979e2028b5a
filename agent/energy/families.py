"""The kinds of power sensors that moe2 knows. PURE."""

from __future__ import annotations

from typing import Literal

Family = Literal["ina3221", "jtop", "nvml", "rapl"]
FAMILIES: tuple[Family, ...] = ("ina3221", "jtop", "nvml", "rapl")
"""In order of preference where two measure the same device."""
