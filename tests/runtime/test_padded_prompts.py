"""Sessions on graphs that do not read what pads a prompt."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from longlive_trt.configs import ModelConfig
from longlive_trt.contract import CONTEXT_TOKENS
from longlive_trt.engines.graphs.step import build_step_graphs
from longlive_trt.exports import read_export
from longlive_trt.precision import PRECISIONS
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.prompting.encoder import PromptContexts
from longlive_trt.runtime.session import Session
from longlive_trt.runtime.state import load_state, restore, save_state
from longlive_trt.runtime.transformer import Context
from tests.fakes.sessions import KernelEngine

OWN_TOKENS, TOTAL_FRAMES = 5, 30


@pytest.fixture(scope="module")
def config(golden_export: Path) -> ModelConfig:
    return read_export(golden_export).config


@pytest.fixture(scope="module")
def graphs(
    golden_export: Path, config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    build_step_graphs(config, golden_export, PRECISIONS["fp32"], folder)
    return folder


@pytest.fixture
def session(graphs: Path, config: ModelConfig) -> Iterator[Session]:
    with opened(graphs, config) as session:
        yield session


def opened(graphs: Path, config: ModelConfig) -> Session:
    shape = (1, config.rollout.frames_per_block, *config.latent_shape)
    noise = SeededNoise(3, shape, config.rollout.noises)
    return Session(KernelEngine(graphs / "step.onnx"), config, noise, total_frames=TOTAL_FRAMES)


def context(graphs: Path, config: ModelConfig, own_tokens: int) -> Context:
    text = config.transformer
    states = np.random.default_rng(own_tokens).standard_normal(
        (1, text.text_len, text.text_dim), np.float32
    )
    states[:, own_tokens:] = 0
    return PromptContexts(KernelEngine(graphs / "prompt.onnx"), 1).of_states(states)


def tokens(session: Session) -> int:
    return int(session.context[CONTEXT_TOKENS].item())


def test_each_prompt_says_how_many_of_its_tokens_are_read(
    session: Session, graphs: Path, config: ModelConfig
) -> None:
    for own in (OWN_TOKENS, config.transformer.text_len, 2):
        session.switch_prompt(context(graphs, config, own), "none")
        session.step()
        assert tokens(session) == min(own + 1, config.transformer.text_len)


def test_a_checkpoint_keeps_how_many(session: Session, graphs: Path, config: ModelConfig) -> None:
    session.switch_prompt(context(graphs, config, OWN_TOKENS))
    session.step()
    kept = session.checkpoint()
    expected = np.array(session.step().latents)
    session.switch_prompt(context(graphs, config, config.transformer.text_len), "none")
    session.step()
    session.rollback(kept)
    assert tokens(session) == OWN_TOKENS + 1
    np.testing.assert_array_equal(session.step().latents, expected)


def test_a_state_is_resumed_with_as_many(
    session: Session, graphs: Path, config: ModelConfig, tmp_path: Path
) -> None:
    """Other engines keep none of it: it is seen again in a prompt's keys and values."""
    session.switch_prompt(context(graphs, config, OWN_TOKENS))
    session.step()
    save_state(tmp_path / "state", session, bundle_key="", seed=3, prompt="")
    saved = load_state(tmp_path / "state")
    assert CONTEXT_TOKENS not in saved.tensors
    with opened(graphs, config) as resumed:
        restore(resumed, saved)
        assert tokens(resumed) == OWN_TOKENS + 1
        np.testing.assert_array_equal(resumed.step().latents, session.step().latents)
