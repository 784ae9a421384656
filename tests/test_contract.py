"""The contract of the graphs: spelled in one module, and understood in one way."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from longlive_trt import contract
from longlive_trt.errors import EngineError
from longlive_trt.exports import GraphInfo, TensorInfo
from longlive_trt.reading.failures import InvalidFieldError

ROOT = Path(__file__).resolve().parents[1]
AREAS = sorted(
    init.parent.name for init in ROOT.glob("*/__init__.py") if init.parent.name != "longlive_trt"
)
# Names of other things too: sections of a configuration, a package, a device, an option.
ELSEWHERE = {
    *(
        "TRANSFORMER",
        "VAE",
        "LIGHT_VAE",
        "TEXT_ENCODER",
        "ONNXRUNTIME",
        "TENSORRT",
        "TENSORRT_RTX",
        "CPU",
    ),
    *("ONNX_SUFFIX", "PLAN_SUFFIX", "BATCH"),
}
# Plain words, and keys of configurations: names of the contract where graphs are made.
PLAIN = {
    *("STEP", "PROMPT", "TEXT", "LATENTS", "NOISE", "TIMESTEP", "SIGMA", "HISTORY"),
    *("FRAMES", "FEATURES", "PIXELS", "IDS", "MASK", "STEP_FRAMES", "SINK_FRAMES", "WINDOW_FRAMES"),
    *("KERNEL_SPEC", "KERNEL_KEY", "LOCAL_DOMAIN"),
}
MAKES_GRAPHS = ("calibration", "engines", "export")

NAMES = {
    key: value
    for key, value in vars(contract).items()
    if key.isupper() and isinstance(value, str) and key not in ELSEWHERE
}
OPERATORS = set(contract.KERNEL_OPERATORS.values())
DISTINCT = {value for key, value in NAMES.items() if key not in PLAIN} | OPERATORS
DISTINCT_PATTERN = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, sorted(DISTINCT)))})(?!\w)")
SCALE_STEMS = ("cache_format.", "attention_format.")


def modules() -> list[Path]:
    tops = [ROOT / "longlive_trt", *(ROOT / area for area in AREAS)]
    found = {path.resolve() for top in tops for path in top.rglob("*.py")}
    return sorted(found - {Path(contract.__file__).resolve()})


def literals(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every string and piece of one, but documentation, and programs, whose names are their own."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in documentation and "\n" not in node.value:
            yield node.value, node.lineno


def faults(source: str, *, makes_graphs: bool) -> Iterator[str]:
    for text, line in literals(ast.parse(source)):
        is_plain = makes_graphs and text in NAMES.values()
        if is_plain or DISTINCT_PATTERN.search(text) or text.startswith(SCALE_STEMS):
            yield f"line {line}: {text!r}"


def test_no_other_module_spells_a_name_of_the_contract() -> None:
    found = [
        f"{path.relative_to(ROOT)}, {fault}"
        for path in modules()
        for fault in faults(
            path.read_text(), makes_graphs=path.relative_to(ROOT).parts[0] in MAKES_GRAPHS
        )
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        'engine.inputs["k_cache.0"]',
        'name = f"v_new.{layer}"',
        'bundle.require("vae_next", purpose)',
        'opsets = {"": 22, "longlive.cuda": 1}',
        'PLUGIN = "longlive::SinkWindowAttention"',
        'weights.array(f"{name}.weight_scale")',
        'scale = f"cache_format.scales.{part}{layer}"',
        'node.op_type == "KernelFloat8E4M3"',
        'model.metadata_props["longlive.transposed"]',
        'graph == "step"',
    ],
)
def test_the_reader_sees_what_is_spelled(source: str) -> None:
    assert len(list(faults(source, makes_graphs=True))) == 1
    assert list(faults(f'def f():\n    """Of {source!r}"""', makes_graphs=True)) == []


def test_the_bridge_knows_the_domain_and_every_operator() -> None:
    (bridge,) = (ROOT / "plugins" / "csrc").rglob("onnxruntime_bridge.c")
    strings = set(re.findall(r'"([^"\n]*)"', bridge.read_text()))
    assert strings >= {contract.KERNEL_DOMAIN, contract.KERNEL_SPEC, *OPERATORS}


def test_every_graph_belongs_to_a_component() -> None:
    decoders = [graph for pair in contract.DECODER_GRAPHS.values() for graph in pair]
    graphs = {contract.STEP, contract.PROMPT, contract.TEXT, *decoders, *contract.ENCODER_GRAPHS}
    assert contract.COMPONENT_OF.keys() == graphs | {*contract.PART_GRAPHS}
    assert len(set(contract.PART_GRAPHS)) == 8


def test_numbered_names() -> None:
    assert contract.numbered(contract.K_CACHE, 3) == "k_cache.3"
    assert contract.stem_of("k_cache.3") == contract.K_CACHE
    assert contract.stem_of("latents") == ""


@pytest.mark.parametrize(
    ("name", "following"),
    [("k_cache.0", "k_new.0"), ("v_cache.12", "v_new.12"), ("cache.7", "cache_next.7")],
)
def test_what_takes_the_place_of_an_input(name: str, following: str) -> None:
    assert contract.next_of(name) == following


@pytest.mark.parametrize(
    ("expression", "size"),
    [
        (3, 3),
        ("3", 3),
        ("cache_frames", 9),
        ("24*cache_frames", 216),
        ("cache_frames * 6", 54),
        ("15*cache_frames|16", 144),
    ],
)
def test_sizes(expression: int | str, size: int) -> None:
    assert contract.evaluate_size(expression, {"cache_frames": 9, "batch": 1}) == size
    assert contract.multiple_of("cache_frames", 24) == "24*cache_frames"
    assert contract.padded_to("24*cache_frames", 16) == "24*cache_frames|16"
    # A file that says so is read.
    graph_of(expression).require_sound("step")


@pytest.mark.parametrize(
    "expression", ["", "|16", "frames|", "frames|b", "frames||16", "frames|16*2", "frames*", "a+b"]
)
def test_a_file_may_not_say_anything_else(expression: str) -> None:
    with pytest.raises(InvalidFieldError):
        graph_of(expression).require_sound("step")


def graph_of(size: int | str) -> GraphInfo:
    return GraphInfo((TensorInfo("latents", "float", (size,)),), ())


def test_a_size_that_nobody_chose() -> None:
    with pytest.raises(EngineError, match="'frames', which was not chosen; known: batch"):
        contract.evaluate_size("6*frames", {"batch": 1})


def test_values_that_lie_transposed_are_known_by_their_shape() -> None:
    by_token = ("batch", "24*cache_frames", 12, 128)
    lying = contract.transposed(by_token, 16)
    assert lying == ("batch", 12, 128, "24*cache_frames|16")
    assert contract.is_transposed(lying) and not contract.is_transposed(by_token)
    assert not contract.is_transposed(())
    assert contract.not_transposed(lying) == contract.not_transposed(by_token) == by_token
