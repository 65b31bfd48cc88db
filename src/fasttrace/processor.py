"""The processor of this machine: its generation, and the instruction sets that matrix products use."""

import re
from dataclasses import dataclass

# Generations by (vendor, family): the first model number of each run of models, ascending, as in Linux's amd.c and
# intel-family.h. None: numbers that are none of these.
GENERATIONS: dict[tuple[str, int], tuple[tuple[int, str | None], ...]] = {
    ("AuthenticAMD", 0x17): ((0x00, "zen"), (0x30, "zen2"), (0x50, "zen"), (0x60, "zen2"), (0xB0, None)),
    ("AuthenticAMD", 0x19): ((0x00, "zen3"), (0x10, "zen4"), (0x20, "zen3"), (0x60, "zen4"), (0xB0, None)),
    ("AuthenticAMD", 0x1A): (
        *((0x00, "zen5"), (0x30, None), (0x40, "zen5"), (0x50, "zen6"), (0x60, "zen5"), (0x80, "zen6")),
        *((0xB0, None), (0xC0, "zen6"), (0xD0, None)),
    ),
    ("GenuineIntel", 6): tuple(
        run
        for model, name in (
            *((0x3F, "haswell"), (0x4E, "skylake"), (0x4F, "broadwell"), (0x55, "skylake-sp"), (0x56, "broadwell")),
            *((0x5E, "skylake"), (0x6A, "ice-lake"), (0x6C, "ice-lake"), (0x8C, "tiger-lake"), (0x8D, "tiger-lake")),
            *((0x8E, "kaby-lake"), (0x8F, "sapphire-rapids"), (0x97, "alder-lake"), (0x9A, "alder-lake")),
            *((0x9E, "coffee-lake"), (0xA5, "comet-lake"), (0xA7, "rocket-lake"), (0xAD, "granite-rapids")),
            *((0xAE, "granite-rapids"), (0xAF, "sierra-forest"), (0xB7, "raptor-lake"), (0xCF, "emerald-rapids")),
        )
        for run in ((model, name), (model + 1, None))
    ),
}
# Instruction sets for matrix products, the fastest first: flag in /proc/cpuinfo → name.
SETS = {"amx_tile": "amx", "avx512_bf16": "avx512-bf16", "avx512f": "avx512", "avx2": "avx2"}


@dataclass(frozen=True)
class Processor:
    """A processor as /proc/cpuinfo describes it. A virtual machine may hide flags, and what it hides is not used."""

    name: str
    vendor: str
    family: int
    model: int
    flags: frozenset[str]

    @property
    def generation(self) -> str:
        """The microarchitecture, such as zen3 or sapphire-rapids, or family-6-model-200 for one that is not listed."""
        found = None
        for first, name in GENERATIONS.get((self.vendor, self.family), ()):
            if self.model >= first:
                found = name
        if found == "skylake-sp":  # Intel gave three generations one number
            own = (("avx512_bf16", "cooper-lake"), ("avx512_vnni", "cascade-lake"))
            found = next((name for flag, name in own if flag in self.flags), found)
        return found or f"family-{self.family}-model-{self.model}"

    @property
    def matrix_set(self) -> str:
        """The fastest instruction set for matrix products: amx, avx512-bf16, avx512, avx2, or none."""
        return next((name for flag, name in SETS.items() if flag in self.flags), "none")

    def __str__(self) -> str:
        return f"{self.name} ({self.generation}, {self.matrix_set})"

    @property
    def slug(self) -> str:
        """All of it as a part of a folder's name, such as amd-epyc-7763-zen3-avx2."""
        plain = re.sub(r"\((r|tm)\)|@.*|\b(cpu|processor|\d+-core)\b", " ", self.name.lower())
        return "-".join([*re.findall(r"[a-z0-9]+", plain), self.generation, self.matrix_set])


def this_processor() -> Processor | None:
    """This machine's processor, or None where there is no /proc/cpuinfo that names an x86 processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            text = lines.read()
    except OSError:
        return None
    about = dict(re.findall(r"^([^:\n]+?)[ \t]*:[ \t]*(.*?)[ \t]*$", text.partition("\n\n")[0], re.MULTILINE))
    if "vendor_id" not in about:
        return None
    family, model = (int(about.get(name, "0")) for name in ("cpu family", "model"))
    flags = frozenset(about.get("flags", "").split())
    return Processor(about.get("model name", "cpu"), about["vendor_id"], family, model, flags)
