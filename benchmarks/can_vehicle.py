"""A vehicle on a CAN bus: a database of its signals, and the frames that it sends."""

from random import Random
from typing import Final

MESSAGES: Final = 50
SIGNALS: Final = 4
"""Of each message: 200 in all."""


def database(messages: int = MESSAGES) -> str:
    """A DBC: messages ``M0`` … of four signals of 16 bits, with factors, offsets, signs, units and ranges."""
    lines = ['VERSION ""', "NS_ :", "BS_:", "BU_: ECU", ""]
    for number in range(messages):
        lines.append(f"BO_ {256 + number} M{number}: 8 ECU")
        for place in range(SIGNALS):
            sign, factor, unit = ("-", 0.01, "m/s2") if place == 0 else ("+", 0.1, "km/h")
            low, high = (-300, 300) if place == 0 else (0, 6553.5)
            lines.append(f' SG_ S{place} : {16 * place}|16@1{sign} ({factor},0) [{low}|{high}] "{unit}" ECU')
        lines.append("")
    return "\n".join(lines)


def frame(random: Random, number: int) -> tuple[int, bytes]:
    """Identifier and data of the ``number``-th frame: each message in turn."""
    return 256 + number % MESSAGES, random.randbytes(8)
