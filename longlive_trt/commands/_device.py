"""The options that say where engines run."""

import click

from longlive_trt.engines.loader import DEVICES

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
