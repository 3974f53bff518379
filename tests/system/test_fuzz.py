"""No bytes of a stranger or a neighbour make a decoder raise what it does not declare, or cost more than they may."""

import importlib.util
import platform
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import corpus
from tests.fuzz.judge import Broken, judge
from tests.fuzz.mutator import mutated
from tests.fuzz.targets import TARGETS, Form, Target

ROOT = Path(__file__).parents[2]
FUZZER = importlib.util.find_spec("atheris") is not None


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs_do_what_their_target_promises(name: str) -> None:
    """Each of them once reached code that nothing else had reached; some were found to break it."""
    target = TARGETS[name]
    inputs = corpus.read(target)
    assert inputs
    for data in inputs:
        judge(target, data)


def test_judge_finds_an_error_that_is_not_declared_and_an_input_that_costs_too_much() -> None:
    """A fuzzer that can't find anything proves nothing."""

    def raises(data: bytes) -> None:
        raise KeyError(data)

    with pytest.raises(Broken, match=r"raising raised KeyError.* for 6162"):
        judge(Target("raising", raises, (), list), b"ab")
    with pytest.raises(Broken, match=r"slow took .* ms, more than 20"):
        judge(Target("slow", lambda data: sum(range(10_000_000)), (), list), b"")


def test_mutator_changes_values_and_stays_messagepack() -> None:
    """Changed bytes are nearly always refused at once, and find nothing behind the first check."""
    target = TARGETS["node-frame"]
    changed = [mutated(data, Form.MESSAGEPACK, Random(seed)) for data in target.seeds() for seed in range(40)]
    made = [data for data in changed if data is not None]
    assert len(set(made)) > len(made) / 2 > 40
    accepted = 0
    for data in made:
        try:
            target.run(data)
            accepted += 1
        except target.declared:
            pass
    assert accepted > len(made) / 10


@pytest.mark.processes
@pytest.mark.timeout(400)  # fifteen seconds of processor time, at a niceness at which busy programs leave it a tenth
@pytest.mark.skipif(not FUZZER, reason=f"atheris has no wheel for {platform.machine()}")
def test_fuzzing_for_a_short_while_finds_nothing() -> None:
    """The short form of ``python -m tests.fuzz --inputs 10000000``."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--together", "--seconds", "10"], cwd=ROOT, capture_output=True, text=True,
        timeout=380, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for name in TARGETS:
        (inputs,) = re.findall(rf"^{name} +([\d,]+)", ran.stdout, re.MULTILINE)
        assert int(inputs.replace(",", "")) > len(corpus.read(TARGETS[name])), ran.stdout
