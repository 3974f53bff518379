"""Making a version: all records of a question are listed, described and digested, once, oldest first.

Records that the relay stores meanwhile may be in the version or not; the list says which. A version ends with the
newest record that there was at the beginning, so that a relay under load does not keep the listing going.
"""

import shlex
from collections.abc import Callable, Mapping
from typing import Final

from cloud_relay.datasets.describing import RecordsDescribed
from cloud_relay.datasets.digest import DatasetDigest, row_digest
from cloud_relay.datasets.members import MemberList, member_of
from cloud_relay.datasets.names import VersionName
from cloud_relay.datasets.shelf import DatasetShelf
from cloud_relay.datasets.versions import FORM, DatasetVersion
from cloud_relay.datasets.walking import newest_utc_ns, records_of_question
from cloud_relay.query.readers.contract import StoreReader
from cloud_relay.query.selection import FILTERS, untrusted_query
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import UtcNs

MAX_LICENCE_CHARS: Final = 200
MAX_NOTES_CHARS: Final = 10_000


def make_version(
    shelf: DatasetShelf,
    name: str,
    question: Mapping[str, str],
    store: StoreReader,
    now: UtcNs,
    told: Callable[[int], None],
    *,
    licence: str = "",
    notes: str = "",
    software: str = "",
) -> tuple[VersionName, DatasetVersion]:
    """Make the next version of a dataset. ``told`` gets the number of records so far, each time.

    :raises LocalProtocolError: the question is wrong, or the dataset asks another one.
    :raises StorageError: the store can't be read, or the dataset can't be written.
    """
    _check_text("--licence", licence, MAX_LICENCE_CHARS)
    _check_text("--notes", notes, MAX_NOTES_CHARS)
    query = untrusted_query(question, now, FILTERS)
    _check_same_question(shelf, name, question)
    with shelf.making(name) as made:
        newest = newest_utc_ns(store, query)
        until = now if newest is None else newest + 1
        described, digest = RecordsDescribed(), DatasetDigest()
        with MemberList(made.members) as members:
            for record in records_of_question(store, query, until):
                row = row_digest(record, record.fields["has_receipt"])
                digest.add(row)
                members.add(member_of(record, row))
                described.add(record)
                told(digest.records)
        keys, other_keys = described.keys()
        version = DatasetVersion(
            form=FORM, digest=digest.text(), records=digest.records, question=dict(question), asked_utc_ns=now,
            until_utc_ns=until, extent=described.extent(), origins=described.origins(), rules=described.rules(),
            lineage=described.lineage(), keys=keys, other_keys=other_keys, licence=licence, notes=notes,
            software=software,
        )  # fmt: skip
        return made.finish(version), version


def _check_same_question(shelf: DatasetShelf, name: str, question: Mapping[str, str]) -> None:
    if not shelf.numbers(name):
        return
    before = shelf.found(VersionName(name, None))
    asked = shelf.version(before).question
    if asked != dict(question):
        raise LocalProtocolError(
            f"there is a dataset {name!r} already, which asks {question_text(asked)} and not "
            f"{question_text(question)}: choose another name, or give the same filters, or none, for its next version"
        )


def question_text(question: Mapping[str, str]) -> str:
    """A question as it is written on the command line."""
    if not question:
        return "for everything"
    return shlex.join(word for name, text in question.items() for word in (f"--{name.replace('_', '-')}", text))


def _check_text(option: str, text: str, most: int) -> None:
    if len(text) > most or not all(character.isprintable() or character == "\n" for character in text):
        raise LocalProtocolError(
            f"{option} {text[:40]!r} is not a text of at most {most} printable characters: shorten it"
        )
