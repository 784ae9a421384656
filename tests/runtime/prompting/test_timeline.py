import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlive_trt.configs import ModelConfig, RolloutConfig, VaeConfig
from longlive_trt.errors import UsageError
from longlive_trt.runtime.prompting.timeline import (
    Clock,
    Cue,
    Timeline,
    checked_timeline,
    length_in_frames,
)
from longlive_trt.runtime.prompting.timeline_files import timeline_from_file

CONFIG = ModelConfig()
"""16 video frames a second, 4 to a latent frame, 3 latent frames to a block."""
CLOCK = Clock(CONFIG, total_frames=240)
ENDLESS = Clock(CONFIG)


@pytest.fixture
def file(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def timeline_from_prompts(
    prompt: str, switches: Sequence[tuple[int, str]], clock: Clock
) -> Timeline:
    first = Cue(0, prompt, "--prompt")
    later = [Cue(frame, text, f"--prompt-at {frame}") for frame, text in switches]
    return checked_timeline([first, *later], clock)


def frames(timeline: Timeline) -> list[int]:
    return [cue.frame for cue in timeline.cues]


class TestPrompts:
    def test_prompts_are_cues_in_order(self):
        timeline = timeline_from_prompts("a cat", [(39, "a dog"), (81, "a bird")], CLOCK)
        assert timeline.cues == (Cue(0, "a cat"), Cue(39, "a dog"), Cue(81, "a bird"))
        assert timeline.notices == ()

    def test_switches_wait_for_the_block_as_upstream_does(self):
        wanted = (40, 80, 120, 160, 200)
        timeline = timeline_from_prompts("0", [(frame, str(frame)) for frame in wanted], CLOCK)
        starts = timeline.starts(frames_per_block=3)
        assert starts[0] == Cue(0, "0")
        assert [cue.frame for cue in starts[1:]] == [42, 81, 120, 162, 201]
        assert [cue.prompt for cue in starts[1:]] == [str(frame) for frame in wanted]

    def test_one_block_takes_one_switch(self):
        timeline = timeline_from_prompts("a", [(40, "b"), (41, "c"), (42, "d")], CLOCK)
        assert [cue.frame for cue in timeline.starts(3)] == [0, 42, 45, 48]

    def test_a_moved_start_is_said(self):
        timeline = timeline_from_prompts("a", [(40, "b")], CLOCK)
        assert len(timeline.notices) == 1
        assert "--prompt-at 40" in timeline.notices[0]
        assert "frame 42" in timeline.notices[0]

    @pytest.mark.parametrize("prompt", ["", "  \n"])
    def test_an_empty_prompt_is_allowed_and_said(self, prompt):
        timeline = timeline_from_prompts(prompt, [], CLOCK)
        assert timeline.cues == (Cue(0, prompt),)
        assert "empty" in timeline.notices[0]

    @pytest.mark.parametrize(
        ("switches", "message"),
        [
            (
                [(80, "b"), (40, "c")],
                r"--prompt-at 40: frame 40 \(9.8 s\) comes after frame 80 \(19.8 s\)",
            ),
            ([(40, "b"), (40, "c")], "second prompt at frame 40"),
            ([(0, "b")], "second prompt at frame 0"),
            ([(-3, "b")], "--prompt-at -3: frame -3 is negative"),
            (
                [(240, "b")],
                "past the end of the video .240 latent frames, 59.8 s; the last .* 237 .59.1 s",
            ),
            ([(238, "b")], r"start at frame 240 \(59.8 s\), past the end"),
            ([(40, "bad \udcff byte")], "not valid UTF-8 at character 4"),
        ],
    )
    def test_impossible_switches_are_refused(self, switches, message):
        with pytest.raises(UsageError, match=message):
            timeline_from_prompts("a", switches, CLOCK)

    def test_the_last_block_can_still_switch(self):
        assert frames(timeline_from_prompts("a", [(237, "b")], CLOCK)) == [0, 237]

    def test_an_endless_video_has_no_end_to_pass(self):
        assert frames(timeline_from_prompts("a", [(10**6, "b")], ENDLESS)) == [0, 10**6]

    @given(st.lists(st.integers(1, 200), unique=True).map(sorted), st.integers(1, 7))
    def test_starts_are_distinct_block_starts_at_or_after_their_frames(self, wanted, block):
        timeline = Timeline((Cue(0, ""), *(Cue(frame, "") for frame in wanted)))
        starts = [cue.frame for cue in timeline.starts(block)]
        assert starts == sorted(set(starts))
        assert all(start % block == 0 for start in starts)
        assert all(s >= c.frame for s, c in zip(starts, timeline.cues, strict=True))


class TestDocuments:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.yaml", "- {frame: 0, prompt: a cat}\n- {frame: 42, prompt: a dog}\n"),
            ("a.yml", "0: a cat\n42: a dog\n"),
            ("a.json", '{"0": "a cat",\n\t"42": "a dog"}'),
            ("a.json", '[{"frame": 0, "prompt": "a cat"}, {"frame": 42, "prompt": "a dog"}]'),
            ("a.yaml", "\ufeff0: a cat\n42: a dog\n"),
        ],
    )
    def test_every_form_is_the_same_timeline(self, file, name, content):
        timeline = timeline_from_file(file(name, content), CLOCK)
        assert timeline.cues == (Cue(0, "a cat"), Cue(42, "a dog"))

    @pytest.mark.parametrize(
        ("seconds", "frame"),
        [(0.0625, 1), (0.25, 1), (0.3125, 2), (0.32, 2), (2.5, 10), (10, 40)],
    )
    def test_seconds_are_the_latent_frame_of_the_video_frame_on_screen(self, file, seconds, frame):
        content = f"- {{seconds: 0, prompt: a}}\n- {{seconds: {seconds}, prompt: b}}\n"
        assert frames(timeline_from_file(file("a.yaml", content), CLOCK)) == [0, frame]

    def test_seconds_are_counted_exactly(self):
        vae = VaeConfig(temporal_upsample=(False, False, False))
        single = RolloutConfig(frames_per_block=1, sink_frames=1)
        config = ModelConfig(fps=30, vae=vae, rollout=single)
        assert Clock(config).latent_frame_at(0.1) == 3

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.yaml", "", "a.yaml: the file is empty"),
            ("a.yaml", " \n \n", "the file is empty"),
            ("a.yaml", b"0: caf\xe9\n", r"line 1: not valid UTF-8 at byte 6 \(0xe9\)"),
            ("a.yaml", "0: a\n40: [b\n", "a.yaml, line 3: "),
            ("a.yaml", "0: a\n40: b\n40: c\n", "a.yaml, line 3: the key 40 appears twice"),
            ("a.yaml", "0: \x00\n", "not valid YAML"),
            ("a.yaml", "0: 2024-99-99\n", "not valid YAML"),
            ("a.yaml", "[" * 5000, "not valid YAML"),
            ("a.yaml", "a cat\n", "expected a list .* found a str"),
            ("a.yaml", "[]", "found an empty one"),
            ("a.yaml", "- a cat\n", "entry 1: expected the keys .* found a str"),
            ("a.yaml", "- {frame: 0, seconds: 0, prompt: a}\n", "entry 1: .*found frame, prompt, "),
            ("a.yaml", "- {frame: 0, text: a}\n", "entry 1: .* found frame, text"),
            ("a.yaml", "- {frame: 0, prompt: 7}\n", "entry 1: the prompt is 7, not a text"),
            ("a.yaml", "- {frame: 1.5, prompt: a}\n", "entry 1: the frame is 1.5"),
            ("a.yaml", "- {frame: true, prompt: a}\n", "entry 1: the frame is True"),
            ("a.yaml", "- {seconds: .nan, prompt: a}\n", "entry 1: the time is nan"),
            ("a.yaml", "- {seconds: .inf, prompt: a}\n", "entry 1: the time is inf"),
            ("a.yaml", "- {seconds: -1, prompt: a}\n", "entry 1: the time is -1"),
            ("a.yaml", "start: a\n", "frame start: the frame is 'start'"),
            ("a.yaml", "12: a\n", "the first prompt is at frame 12"),
            (
                "a.yaml",
                "0: a\n80: b\n40: c\n",
                r"frame 40: frame 40 \(9.8 s\) comes after frame 80",
            ),
            ("a.json", '{"0": "a",\n "40": }', "a.json, line 2: not valid JSON"),
            ("a.json", '{"0": "a", "0": "b"}', "the key '0' appears twice"),
            ("a.json", '"a"\n"b"\n', "line 2: .*JSON Lines belong in a .jsonl file"),
            ("a.json", "[" * 100_000, "not valid JSON"),
            ("a.txt", "a cat", "no kind of timeline has the ending '.txt'; use one of .yaml"),
        ],
    )
    def test_a_bad_file_is_named_with_the_place(self, file, name, content, message):
        with pytest.raises(UsageError, match=message) as caught:
            timeline_from_file(file(name, content), CLOCK)
        assert name in str(caught.value)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(UsageError, match=r"none\.yaml: cannot be read \(No such file"):
            timeline_from_file(tmp_path / "none.yaml", CLOCK)

    def test_options_of_json_lines_are_refused(self, file):
        path = file("a.yaml", "0: a\n")
        with pytest.raises(UsageError, match=r"switch frames can be chosen only with a \.jsonl"):
            timeline_from_file(path, CLOCK, switch_frames=(40,))
        with pytest.raises(UsageError, match=r"a line can be chosen only with a \.jsonl"):
            timeline_from_file(path, CLOCK, line=1)


class TestJsonLines:
    SIX = json.dumps({"prompts_list": list("abcdef")})

    def test_six_prompts_at_the_given_frames(self, file):
        path = file("a.jsonl", self.SIX)
        timeline = timeline_from_file(path, CLOCK, switch_frames=(40, 80, 120, 160, 200))
        assert frames(timeline) == [0, 40, 80, 120, 160, 200]
        assert [cue.prompt for cue in timeline.cues] == list("abcdef")

    def test_without_frames_they_are_spread_over_whole_blocks_and_said(self, file):
        timeline = timeline_from_file(file("a.jsonl", self.SIX), CLOCK)
        assert frames(timeline) == [0, 39, 78, 120, 159, 198]
        assert timeline.notices == (
            "the prompts are spread over the video: switches at latent frames 39 (9.6 s), "
            "78 (19.3 s), 120 (29.8 s), 159 (39.6 s), 198 (49.3 s)",
        )

    @pytest.mark.parametrize(
        "content", ['{"prompts": ["a cat"]}', '{"prompt": "a cat", "seed": 1}', '"a cat"']
    )
    def test_a_single_prompt(self, file, content):
        timeline = timeline_from_file(file("a.jsonl", content), ENDLESS)
        assert timeline == Timeline((Cue(0, "a cat"),))

    def test_the_line_is_chosen_as_an_editor_counts(self, file):
        path = file("a.jsonl", '"a\u2028cat"\r\n\r\n"a dog"\r\n')
        assert timeline_from_file(path, CLOCK).cues[0].prompt == "a\u2028cat"
        assert timeline_from_file(path, CLOCK, line=3).cues[0].prompt == "a dog"

    @pytest.mark.parametrize("line", [0, 2, 4, -1])
    def test_a_line_without_a_video_is_refused(self, file, line):
        path = file("a.jsonl", '"a"\n\n"b"\n')
        with pytest.raises(UsageError, match=f"no video in line {line}; .* from 1 to 3"):
            timeline_from_file(path, CLOCK, line=line)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('"a"\njunk\n', "a.jsonl, line 2: not JSON"),
            ('"a"\n\n[1, 2]\n', "a.jsonl, line 3: no prompts"),
            ('{"text": "a"}', "line 1: no prompts"),
            ('{"prompts": []}', "line 1: prompts is \\[\\]; give a list"),
            ('{"prompts_list": ["a", 7]}', "line 1, prompt 2: the prompt is 7"),
            ('{"prompts": ["a", "\\ud800"]}', "prompt 2 at frame 120: .*not valid UTF-8"),
            (b'"a"\n"caf\xe9"\n', r"line 2: not valid UTF-8 at byte 8 \(0xe9\)"),
            ("[" * 100_000, "line 1: not JSON"),
            ("", "the file is empty"),
        ],
    )
    def test_junk_names_its_line(self, file, content, message):
        with pytest.raises(UsageError, match=message):
            timeline_from_file(file("a.jsonl", content), CLOCK)

    def test_the_count_of_frames_must_fit(self, file):
        with pytest.raises(UsageError, match="6 prompts need 5 switch frames, found 2"):
            timeline_from_file(file("a.jsonl", self.SIX), CLOCK, switch_frames=(40, 80))

    def test_an_endless_video_needs_frames(self, file):
        with pytest.raises(UsageError, match="say at which frames to switch"):
            timeline_from_file(file("a.jsonl", self.SIX), ENDLESS)

    def test_more_prompts_than_blocks(self, file):
        short = Clock(CONFIG, total_frames=15)
        with pytest.raises(UsageError, match="6 prompts, but the video has only 5 blocks"):
            timeline_from_file(file("a.jsonl", self.SIX), short)


class TestLength:
    @pytest.mark.parametrize(
        ("seconds", "latent", "video", "is_rounded"),
        [
            (0.01, 3, 9, True),
            (9 / 16, 3, 9, False),
            (10 / 16, 6, 21, True),
            (477 / 16, 120, 477, False),
            (30, 123, 489, True),
        ],
    )
    def test_seconds_round_up_to_whole_blocks(self, seconds, latent, video, is_rounded):
        length = length_in_frames(seconds, None, CONFIG)
        assert (length.latent_frames, length.video_frames) == (latent, video)
        assert bool(length.notices) == is_rounded

    def test_the_rounding_is_said_in_numbers(self):
        (notice,) = length_in_frames(30, None, CONFIG).notices
        assert notice == (
            "30 s is 480 video frames, which is no whole number of blocks; "
            "making 489 (30.5625 s, 123 latent frames)"
        )

    @pytest.mark.parametrize(("frames", "latent"), [(1, 3), (120, 120), (121, 123)])
    def test_latent_frames_round_up_too(self, frames, latent):
        length = length_in_frames(None, frames, CONFIG)
        assert length.latent_frames == latent
        assert length.video_frames == 1 + 4 * (latent - 1)
        assert bool(length.notices) == (frames != latent)

    def test_infinity_is_endless(self):
        length = length_in_frames(math.inf, None, CONFIG)
        assert (length.latent_frames, length.video_frames, length.notices) == (None, None, ())

    @pytest.mark.parametrize("seconds", [0, -1, -math.inf, math.nan])
    def test_impossible_seconds(self, seconds):
        with pytest.raises(UsageError, match=r"seconds; give a number above 0, or inf"):
            length_in_frames(seconds, None, CONFIG)

    @pytest.mark.parametrize("frames", [0, -3])
    def test_impossible_frames(self, frames):
        with pytest.raises(UsageError, match=f"a length of {frames} latent frames"):
            length_in_frames(None, frames, CONFIG)

    @pytest.mark.parametrize(("seconds", "frames"), [(None, None), (1.0, 3)])
    def test_exactly_one_length(self, seconds, frames):
        with pytest.raises(UsageError, match="length once"):
            length_in_frames(seconds, frames, CONFIG)

    @given(st.floats(1e-3, 1e5), st.sampled_from([8, 16, 23.976, 24000 / 1001]))
    def test_the_video_is_never_shorter_and_less_than_a_block_longer(self, seconds, fps):
        length = length_in_frames(seconds, None, replace(CONFIG, fps=fps))
        assert length.latent_frames % 3 == 0
        assert length.video_frames >= seconds * fps - 1e-6
        assert length.video_frames - 12 < seconds * fps + 1e-6
