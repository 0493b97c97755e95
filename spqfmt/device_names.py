"""Names of devices, in options and on the command line."""

import re

from spqfmt.errors import OptionError

# torch counts devices in a byte, and takes 128 for -128.
_NAME = re.compile(r"cpu|cuda(:(0|[1-9][0-9]?))?")


def check_device_name(name: str) -> str:
    """The name of a device. Raises OptionError for none; whether there is such a device is known only with torch."""
    if _NAME.fullmatch(name) is None:
        raise OptionError(f"device {name!r} is not cpu, cuda or cuda:N")
    return name
