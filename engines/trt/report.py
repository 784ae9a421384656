"""What the builder made of a graph, read from its own list of layers."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from longlive_trt.engines.trt.graph import AttentionSite

REPORT_NAME = "report.json"

_PIECES = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName: (?P<tactic>.*?), StreamId: \d+, Metadata: (?P<metadata>.*)$"
)
_TENSOR = re.compile(r"Name: [^,]*, Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")
_SOURCE = re.compile(r"\[ONNX Layer: ([^\]\[ ]+)")
_GROUP = re.compile(r"_myl(\d+)_\d+$")
_PROFILE = re.compile(r"\[profile (\d+)\]")
_FUSED_ATTENTION = re.compile(r"mha|flash|attention", re.IGNORECASE)
_SOFTMAX = re.compile(r"softmax|MaxSubExpSum|MaxrSubExp|ExpSumDiv", re.IGNORECASE)
_PRODUCT = re.compile(r"gemm|Fc[A-Z_]|MatMul", re.ASCII)
_QUANTIZED = ("FP8", "Int8")


@dataclass(frozen=True)
class Tensor:
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class Layer:
    name: str
    kind: str
    profile: int
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    sources: tuple[str, ...]
    """The graph's nodes that went into it."""

    @property
    def is_fused_attention(self) -> bool:
        return bool(_FUSED_ATTENTION.search(self.name))

    @property
    def is_softmax(self) -> bool:
        return not self.is_fused_attention and bool(_SOFTMAX.search(self.name))

    @property
    def is_product(self) -> bool:
        """A matrix product, alone or with what was fused to it."""
        return self.kind == "gemm" or (
            not self.is_fused_attention and bool(_PRODUCT.search(self.name))
        )

    @property
    def precision(self) -> str:
        """What is quantized of what is multiplied, else the type of the result."""
        types = {tensor.type for tensor in (*self.inputs, *self.constants)}
        quantized = [kind for kind in _QUANTIZED if kind in types]
        return quantized[0] if quantized else self.outputs[0].type if self.outputs else ""

    @property
    def category(self) -> str:
        if self.is_fused_attention:
            return "attention"
        if self.is_softmax:
            return "softmax"
        if self.is_product:
            return "matrix product"
        return "convolution" if self.kind == "correlation" else "other"


def parse_layers(text: str) -> list[Layer]:
    lines = [piece for line in text.splitlines() if (piece := _PIECES.match(line))]
    profile_of_group = _profiles_of_groups(lines)
    return [_layer(piece, profile_of_group) for piece in lines]


def _profiles_of_groups(lines: Sequence[re.Match[str]]) -> dict[str, int]:
    """Only some layers of a compiled group name the profile that the group is for."""
    profiles: dict[str, int] = {}
    for piece in lines:
        group, profile = _GROUP.search(piece["name"]), _PROFILE.search(piece[0])
        if group and profile:
            profiles[group[1]] = int(profile[1])
    return profiles


def _layer(piece: re.Match[str], profile_of_group: dict[str, int]) -> Layer:
    group, named = _GROUP.search(piece["name"]), _PROFILE.search(piece[0])
    profile = profile_of_group.get(group[1], 0) if group else int(named[1]) if named else 0
    return Layer(
        name=piece["name"],
        kind=piece["kind"],
        profile=profile,
        inputs=_tensors(piece["inputs"]),
        constants=_tensors(piece["constants"] or ""),
        outputs=_tensors(piece["outputs"]),
        sources=tuple(dict.fromkeys(_SOURCE.findall(piece["metadata"]))),
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(tuple(int(size) for size in found[1].split(",") if size), found[2])
        for found in _TENSOR.finditer(text)
    )


@dataclass(frozen=True)
class AttentionCount:
    """Of one graph, over all its profiles."""

    expected: int
    fused: int
    faults: tuple[str, ...]


def count_attention(
    layers: Sequence[Layer], sites: Sequence[AttentionSite], profiles: Sequence[str]
) -> AttentionCount:
    """Whether every attention became one kernel that also knows how many keys are valid."""
    faults, fused = [], 0
    for number, profile in enumerate(profiles):
        for site in sites:
            kernels = list(_kernels_of(site, layers, number))
            fused += len(kernels) == 1
            if len(kernels) != 1:
                faults.append(f"{site.name} ({profile}): {len(kernels)} fused kernels")
            elif site.has_lengths and not any(_is_integer(t) for t in kernels[0].inputs):
                faults.append(f"{site.name} ({profile}): the number of valid keys is ignored")
            elif site.is_fp8 and kernels[0].precision != "FP8":
                faults.append(f"{site.name} ({profile}): computes in {kernels[0].precision}")
    return AttentionCount(len(sites) * len(profiles), fused, tuple(faults))


def _kernels_of(site: AttentionSite, layers: Sequence[Layer], profile: int) -> Iterator[Layer]:
    for layer in layers:
        if layer.profile == profile and layer.is_fused_attention and site.name in layer.sources:
            yield layer


def _is_integer(tensor: Tensor) -> bool:
    return tensor.type in ("Int32", "Int64")


@dataclass(frozen=True)
class GraphReport:
    graph: str
    profiles: tuple[dict[str, Any], ...]
    layers: tuple[Layer, ...]
    attention: AttentionCount
    activation_bytes: tuple[int, ...]
    """One for each profile."""
    weights_bytes: int
    engine_bytes: int
    duration_s: float
    peak_host_bytes: int

    @property
    def categories(self) -> Counter[str]:
        return Counter(layer.category for layer in self.layers)

    @property
    def products(self) -> Counter[str]:
        """Matrix products by precision."""
        return Counter(layer.precision for layer in self.layers if layer.is_product)

    def to_values(self) -> dict[str, Any]:
        values = asdict(self)
        values["layers"] = [
            {**asdict(layer), "category": layer.category, "precision": layer.precision}
            for layer in self.layers
        ]
        values["categories"] = dict(self.categories)
        values["matrix_products"] = dict(self.products)
        return values
