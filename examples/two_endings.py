"""Save a video in the middle, and go on from there in two ways, side by side.

python examples/two_endings.py BUNDLE out/ "a road at dusk" "in the rain" "in the snow"
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

import longlive_trt as ll


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("out", type=Path, help="a folder for beginning.mp4, state and endings.npy")
    parser.add_argument("prompts", nargs=3, metavar=("BEGINNING", "ENDING", "OTHER"))
    parser.add_argument("--seconds", type=float, default=3, help="of each part")
    options = parser.parse_args(arguments)

    beginning, *endings = options.prompts
    with ll.load(options.bundle) as pipeline:
        with (
            pipeline.video(beginning, seconds=options.seconds) as video,
            video.writer(options.out / "beginning.mp4") as writer,
        ):
            for block in video.ahead():
                writer.write(block.frames)
            # Also another process, on another day, could go on from here.
            video.save_state(options.out / "state")

        go_on = partial(pipeline.video, resume=options.out / "state", seconds=options.seconds)
        with go_on(endings[0]) as left, go_on(endings[1]) as right:
            pairs = [(one.frames, other.frames) for one, other in zip(left, right, strict=True)]
    print(f"two endings of {sum(len(frames) for frames, _ in pairs)} frames each")
    side_by_side = [np.concatenate(pair, axis=2) for pair in pairs]
    np.save(options.out / "endings.npy", np.concatenate(side_by_side))


if __name__ == "__main__":
    main()
