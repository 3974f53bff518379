"""Errors of the simulator and the emulator.

SimulationError
├── ScenarioError      a scenario can't be used; names the file, the place and the value
├── TraceError         a floating-car file is missing, cut off or makes no sense
├── EmulatorError      this host can't emulate; names what is missing, and what still works
├── ReplayError        a saved run can't be repeated
├── ResultError        a saved result can't be read, or compared with another
└── SweepError         a sweep can't be made, or can't go on where it stopped
"""


class SimulationError(Exception):
    """Anything that a person who runs ``meshsim`` can act on."""


class ScenarioError(SimulationError):
    """A scenario can't be used."""


class TraceError(SimulationError):
    """A floating-car file is missing, cut off or makes no sense."""


class EmulatorError(SimulationError):
    """The emulator can't run on this host."""


class ReplayError(SimulationError):
    """A saved run can't be repeated."""


class ResultError(SimulationError):
    """A saved result can't be read, or compared with another."""


class SweepError(SimulationError):
    """A sweep can't be made, or can't go on where it stopped."""
