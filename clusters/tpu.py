"""The arithmetic of TPU v4 slices: what a topology holds, what it is called, and what its hardware can do.

Sources: Jouppi et al. 2023 (arXiv 2304.01433), table 4, and Google's page "TPU v4" (cloud.google.com/tpu/docs/v4).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Self

GENERATION: Final = "v4"
CORES_PER_CHIP: Final = 2
CHIPS_PER_HOST: Final = 4
CORES_PER_HOST: Final = CORES_PER_CHIP * CHIPS_PER_HOST
MOST_CHIPS: Final = 4096  # one pod
LONGEST: Final = 16  # chips along a dimension of it
MOST_CORES_OF_A_NAME: Final = 4096

PEAK_FLOPS_PER_S_PER_CHIP: Final = 275e12
"""bfloat16 FLOP/s of one chip (arXiv 2304.01433, table 4)."""
HBM_BYTES_PER_CHIP: Final = 32 * 2**30
"""Bytes of memory of one chip."""
HBM_BYTES_PER_S_PER_CHIP: Final = 1228e9
"""Bytes per second between one chip and its memory (Google's figure; the paper rounds it to 1200 GB/s)."""
CLOCK_HZ: Final = 1.05e9
"""Cycles per second of a core (arXiv 2304.01433, table 4: 1050 MHz)."""

PEAK_FLOPS_PER_S: Final = PEAK_FLOPS_PER_S_PER_CHIP / CORES_PER_CHIP
"""bfloat16 FLOP/s of one core."""
HBM_BYTES: Final = HBM_BYTES_PER_CHIP // CORES_PER_CHIP
"""Bytes of memory of one core, half of its chip's."""
HBM_BYTES_PER_S: Final = HBM_BYTES_PER_S_PER_CHIP / CORES_PER_CHIP
"""Bytes per second between one core and its memory."""

_ALLOWED: Final = "allowed: v4:AxBxC, chips along three dimensions, A <= B <= C, each 1, 2, 4 or a multiple of 4"


@dataclass(frozen=True, slots=True)
class Topology:
    """A slice of TPU v4 chips, such as v4:2x2x1: the chips along its three dimensions, the smallest first."""

    dimensions: tuple[int, int, int]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "v4:2x2x1".

        One host is 2x2x1; larger slices are 2x2x2, 2x2x4, 2x4x4, and every AxBxC of multiples of 4.

        Raises:
            ValueError: another generation, or chips that no slice has; one line that says what is allowed.
        """
        generation, _, shape = text.partition(":")
        if generation != GENERATION:
            raise ValueError(f"topology {text!r} given; {_ALLOWED}; write v4:2x2x1 for one host of 8 cores")
        if not re.fullmatch(r"\d+x\d+x\d+", shape):
            raise ValueError(f"topology {text!r} given; {_ALLOWED}; write v4:2x2x1, with three dimensions")
        first, second, third = (int(part) for part in shape.split("x"))
        a, b, c = sorted((first, second, third))
        if not a:
            raise ValueError(f"topology {text!r} given; {_ALLOWED}; a dimension of 0 has no chips")
        if (a, b, c) == (1, 2, 2):
            return cls((2, 2, 1))  # as Google writes it, the one that does not rise
        if a == 1 or any(size not in (2, 4) and size % 4 for size in (a, b, c)):
            mended = "x".join(str(_nearest(size)) for size in (a, b, c)) if c > 2 else "2x2x1"
            raise ValueError(f"topology {text!r} given; {_ALLOWED} (1 in 2x2x1 only); use v4:{mended}")
        if c > 4 and a % 4:
            raise ValueError(
                f"topology {text!r} given; {_ALLOWED}, and a dimension above 4 only beside others of 4 or more; "
                f"use v4:{max(a, 4)}x{max(b, 4)}x{c}"
            )
        if a * b * c > MOST_CHIPS:
            raise ValueError(
                f"topology {text!r} given; allowed: up to {MOST_CHIPS} chips, which is one pod; use v4:16x16x16"
            )
        if c > LONGEST:
            raise ValueError(
                f"topology {text!r} given; allowed: up to {LONGEST} chips along a dimension; "
                f"use {cls._most_compact(a * b * c) or 'v4:16x16x16'}"
            )
        if (a, b, c) != (first, second, third):
            raise ValueError(f"topology {text!r} given; {_ALLOWED}; write v4:{a}x{b}x{c}")
        return cls((a, b, c))

    @classmethod
    def of_accelerator(cls, name: str) -> Self:
        """Read "tpu-v4-32" or "v4-32", whose number counts cores, as the shape that Google gives a slice of that name.

        Where a name has several shapes that is the most compact one: v4-256 is 4x4x8.

        Raises:
            ValueError: another generation, or a number of cores that no slice has; one line that names those beside it.
        """
        allowed = f"allowed: tpu-{GENERATION}-8 to tpu-{GENERATION}-{MOST_CORES_OF_A_NAME}, which count cores"
        found = re.fullmatch(rf"(?:tpu-)?{GENERATION}-(\d+)", name.strip().lower())
        if found is None:
            raise ValueError(f"{name!r} given; {allowed}; write tpu-{GENERATION}-8 for one host of 4 chips")
        cores = int(found[1])
        made = cls._of_cores(cores)
        if made is None:
            there = [count for count in range(CORES_PER_HOST, MOST_CORES_OF_A_NAME + 1, 8) if cls._of_cores(count)]
            near = {max((count for count in there if count < cores), default=there[0]),
                    min((count for count in there if count > cores), default=there[-1])}  # fmt: skip
            raise ValueError(
                f"{name!r} given; {allowed} (two a chip, four chips a host); "
                f"use {' or '.join(f'tpu-{GENERATION}-{count}' for count in sorted(near))}"
            )
        return made

    @classmethod
    def of_hosts(cls, hosts: int) -> Self | None:
        """The most compact slice of so many hosts; None if there is none."""
        return cls._of_cores(hosts * CORES_PER_HOST)

    @classmethod
    def _of_cores(cls, cores: int) -> Self | None:
        if cores % CORES_PER_CHIP or not CORES_PER_HOST <= cores <= MOST_CORES_OF_A_NAME:
            return None
        return cls._most_compact(cores // CORES_PER_CHIP)

    @classmethod
    def _most_compact(cls, chips: int) -> Self | None:
        """The shape of so many chips with the smallest sum of dimensions; None if no slice has so many."""
        small = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}
        if chips in small:
            return cls(small[chips])
        if chips % 64:
            return None
        cubes, longest = chips // 64, LONGEST // 4
        shapes = [
            (first, second, cubes // (first * second))
            for first in range(1, longest + 1)
            for second in range(first, longest + 1)
            if cubes % (first * second) == 0 and second <= cubes // (first * second) <= longest
        ]
        if not shapes:
            return None
        a, b, c = min(shapes, key=sum)
        return cls((4 * a, 4 * b, 4 * c))

    def __str__(self) -> str:
        return f"{GENERATION}:{self.shape}"

    @property
    def shape(self) -> str:
        """Its chips along three dimensions, "2x2x4"."""
        return "x".join(map(str, self.dimensions))

    @property
    def chips(self) -> int:
        """How many chips there are."""
        return math.prod(self.dimensions)

    @property
    def cores(self) -> int:
        """How many cores there are, two to each chip."""
        return self.chips * CORES_PER_CHIP

    @property
    def hosts(self) -> int:
        """How many host machines there are, one to four chips."""
        return self.chips // CHIPS_PER_HOST

    @property
    def accelerator(self) -> str:
        """The name of the accelerator type, such as "v4-8": its number counts cores."""
        return f"{GENERATION}-{self.cores}"


def _nearest(size: int) -> int:
    return 2 if size <= 2 else -(-size // 4) * 4
