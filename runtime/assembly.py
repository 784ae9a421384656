"""From a bundle to sessions: engines are loaded when first needed and shared by all sessions."""

from collections.abc import Callable

from ..configs import ModelConfig
from ..engines.base import Closing, Engine
from ..engines.bundle import Bundle
from ..engines.loader import load_engine, require_runnable
from .decoder import Decoder, ThreadedDecoder, VaeStream
from .noise import NoiseSource
from .prompts import PromptContexts, PromptEncoder
from .session import Session
from .tokenizer import PromptTokenizer


class Engines(Closing):
    def __init__(self, bundle: Bundle) -> None:
        require_runnable(bundle)
        self.bundle = bundle
        self._loaded: dict[str, Engine] = {}

    def get(self, graph: str, purpose: str) -> Engine:
        if graph not in self._loaded:
            self.bundle.require(graph, purpose)
            self._loaded[graph] = load_engine(self.bundle, graph)
        return self._loaded[graph]

    def contexts(self, batch: int) -> PromptContexts:
        return PromptContexts(self.get("prompt", "conditioning on a prompt"), batch)

    def prompt_encoder(
        self, batch: int, on_truncation: Callable[[str, str], None]
    ) -> PromptEncoder:
        text = self.get("text", "reading a prompt")
        tokenizer = PromptTokenizer.load(
            self.bundle.tokenizer, self.bundle.config.transformer.text_len
        )
        return PromptEncoder(tokenizer, text, self.contexts(batch), on_truncation=on_truncation)

    def vae_stream(self, batch: int) -> VaeStream:
        first, following = (
            self.get(graph, "decoding to pictures") for graph in ("vae_first", "vae_next")
        )
        return VaeStream(first, following, batch)

    def decoder(self, batch: int) -> Decoder:
        return ThreadedDecoder(self.vae_stream(batch))

    def session(
        self,
        config: ModelConfig,
        noise: NoiseSource,
        *,
        batch: int = 1,
        total_frames: int | None = None,
        decode: bool = True,
    ) -> Session:
        return Session(
            self.get("step", "generating"),
            config,
            noise,
            batch=batch,
            total_frames=total_frames,
            decoder=self.decoder(batch) if decode else None,
        )

    def close(self) -> None:
        for engine in self._loaded.values():
            engine.close()
        self._loaded.clear()
