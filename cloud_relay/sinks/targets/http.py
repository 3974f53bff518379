"""Records to an HTTP server, by POST as JSON.

Body: ``{"sink": name, "records": [{"id": "v-1/17", …}, …]}``, with the fields of ``GET /v1/records``. The header
``Idempotency-Key`` is a digest of the ids, so the same records have the same key whenever they are sent again. Any
status of 2xx confirms all of them. 400, 413 and 422 refuse them, and the record is looked for that causes it. All else
is tried again: 401 and 404 too, because a person can mend them. Redirections are not followed, because the token would
go along.
"""

import hashlib
from typing import ClassVar, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from cloud_relay.sinks.contract import DeliveryFailed, DeliveryRefused, Portion, SinkTarget, identity_of, sent_form
from cloud_relay.sinks.settings import SinkSettings

REFUSING: Final = frozenset((400, 413, 422))
MAX_REASON_BYTES: Final = 2_048
"""What is read of an answer."""


class HttpTarget(SinkTarget):
    """One keep-alive connection to the server."""

    most_records = 256
    repeats_portions: ClassVar[bool] = True

    def __init__(self, settings: SinkSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Prepare; the connection is made with the first request."""
        headers = {"content-type": "application/json", "user-agent": "cloud-relay"}
        if (token := self._settings.secrets.get("token")) is not None:
            headers["authorization"] = f"Bearer {token.read()}"
        tls = self._settings.tls
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, ssl=True if tls is None else tls.context()),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None),  # whoever calls it bounds all of it
        )

    async def send(self, portion: Portion) -> None:
        """Post all records of the portion in one request."""
        assert self._session is not None
        ids = "\n".join(identity_of(record) for _, record in portion.records)
        content = {"sink": self._settings.name, "records": [sent_form(record) for _, record in portion.records]}
        key = f'"{hashlib.sha256(ids.encode()).hexdigest()}"'
        try:
            async with self._session.post(
                self._settings.url, data=msgspec.json.encode(content), headers={"idempotency-key": key},
                allow_redirects=False,
            ) as answer:  # fmt: skip
                if 200 <= answer.status < 300:
                    return
                said = (await answer.content.read(MAX_REASON_BYTES)).decode("utf-8", "replace")
                told = f"the server answers {answer.status} {answer.reason or ''}: {said}"
                if answer.status in REFUSING:
                    raise DeliveryRefused(told)
                if 300 <= answer.status < 400:
                    told = f"the server answers {answer.status} and names another address: write that one as url"
                raise DeliveryFailed(told, _seconds(answer.headers.get("retry-after", "")))
        except (aiohttp.ClientError, OSError) as error:
            raise DeliveryFailed(f"the server can't be reached: {self._told(error)}") from error

    async def close(self) -> None:
        """Hang up."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _told(self, error: Exception) -> str:
        """What an error says, without the part of the address that often has a secret in it."""
        said, query = str(error) or type(error).__name__, urlsplit(self._settings.url).query
        return said.replace(query, "***") if query else said


def _seconds(text: str) -> float:
    """Those of a ``Retry-After``. A date is not understood, and our own pauses are as good."""
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 0.0
