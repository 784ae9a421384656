"""Watches a live video for ten seconds, changes its prompt halfway, and keeps the recording.

Start a server first: longlive-trt serve
"""

import argparse
import sys
import time
from pathlib import Path

from longlive_trt.client import LiveClient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="http://localhost:8400")
    parser.add_argument("--token")
    parser.add_argument("--out", type=Path, default=Path("live.mp4"))
    options = parser.parse_args()
    client = LiveClient(options.server, options.token)
    with client.open("A red car drives through the desert at sunset", seed=1) as video:
        sent = None
        for picture in video:
            if picture.frame == 80:
                video.prompt("The same road at night, in the rain")
                sent = time.monotonic()
            answer = video.answer_frame
            if sent and answer is not None and picture.frame >= answer:
                waited = (time.monotonic() - sent) * 1000
                sys.stdout.write(f"picture {picture.frame} answers, {waited:.0f} ms after it\n")
                sent = None
            if picture.seconds >= 10:
                break
        options.out.write_bytes(video.recording())
    sys.stdout.write(f"{options.out}: what was shown\n")


if __name__ == "__main__":
    main()
