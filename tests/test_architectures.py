"""The names of GPU architectures, and what each can do."""

import pytest

from longlive_trt.architectures import HOPPER, WITH_KERNELS, Architecture


@pytest.mark.parametrize("name", ["sm90", "sm_90", "sm_90a", "sm90a", "SM90"])
def test_an_architecture_has_several_names(name: str) -> None:
    assert Architecture.named(name) == HOPPER
    assert Architecture.of_capability("9.0") == Architecture.of((9, 0)) == HOPPER


@pytest.mark.parametrize("name", ["", "sm", "sm9", "90", "9.0", "compute_90", "rtx4090", "sm90x"])
def test_other_words_are_no_names(name: str) -> None:
    assert Architecture.named(name) is None


@pytest.mark.parametrize(
    ("capability", "name", "compiled", "has_fp8", "has_hopper_attention"),
    [
        ((8, 0), "sm80", "sm_80", False, False),
        ((8, 6), "sm86", "sm_86", False, False),
        ((8, 9), "sm89", "sm_89", True, False),
        ((9, 0), "sm90", "sm_90a", True, True),
        ((10, 0), "sm100", "sm_100", True, False),
        ((12, 1), "sm121", "sm_121", True, False),
    ],
)
def test_what_an_architecture_is(
    capability: tuple[int, int],
    name: str,
    compiled: str,
    has_fp8: bool,
    has_hopper_attention: bool,
) -> None:
    architecture = Architecture.of(capability)
    assert (str(architecture), architecture.compiled) == (name, compiled)
    assert Architecture.named(name) == Architecture.named(compiled) == architecture
    assert architecture.capability == ".".join(map(str, capability))
    assert architecture.has_fp8 == has_fp8
    assert architecture.has_hopper_attention == has_hopper_attention


def test_later_ones_are_greater() -> None:
    assert sorted(WITH_KERNELS) == list(WITH_KERNELS)
    assert Architecture(10, 0) > Architecture(9, 0) > Architecture(8, 9)
