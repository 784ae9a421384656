"""Flow matching, distillation and what follows them, at a size that takes seconds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longlive_trt.configs import ModelConfig
from longlive_trt.demo.shipped import weights_path
from longlive_trt.demo.training import distill, flow
from longlive_trt.demo.training.legs import Worker
from longlive_trt.demo.training.look import held_out_prompts, pictures, tallies, videos
from longlive_trt.demo.training.state import load_generator, ship, slim

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(
    small_config: ModelConfig, small_vae: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a flow leg."""
    folder = tmp_path_factory.mktemp("flow")
    run_flow(small_config, small_vae, folder, None)
    return folder


def run_flow(config: ModelConfig, vae: Path, out: Path, resume: Path | None) -> flow.Leg:
    settings = flow.Settings(
        out=out, leg_s=2.0, total_s=60.0, resume=resume, config=config, vae=vae, batch=2,
        blocks=4, pool=4, reports=1,
    )  # fmt: skip
    leg = flow.Leg(settings, Worker.start("cpu", settings.seed))
    leg.run()
    return leg


def test_a_flow_leg_goes_on_where_the_last_one_stopped(
    trained: Path, small_config: ModelConfig, small_vae: Path, tmp_path: Path
) -> None:
    first = torch.load(trained / "flow-state.pt", weights_only=True)
    assert first["step"] > 0
    slim(trained / "flow-state.pt", tmp_path / "slim.pt")
    for state in (trained / "flow-state.pt", tmp_path / "slim.pt"):
        leg = run_flow(small_config, small_vae, tmp_path, state)
        assert leg.step > first["step"]
        assert leg.before_s == pytest.approx(first["done_s"])
    assert {"flow.jsonl", "flow-loss.png", "flow-state.pt"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.exhaustive
def test_an_interrupted_leg_goes_on_from_its_last_report(
    small_config: ModelConfig,
    small_vae: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported = flow.Journal.report

    def interrupt(journal: flow.Journal, **values: object) -> None:
        reported(journal, **values)
        if "loss" in values:
            raise KeyboardInterrupt

    monkeypatch.setattr(flow.Journal, "report", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_flow(small_config, small_vae, tmp_path, None)
    monkeypatch.undo()
    leg = run_flow(small_config, small_vae, tmp_path, tmp_path / "flow-state.pt")
    assert leg.before_s > 0


def distill_leg(
    trained: Path, config: ModelConfig, vae: Path, out: Path, resume: Path | None = None
) -> distill.Leg:
    settings = distill.Settings(
        out=out, teacher=trained / "flow-state.pt", leg_s=2.0, total_s=60.0, resume=resume,
        config=config, vae=vae, batch=2, blocks=4, pool=4, teacher_steps=2, reports=1,
    )  # fmt: skip
    return distill.Leg(settings, Worker.start("cpu", settings.seed))


@pytest.mark.exhaustive
def test_distillation_goes_on_where_it_stopped(
    trained: Path, small_config: ModelConfig, small_vae: Path, tmp_path: Path
) -> None:
    first = distill_leg(trained, small_config, small_vae, tmp_path)
    first.run()
    state = tmp_path / "distill-state.pt"
    second = distill_leg(trained, small_config, small_vae, tmp_path, state)
    second.run()
    assert second.step > first.step > 0
    assert second.losses.isfinite().all()


@torch.no_grad()
def test_the_student_s_own_videos_change_their_prompts_halfway(
    trained: Path, small_config: ModelConfig, small_vae: Path, tmp_path: Path
) -> None:
    leg = distill_leg(trained, small_config, small_vae, tmp_path)
    leg.ids[:, 0], leg.earlier_ids[:, 0] = 7, 9
    changing, _ = own_video(leg)
    leg.ids.copy_(leg.earlier_ids)
    staying, _ = own_video(leg)
    assert torch.equal(changing[:2], staying[:2])
    assert not torch.equal(changing[2:], staying[2:])


def own_video(leg: distill.Leg) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(4)
    # Cross-attention begins at zero, and a few steps leave little in it.
    for block in leg.student.transformer.blocks:
        torch.nn.init.normal_(block.cross_attn.o.weight, std=0.5)
    return leg._own_video()


def test_only_what_follows_a_change_counts_in_own_videos(
    trained: Path, small_config: ModelConfig, small_vae: Path, tmp_path: Path
) -> None:
    leg = distill_leg(trained, small_config, small_vae, tmp_path)
    batches, seen = leg.batches(), set()
    for _ in range(40):
        next(batches)
        seen |= {tuple(column) for column in leg.own_counts.T.tolist()}
    assert seen == {(1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)}


@torch.no_grad()
def test_the_teacher_is_led_on_by_what_the_words_change(
    trained: Path, small_config: ModelConfig, small_vae: Path, tmp_path: Path
) -> None:
    leg = distill_leg(trained, small_config, small_vae, tmp_path)
    for block in leg.teacher.transformer.blocks:
        torch.nn.init.normal_(block.cross_attn.o.weight, std=0.5)
    leg.ids[:, 0], leg.silent_ids[:, 0] = 7, 9
    history, start = torch.randn(2, *leg.latents.shape)

    def led(guidance: float) -> torch.Tensor:
        leg.settings = replace(leg.settings, guidance=guidance, teacher_steps=1)
        return leg._led_to(history, start, torch.ones_like(leg.counts))

    silent, plain, louder = led(0.0), led(1.0), led(3.0)
    assert (plain - silent).abs().max() > 1e-2
    torch.testing.assert_close(louder - plain, 2 * (plain - silent), rtol=1e-3, atol=1e-4)
    leg.silent_ids.copy_(leg.ids)
    torch.testing.assert_close(led(3.0), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_histories_are_what_the_model_makes_of_clips(
    small_config: ModelConfig, small_vae: Path, tmp_path: Path, share: float
) -> None:
    settings = flow.Settings(
        out=tmp_path, leg_s=1.0, total_s=1.0, resume=None, config=small_config, vae=small_vae,
        batch=2, blocks=4, own_history=share,
    )  # fmt: skip
    leg = flow.Leg(settings, Worker.start("cpu", settings.seed))
    leg.latents.normal_()

    def model(_history: Any, noised: torch.Tensor, times: torch.Tensor, _context: Any) -> Any:
        """Says of everything that 5 is what it was."""
        return (noised - 5) / flow.wide(times / 1000)

    leg.model = model  # type: ignore[assignment]
    found, clean = leg._history([]), leg.latents
    if share:
        torch.testing.assert_close(found, torch.full_like(clean, 5.0), rtol=0, atol=1e-4)
    else:
        assert 0 < (found - clean).square().mean().sqrt() < 0.12


def test_errors_of_the_ground_count_more_and_those_of_a_block_as_much() -> None:
    errors = torch.ones(2, 3, 4, 16, 5)
    torch.testing.assert_close(flow.weighed(errors), torch.ones(2))
    ground, above = torch.zeros_like(errors), torch.zeros_like(errors)
    ground[..., -1, :], above[..., -3, :] = 1, 1
    torch.testing.assert_close(flow.weighed(ground), 4 * flow.weighed(above))


@torch.no_grad()
def test_videos_of_a_checkpoint_are_judged(
    trained: Path, small_config: ModelConfig, small_vae: Path
) -> None:
    model = load_generator(trained / "flow-state.pt", CPU, small_config)
    prompts = held_out_prompts(2)
    texts = [(first[0], second[0]) for first, second in prompts]
    for steps in (0, 3):
        latents = videos(model, texts, blocks=4, euler_steps=steps, seed=1)
        assert latents.shape == (2, 12, 4, 4, 8)
        assert torch.equal(latents, videos(model, texts, blocks=4, euler_steps=steps, seed=1))
    clips = pictures(latents, small_vae, small_config)
    assert clips.shape == (2, 45, 16, 32, 3)


def test_a_tally_counts_both_sides_of_a_switch() -> None:
    prompts = held_out_prompts(1)
    before, after = tallies(torch.zeros(1, 45, 96, 160, 3, dtype=torch.uint8), prompts)
    assert sum(before.asked.values()) == len(prompts[0][0][1])
    assert sum(after.asked.values()) == len(prompts[0][1][1])


def test_a_checkpoint_becomes_the_shipped_weights(
    trained: Path, small_config: ModelConfig, tmp_path: Path
) -> None:
    model = load_generator(trained / "flow-state.pt", CPU, small_config)
    ship(model, tmp_path)
    shipped = load_file(weights_path("transformer", tmp_path))
    assert shipped.keys() == model.transformer.state_dict().keys()
    assert load_file(tmp_path / "text_encoder.safetensors").keys() == model.text.state_dict().keys()
