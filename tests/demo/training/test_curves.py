from pathlib import Path

from PIL import Image

from longlive_trt.demo.training.curves import draw_curves


def test_draws_curves_of_one_and_of_many_points(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    draw_curves(path, "Loss", {"a": [(0, 1.0), (1, 0.0)], "b": [(0, 2.0)]}, "s", logarithmic=True)
    with Image.open(path) as image:
        colors = image.convert("RGB").getcolors(maxcolors=100_000)
    assert colors is not None
    assert len(colors) > 4
