"""Make a video: python examples/make_video.py BUNDLE "a red car at dusk" car.mp4 --seconds 10"""

import argparse
from collections.abc import Sequence

import longlive_trt as ll


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("prompt")
    parser.add_argument("out", help="an .mp4, .mov or .gif file, or a folder/ for PNG files")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    with (
        ll.load(options.bundle) as pipeline,
        pipeline.video(options.prompt, seconds=options.seconds, seed=options.seed) as video,
        video.writer(options.out) as writer,
    ):
        # A block's pictures are decoded while the next block is made.
        for block in video.ahead():
            writer.write(block.frames)
            print(f"block {block.index}: {writer.frames_written} frames")


if __name__ == "__main__":
    main()
