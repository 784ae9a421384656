"""The options that say where engines run, and which of a bundle's decoders does."""

import click

from longlive_trt.engines.loader import DEVICES
from longlive_trt.runtime.decoding.choice import DECODERS

device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default=DEVICES[0],
    show_default=True,
    help="Where to run; auto is what the bundle was built for.",
)
decode_device_option = click.option(
    "--decode-device",
    metavar="cuda:N",
    help="Decode on another GPU, beside the transformer's.",
)
decoder_option = click.option(
    "--decoder",
    type=click.Choice(DECODERS),
    help="Of a bundle that holds two.  [default: full, where it is inside]",
)
