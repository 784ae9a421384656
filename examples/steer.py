"""Change the prompt on the way, and keep the frames as an array.

python examples/steer.py BUNDLE frames.npy "a red car at dusk" "the same road in the rain"
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import longlive_trt as ll


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("out", type=Path, help="frames [n, height, width, 3] as an .npy file")
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--blocks", type=int, default=4, help="for each prompt")
    parser.add_argument("--mode", default="exact", help="exact, partial, none, or blend:N")
    options = parser.parse_args(arguments)

    first, *later = options.prompts
    frames: list[np.ndarray] = []
    with ll.load(options.bundle) as pipeline, pipeline.video(first, switch=options.mode) as video:
        for block in video:
            frames.append(block.frames)
            print(f"frame {block.first_frame}: {block.prompt}, {block.frames.mean():.0f} bright")
            if (block.index + 1) % options.blocks:
                continue
            if not later:
                break
            # The next block shows it already.
            video.prompt(later.pop(0))
    np.save(options.out, np.concatenate(frames))


if __name__ == "__main__":
    main()
