import pytest

from longlive_trt.plugins.attention.tensorrt_plugin import TACTICS, workspace_floats
from longlive_trt.plugins.attention.variants import ELEMENTS, choose_variant

HOPPER_SHARED_BYTES = 227 * 1024
KINDS = [("bfloat16", 128), ("float16", 64), ("int8", 128), ("float8_e4m3", 128)]


@pytest.mark.parametrize(("dtype", "head_dim"), KINDS)
@pytest.mark.parametrize("keys", [1, 512, 18720])
def test_every_choice_fits_a_multiprocessor(dtype, head_dim, keys):
    variant = choose_variant(dtype, head_dim, keys)
    assert variant.shared_bytes(dtype, head_dim) <= HOPPER_SHARED_BYTES
    assert variant.threads <= 1024


@pytest.mark.parametrize("head_dim", TACTICS)
def test_every_tactic_fits_and_has_room_for_its_sums(head_dim):
    for tactic, variant in TACTICS[head_dim].items():
        assert tactic > 0
        assert variant.shared_bytes("bfloat16", head_dim) <= HOPPER_SHARED_BYTES
        assert variant.partial_bytes(head_dim, 132) <= 4 * workspace_floats(head_dim, 132)


def test_few_keys_take_another_tile_than_many():
    assert choose_variant("bfloat16", 128, 512) != choose_variant("bfloat16", 128, 18720)


@pytest.mark.parametrize(("dtype", "head_dim"), KINDS)
def test_a_choice_uses_one_workspace_whatever_the_keys(dtype, head_dim):
    sizes = {
        choose_variant(dtype, head_dim, keys).partial_bytes(head_dim, 132) for keys in (1, 10**6)
    }
    assert len(sizes) == 1


def test_the_constants_name_the_element():
    for dtype, number in ELEMENTS.items():
        assert ("LL_ELEMENT", number) in choose_variant(dtype, 128, 1).constants(dtype, 128)
