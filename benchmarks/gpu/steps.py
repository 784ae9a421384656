"""What a GPU has to check and to measure, in order of worth; ``record.py`` runs it.

Programs are written as they are typed, from the root of a checkout. ``{work}`` is where bundles are
kept, ``{out}`` where records go, ``{card}`` the GPU's name in those of files, and ``{sm}`` what
bundles are built for. Seconds are those of an H200 and 16 cores, and were guessed where nobody has
run a step yet.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    name: str
    what: str
    command: str
    seconds: int
    """As long as it is expected to take."""
    makes: str = ""
    """What it puts into ``{work}`` for others."""
    record: str = ""
    """What it puts into ``{out}``, beside its log."""
    prints_record: bool = False
    """Whether that is its standard output."""
    needs: tuple[str, ...] = ()
    """Steps that make what it takes."""
    modules: tuple[str, ...] = ()
    """Beside what all steps import, what must be installed."""
    gpus: int = 1
    capability: tuple[int, int] = (0, 0)
    says: str = ""
    """What the last line of its log holds, if all is well."""


HOPPER = (9, 0)
# Warnings of other versions of libraries are no failure here.
_PYTEST = "python -m pytest -q -m gpu -W default -o timeout=900 -p no:cacheprovider"
# Files, not folders: others there want packages that a GPU has no use for.
_ATTENTION_TESTS = tuple(
    f"tests/plugins/attention/test_{name}.py"
    for name in ("hopper", "portable", "padding", "eight_bit", "plugin_kernel", "turned_keys")
)
_KERNEL_TESTS = tuple(
    f"tests/plugins/{name}.py"
    for name in (
        *("kernels/test_vae_conv", "kernels/test_vae", "kernels/test_transformer"),
        *("kernels/test_vae_colors", "kernels/test_values", "kernels/test_gelu_product"),
        *("cuda/test_cublaslt", "cuda/test_captures"),
    )
)
_SERVING = ("fastapi", "uvicorn", "websockets")
_MODELOPT = ("modelopt",)
_RANDOM = "--random-weights 0 --precision bf16 --no-check"
_QUICK_CALIBRATION = "--device cuda --compute bf16 --max-prompts 2 --blocks 4 --no-check"
_DEMO_CALIBRATION = (
    "--device cuda --prompts benchmarks/demo/calibrated_with.txt --blocks 6 --no-check"
)
_INTEGERS = "--precision fp8 --attention int8 --vae-precision int8"
_ENDS = ("conv2", "decoder.conv1", "decoder.head.2")
_WAYS = ("*.resample.1", "*.time_conv", "*.shortcut", "*.to_qkv", "*.proj")
_BUT_THE_ENDS = " ".join(f"--vae-exclude {pattern}" for pattern in (*_ENDS, *_WAYS))
_GOLDEN = " ".join(
    f"--set {part}"
    for part in (
        *("transformer.dim=256", "transformer.heads=2", "transformer.layers=2"),
        *("transformer.ffn_dim=512", "transformer.text_len=16", "transformer.text_dim=64"),
        *("latent.height=8", "latent.width=12", "vae=null", "text_encoder=null"),
    )
)
_GOLDEN_DATA = "tests/data/transformer"
_DEMO_WEIGHTS = " ".join(
    f"--{part} demo/weights/{part.replace('-', '_')}.safetensors"
    for part in ("transformer", "vae", "light-vae", "text-encoder")
)
_WHOLE = "--blocks 300 --switches 50 --seconds 60 --overwrite"
_SHORT = "--blocks 60 --switches 8 --seconds 20 --overwrite"
_BOTH_DECODERS = "--decoder full --decoder light"
_AS_PRESETS = "--blocks 24 --switches 0 --seconds 5 --warmup 4 --overwrite"
_ROW = "--device cuda --processes 4 --work {out}/adherence"
_PRESETS = (
    *("balanced", "speed", "turbo", "ultra", "quality", "light", "turbo-light", "ultra-light"),
    *("scene-change", "low-memory"),
)


def _tests(name: str, what: str, seconds: int, *paths: str, gpus: int = 1) -> Step:
    command, modules = f"{_PYTEST} {' '.join(paths)}", ("pytest", "pytest_timeout")
    # All of them may be skipped.
    return Step(name, what, command, seconds, modules=modules, gpus=gpus, says=" passed")


def _sanitized(name: str, what: str, seconds: int, tool: str, program: str) -> Step:
    command = f"compute-sanitizer --tool {tool} --error-exitcode 9 {program}"
    return Step(name, what, command, seconds, capability=HOPPER, says="0 errors")


def _bench(name: str, bundle: str, what: str, seconds: int, options: str, *, gpus: int = 1) -> Step:
    record = f"bench_{{card}}_{name.replace('-', '_')}.json"
    command = f"longlive-trt bench --bundle {{work}}/{bundle} {options} --out {{out}}/{record}"
    return Step(f"bench-{name}", what, command, seconds, record=record, needs=(bundle,), gpus=gpus)


def _kernels(module: str, what: str, seconds: int, record: str) -> Step:
    name, out = f"{module.replace('_', '-')}-kernels", f"{record}_{{card}}.json"
    command = f"python -m benchmarks.kernels.{module} --out {{out}}/{out}"
    return Step(name, what, command, seconds, record=out, capability=HOPPER)


def _bundle(name: str, export: str, seconds: int, precision: str, options: str = "") -> Step:
    gpu = f"--gpu {{sm}} --precision {precision}"
    command = f"longlive-trt build --onnx {{work}}/{export} {gpu}{options} --out {{work}}/{name}"
    return Step(name, f"the bundle {name}", command, seconds, makes=name, needs=(export,), gpus=0)


def _demo_bundle(precision: str, export: str, options: str = "") -> Step:
    """Its decoder has graphs as they are exported, and so has all of it without ``--gpu``."""
    name = f"demo-{precision}"
    command = f"longlive-trt build --onnx {{work}}/{export} --precision {precision}{options}"
    return Step(
        *(name, f"the bundle {name}", f"{command} --out {{work}}/{name}", 10),
        makes=name,
        needs=(export,),
        gpus=0,
    )


PREPARATIONS = (
    Step(
        "onnx",
        "LongLive 1.3B, its VAE with tiles, and a tiny decoder: random weights, 16 bits",
        "longlive-trt export --config longlive-1.3b --set text_encoder=null "
        "--set light_vae.kind=taehv --set vae.tiles=true --no-encoder "
        f"{_RANDOM} --out {{work}}/onnx",
        65,
        makes="onnx",
        gpus=0,
    ),
    Step(
        "onnx-fp8",
        "the same in FP8, with attention and the whole decoder in int8",
        f"longlive-trt calibrate --onnx {{work}}/onnx {_INTEGERS} {_BUT_THE_ENDS} "
        f"{_QUICK_CALIBRATION} --out {{work}}/onnx-fp8",
        75,
        makes="onnx-fp8",
        needs=("onnx",),
        modules=_MODELOPT,
    ),
    Step(
        "onnx-text",
        "the same with UMT5-XXL beside it",
        "python -m benchmarks.full_size.with_text {work}/onnx-fp8 --out {work}/onnx-text",
        90,
        makes="onnx-text",
        gpus=0,
        needs=("onnx-fp8",),
    ),
    Step(
        "onnx-endless",
        "the same in 16 bits with positions within the window",
        "longlive-trt export --config longlive-1.3b --set text_encoder=null "
        "--set rollout.rope=relative --no-encoder "
        f"{_RANDOM} --out {{work}}/onnx-endless",
        60,
        makes="onnx-endless",
        gpus=0,
    ),
    _bundle("bf16", "onnx", 20, "bf16"),
    _bundle("endless", "onnx-endless", 20, "bf16"),
    _bundle("fp8", "onnx-fp8", 45, "fp8"),
    _bundle("fp8-text", "onnx-text", 90, "fp8"),
    _bundle("lora", "onnx", 15, "bf16", " --lora-ready"),
    Step(
        "golden",
        "the small transformer that recorded rollouts were made with",
        f"longlive-trt export --config longlive-1.3b {_GOLDEN} "
        f"--transformer {_GOLDEN_DATA}/transformer.safetensors --no-check --out {{work}}/golden",
        20,
        makes="golden",
        gpus=0,
    ),
    _bundle("golden-fp16", "golden", 5, "fp16"),
    _bundle("golden-bf16", "golden", 5, "bf16"),
    Step(
        "demo",
        "the demo's export",
        f"longlive-trt export --config demo/model.yaml {_DEMO_WEIGHTS} --tokenizer demo/onnx "
        "--no-check --out {work}/demo",
        40,
        makes="demo",
        gpus=0,
    ),
    Step(
        "onnx-demo-fp8",
        "the demo's in FP8",
        f"longlive-trt calibrate --onnx {{work}}/demo --precision fp8 {_DEMO_CALIBRATION} "
        "--out {work}/onnx-demo-fp8",
        60,
        makes="onnx-demo-fp8",
        needs=("demo",),
        modules=_MODELOPT,
    ),
    Step(
        "onnx-demo-int8",
        "the demo's in int8",
        f"longlive-trt calibrate --onnx {{work}}/demo --precision int8 {_DEMO_CALIBRATION} "
        "--out {work}/onnx-demo-int8",
        60,
        makes="onnx-demo-int8",
        needs=("demo",),
        modules=_MODELOPT,
    ),
    _demo_bundle("fp16", "demo"),
    _demo_bundle("bf16", "demo", " --gpu {sm}"),
    _demo_bundle("fp8", "onnx-demo-fp8", " --gpu {sm}"),
    # No kernel of ours multiplies in int8.
    _demo_bundle("int8", "onnx-demo-int8"),
)


def _golden(precision: str) -> Step:
    record = f"golden_a_{{card}}_{precision}.json"
    replay = f"{_GOLDEN_DATA}/switch15_global_sink.replay.safetensors"
    return Step(
        f"golden-a-{precision}",
        f"a recorded rollout with a switch in {precision}, against float32 on the CPU",
        f"longlive-trt verify {{work}}/golden-{precision} --against {{work}}/golden "
        f"--replay {replay} --json",
        20,
        record=record,
        prints_record=True,
        needs=(f"golden-{precision}", "golden"),
    )


def _live(sessions: int) -> Step:
    record = f"live_{{card}}_{sessions}.json"
    return Step(
        f"live-{sessions}",
        f"live, {sessions} at a time, with drafts and without: Enter to the first changed picture",
        "python -m benchmarks.live {work}/fp8-text --device cuda --prompts 20 "
        f"--sessions {sessions} --out {{out}}/{record}",
        240,
        record=record,
        needs=("fp8-text",),
        modules=_SERVING,
        capability=HOPPER,
    )


def _row(precision: str, seconds: int) -> Step:
    return Step(
        f"adherence-{precision}",
        f"the demo's row in {precision}: what it shows of its prompts",
        f"python -m benchmarks.demo.adherence --rows {precision} "
        f"--bundle {{work}}/demo-{precision} {_ROW}",
        seconds,
        record=f"adherence/{precision}.0.jsonl",
        needs=(f"demo-{precision}",),
    )


def _preset(preset: str, bundle: str) -> Step:
    options = f"--preset {preset} {_AS_PRESETS}"
    return _bench(f"preset-{preset}", bundle, f"preset {preset} in {bundle}", 30, options)


STEPS = (
    _tests("tests-attention", "attention's kernels", 100, *_ATTENTION_TESTS),
    _tests("tests-kernels", "all other kernels, cuBLASLt, captures", 240, *_KERNEL_TESTS),
    _tests(
        "tests-runtime",
        "tiles and the tiny decoder are exact, times are those of events",
        190,
        "tests/runtime/gpu/test_tiles_on_gpu.py",
        "tests/runtime/gpu/test_taehv_on_gpu.py",
        "tests/runtime/bench/test_measurement.py",
    ),
    _golden("fp16"),
    _golden("bf16"),
    Step(
        "against-torch",
        "bf16 and FP8 with both decoders, in turns with torch: the table of docs/gpu.md",
        "python -m benchmarks.against_torch --bundle {work}/bf16 --bundle {work}/fp8 "
        f"{_BOTH_DECODERS} --rounds 12 --out {{out}}/against_torch_{{card}}.json",
        240,
        record="against_torch_{card}.json",
        needs=("bf16", "fp8"),
        capability=HOPPER,
    ),
    _bench("fp8", "fp8", "all of FP8: blocks, switches, overlapped", 230, _WHOLE),
    Step(
        "soak",
        "1,000 blocks in debug mode: nothing is allocated, and memory is flat",
        "python -m benchmarks.soak {work}/fp8 --blocks 1000 --out {out}/soak_{card}.json",
        260,
        record="soak_{card}.json",
        needs=("fp8",),
        capability=HOPPER,
    ),
    _tests(
        "tests-faults",
        "what a process leaves on the GPU when it is killed or fails",
        120,
        "tests/runtime/gpu/test_gpu_faults.py",
        "tests/demo/test_fused.py",
        "tests/commands/test_doctor.py",
    ),
    _sanitized(
        "memcheck",
        "no kernel of attention reads or writes beyond its tensors",
        30,
        "memcheck",
        "python -m benchmarks.kernels.races",
    ),
    _sanitized(
        "racecheck",
        "no two threads of attention meet in shared memory",
        40,
        "racecheck",
        "python -m benchmarks.kernels.races --checked",
    ),
    _sanitized(
        "memcheck-kernels",
        "nor does one of the others, in 8 bits and in 16",
        400,
        "memcheck",
        f"{_PYTEST} {_ATTENTION_TESTS[-1]} {' '.join(_KERNEL_TESTS[:6])}",
    ),
    _kernels("taehv", "the tiny decoder's passes and convolutions", 10, "taehv_kernels"),
    _kernels("attention", "attention beside cuDNN and FlashAttention", 100, "attention"),
    Step(
        "tiny-decoder",
        "the tiny decoder, block by block",
        "python -m benchmarks.decoder --bundle {work}/fp8 --decoder light "
        "--out {out}/taehv_{card}.json",
        40,
        record="taehv_{card}.json",
        needs=("fp8",),
    ),
    Step(
        "full-decoder",
        "the whole decoder in int8, block by block",
        "python -m benchmarks.decoder --bundle {work}/fp8 --decoder full "
        "--out {out}/decoder_int8_{card}.json",
        40,
        record="decoder_int8_{card}.json",
        needs=("fp8",),
    ),
    _bench(
        "fp8-light-decoder", "fp8", "FP8 with the tiny decoder", 70, f"--decoder light {_SHORT}"
    ),
    _bench(
        "bf16-light-decoder", "bf16", "bf16 and the tiny decoder", 80, f"--decoder light {_SHORT}"
    ),
    Step(
        "lora-swap",
        "how long it takes to exchange an adapter",
        "python -m benchmarks.lora_swap {work}/lora --out {out}/lora_swap_{card}.json",
        120,
        record="lora_swap_{card}.json",
        needs=("lora",),
    ),
    Step(
        "tiles",
        "memory and time of decoding whole blocks, frame by frame, and in tiles",
        "python -m benchmarks.decoder_memory {work}/bf16 --out {out}/tiles_{card}.json",
        120,
        record="tiles_{card}.json",
        needs=("bf16",),
    ),
    Step(
        "calibrate",
        "a calibration at full size by ModelOpt: time and memory",
        "python -m benchmarks.full_size.calibrate --blocks 4 --out {out}/calibrate_full_size.json",
        80,
        record="calibrate_full_size.json",
        modules=_MODELOPT,
    ),
    _live(1),
    _live(2),
    _row("fp16", 80),
    _row("bf16", 80),
    _row("fp8", 80),
    Step(
        "precisions",
        "what each precision costs the demo: pictures, drift, what is shown",
        "python -m benchmarks.demo.precisions --device cuda --keep {out}/precisions",
        400,
        record="precisions/report-int8/report.json",
        modules=_MODELOPT,
    ),
    *(_preset(name, "bf16") for name in _PRESETS),
    _preset("turbo-fp8", "fp8"),
    _preset("endless", "endless"),
    Step(
        "switch-times",
        "what each way to change the prompt adds: the column of docs/switching.md",
        "python -m benchmarks.switch_times {work}/fp8 --out {out}/switch_times_{card}.json",
        60,
        record="switch_times_{card}.json",
        needs=("fp8",),
    ),
    _bench("bf16", "bf16", "all of bf16", 260, f"{_WHOLE} --plot {{out}}/bench_{{card}}_bf16.png"),
    _bench("fp8-text", "fp8-text", "prompts read by UMT5-XXL", 120, f"--decoder full {_SHORT}"),
    _kernels("transformer", "every kernel of a pass", 60, "transformer_kernels"),
    Step(
        "products",
        "all of cuBLASLt's proposals for a pass's products, beside the first",
        "python -m benchmarks.kernels.products --out {out}/products_{card}.json",
        60,
        record="products_{card}.json",
        capability=HOPPER,
    ),
    _kernels("vae", "the decoder's passes in 16 bits", 60, "vae_kernels"),
    _kernels("vae_conv", "the decoder's convolutions in 8 bits", 60, "vae_conv"),
    _kernels("padding", "attention to a prompt without its padding", 20, "padding"),
    _kernels("attention_sums", "how sums of 8-bit attention are kept", 40, "attention_sums"),
    _kernels("attention_rollout", "8-bit attention over a rollout", 60, "attention_rollout"),
    _row("int8", 240),
)
TWO_GPUS = (
    _tests(
        "tests-two-gpus",
        "a second GPU that decodes makes the bits of one",
        40,
        "tests/runtime/gpu/test_two_gpus.py",
        gpus=2,
    ),
    Step(
        "two-gpus",
        "FP8 and the whole decoder, on one GPU and on two: bits, and 182 ms a block",
        "python -m benchmarks.two_gpus {work}/fp8 --out {out}/two_gpus_{card}.json",
        80,
        record="two_gpus_{card}.json",
        needs=("fp8",),
        gpus=2,
        capability=HOPPER,
    ),
    _bench(
        *("two-gpus", "fp8", "the same by `bench`", 110),
        "--decode-device cuda:1 --blocks 100 --switches 20 --seconds 30 --overwrite",
        gpus=2,
    ),
)
TABLE = {step.name: step for step in (*PREPARATIONS, *TWO_GPUS, *STEPS)}
"""All, by name. Where there are two GPUs, what needs them comes first."""
