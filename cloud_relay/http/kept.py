"""Kept aggregates over HTTP."""

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from cloud_relay.http.answering import Answers, next_link
from cloud_relay.http.streaming import StreamLook
from cloud_relay.query.kept import (
    KeptQuery,
    changed_groups,
    check_is_kept,
    cursor_after,
    group_form,
    kept_aggregates,
    kept_page,
)
from cloud_relay.query.readers.contract import StoreReader


async def kept_answer(answers: Answers, request: Request, query: KeptQuery) -> Response:
    """A page of groups, as JSON."""
    path, given = request.url.path, dict(request.query_params)

    def found(reader: StoreReader) -> tuple[object, dict[str, str]]:
        page = kept_page(reader.kept(), query)
        cursor = None if page.after is None else cursor_after(page.after)
        content = {"groups": [group_form(page.definition, group) for group in page.groups], "cursor": cursor}
        if cursor is None:
            return content, {}
        return content, {"link": next_link(path, given | {"cursor": cursor})}

    return await answers.tagged(request, repr(query), found, kept_state)


async def kept_list(answers: Answers, request: Request) -> Response:
    """What each aggregate is, as JSON."""

    def found(reader: StoreReader) -> tuple[object, dict[str, str]]:
        return {"aggregates": kept_aggregates(reader.kept())}, {}

    return await answers.tagged(request, "kept", found, kept_state)


def check_named(reader: StoreReader, name: str) -> None:
    """:raises MeshError: no aggregate of that name is kept."""
    check_is_kept(reader.kept(), name)


def kept_state(reader: StoreReader) -> str:
    """Another text whenever a group or an aggregate has changed.

    :raises StorageError: the store is of an earlier version.
    """
    return reader.kept().state()


class FollowedGroups:
    """The groups of an aggregate that a query selects, each as it is after its last change."""

    event = "group"

    def __init__(self, query: KeptQuery) -> None:
        self._query = replace(query, after=None)

    def newest(self, reader: StoreReader) -> int:
        """See :class:`~cloud_relay.http.streaming.Followed`. :raises LocalProtocolError: there is no such aggregate."""
        return changed_groups(reader.kept(), self._query, 2**63 - 1).newest

    def after(self, reader: StoreReader, number: int) -> StreamLook:
        """See :class:`~cloud_relay.http.streaming.Followed`."""
        found = changed_groups(reader.kept(), self._query, number)
        items = [(group.change, group_form(found.definition, group)) for group in found.groups]
        return StreamLook(items, found.reached, found.newest - found.reached)
