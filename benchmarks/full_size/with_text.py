"""An export again, with a text encoder of random weights beside what it has.

    python -m benchmarks.full_size.with_text ONNX --out ONNX_WITH_TEXT

Of the size that LongLive has, UMT5-XXL's, it takes 11.4 GB. Exports without one are smaller to
keep, check and open; times that prompts take part in need it.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.harness import parser
from longlive_trt.configs import load_config
from longlive_trt.contract import TEXT_ENCODER
from longlive_trt.export.checkpoints.opening import random_weights
from longlive_trt.export.components import Component, expected_shapes, text_spec
from longlive_trt.export.demo_tokenizer import write_demo_tokenizer
from longlive_trt.export.exporter import KeptGraphs, export_components
from longlive_trt.export.models.text_encoder import TextEncoder
from longlive_trt.exports import read_export
from longlive_trt.precision import precision_named


def add_text_encoder(source: Path, out: Path, config_name: str, seed: int) -> None:
    record = read_export(source)
    encoder = load_config(config_name).text_encoder
    assert encoder is not None
    config = replace(record.config, text_encoder=encoder)
    weights = random_weights(expected_shapes(lambda: TextEncoder(encoder)), seed)
    export_components(
        config,
        [Component(TEXT_ENCODER, weights, (text_spec(config),))],
        out,
        precision_named(record.precision),
        quantization=record.quantization,
        kept=KeptGraphs(source, record, frozenset(record.checkpoints)),
        add_files=partial(write_demo_tokenizer, vocab=encoder.vocab),
        check=False,
    )


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("onnx", type=Path)
    options.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options.add_argument("--config", default="longlive-1.3b", help="whose text encoder it is")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    add_text_encoder(given.onnx, given.out, given.config, given.seed)
    print(f"{given.out}: {given.onnx} with the text encoder of {given.config}")


if __name__ == "__main__":
    main()
