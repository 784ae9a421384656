"""Everything of a rollout lies where the model does.

Tensors of ``meta`` have no values and refuse to meet those of a CPU, as a GPU's do.
"""

import torch
from torch import Tensor

from longlive_trt.calibration.mixed_keys import MixedKeys
from longlive_trt.calibration.texts import SyntheticTexts
from longlive_trt.calibration.values import ValueWatcher
from longlive_trt.calibration.videos import plan_videos, run_video
from longlive_trt.configs import ModelConfig
from longlive_trt.export.models.transformer import Transformer


def test_a_rollout_and_what_watches_it_are_on_the_models_device(small_config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(small_config.transformer).eval()
    keys, values, looks = MixedKeys(small_config), ValueWatcher(), []

    def observe(_layer: int, _q: Tensor, k: Tensor, v: Tensor) -> None:
        looks.append(keys.of(k))
        values.observe(v)

    (video, *_) = plan_videos(2, small_config)
    states = SyntheticTexts(small_config).of(("a fox", "a wren"))
    frames = run_video(model, small_config, video, states, 0, observe)
    assert {tensor.device.type for tensor in (*frames, *looks)} == {"meta"}
