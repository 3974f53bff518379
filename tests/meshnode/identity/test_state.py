"""The incarnation that a node keeps on disk, whatever the clock said when it was written."""

import asyncio
import calendar
import logging
from contextlib import closing
from pathlib import Path

import pytest

from meshnode.identity import reservation
from meshnode.identity.reservation import Reservation
from meshnode.identity.state import StateFolder
from meshnode.troubles import Troubles
from protocols.base.sequences import MAX_INCARNATION, first_sequence
from tests.tools.eventually import until


def year(number: int) -> int:
    return calendar.timegm((number, 1, 1, 0, 0, 0))


def start(folder: Path, now_s: float) -> int:
    """One life of a node."""
    with closing(StateFolder(folder)) as state:
        return int(state.next_incarnation(now_s))


def test_incarnations_grow_while_the_clock_jumps_about(tmp_path: Path) -> None:
    """A board without a battery, a wrong server of time, and one that is right."""
    starts = [year(1970), year(2026), year(1970), year(2039), year(2026), year(2107), year(2026), year(2300)]
    lives = [start(tmp_path, now_s) for now_s in starts]
    assert lives == sorted(set(lives))
    assert lives[0] == 1
    assert lives[1] == year(2026)
    assert lives[-1] == year(2107) + 2, "no clock that is right shows 2300"
    assert lives[-1] < MAX_INCARNATION


@pytest.mark.parametrize("kept", [b"", b"\0\0\0\0", b"seven", b"-4", str(year(2300)).encode(), b"9" * 5_000])
def test_incarnation_that_can_not_be_one_is_moved_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: bytes
) -> None:
    """Else one boot with a clock of 2300 would keep the node out of the mesh for ever."""
    (tmp_path / "incarnation").write_bytes(kept)
    assert start(tmp_path, year(2027)) == year(2027)
    assert start(tmp_path, year(2026)) == year(2027) + 1
    assert (tmp_path / "incarnation.unusable").read_bytes() == kept
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_long_life_reserves_what_it_uses_up(tmp_path: Path) -> None:
    """Its next life may have to begin with the last incarnation plus one."""
    with closing(StateFolder(tmp_path)) as state:
        life = state.next_incarnation(year(2030))
        first, following = first_sequence(life), first_sequence(life + 1)
        assert state.is_reserved(first)
        state.reserve(following - 1)
        assert state.is_reserved(following)
        assert not state.is_reserved(following + (1 << 29))
    assert start(tmp_path, year(2020)) == life + 2


async def test_reservation_is_a_trouble_while_the_disk_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishing goes on meanwhile, and the next check tries again."""
    monkeypatch.setattr(reservation, "CHECK_S", 0.01)
    folder, away = tmp_path / "state", tmp_path / "away"
    troubles = Troubles()
    with closing(StateFolder(folder)) as state:
        life = state.next_incarnation(year(2030))
        folder.rename(away)
        task = asyncio.create_task(Reservation(state, lambda: first_sequence(life + 1) + 7, troubles).run())
        await until(troubles.current, "it is told")
        (trouble,) = troubles.current()
        assert (trouble.part, trouble.essential) == ("state", False)
        assert "can't be written" in trouble.why
        away.rename(folder)
        await until(lambda: not troubles.current(), "it is over")
        task.cancel()
    assert start(folder, 0) == life + 2
