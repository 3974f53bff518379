"""Records to a topic of Kafka, confirmed by all in-sync replicas, from an idempotent producer.

The value is the record as JSON. Headers: ``id``, ``origin``, ``sequence``, ``content-type``. The key is the node, the
reading's key or the id, as the settings say; records of one message key stay in their order. Within one connection the
broker takes each message once; after a new one, what was not confirmed comes again, with the same id.
"""

import asyncio
from contextlib import suppress
from typing import Final

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import InvalidMessageError, KafkaError, MessageSizeTooLargeError, RecordTooLargeError

from cloud_relay.query.searching import StoredRecord
from cloud_relay.sinks.contract import DeliveryFailed, DeliveryRefused, Portion, SinkTarget, identity_of, sent_form
from cloud_relay.sinks.settings import SinkSettings

DEFAULT_PORT: Final = 9092
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""More than any record takes as JSON. What the broker takes is for the broker to say."""
REFUSING: Final = (MessageSizeTooLargeError, RecordTooLargeError, InvalidMessageError)
INVALID_RECORD: Final = 87
"""The broker's own check of a record failed (KIP-467). aiokafka has no class for it."""


class KafkaTarget(SinkTarget):
    """One producer."""

    most_records = 500

    def __init__(self, settings: SinkSettings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None

    async def open(self) -> None:
        """Find the brokers, and become a producer with a number of its own."""
        settings = self._settings
        user, password = settings.own["user"], settings.secrets.get("password")
        protocol = ("SASL_" if user else "") + ("PLAINTEXT" if settings.tls is None else "SSL")
        self._producer = AIOKafkaProducer(
            bootstrap_servers=[f"{host}:{port}" for host, port in settings.hosts(DEFAULT_PORT)],
            client_id=f"cloud-relay-{settings.name}",
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=int(settings.timeout_s * 300),  # connecting makes up to three
            max_request_size=MAX_MESSAGE_BYTES,
            security_protocol=protocol,
            ssl_context=None if settings.tls is None else settings.tls.context(),
            sasl_mechanism=settings.own["sasl"],
            sasl_plain_username=user or None,
            sasl_plain_password=None if password is None else password.read(),
        )
        try:
            await self._producer.start()
        except (KafkaError, OSError) as error:
            raise DeliveryFailed(f"Kafka can't be used: {_said(error)}") from error

    async def send(self, portion: Portion) -> None:
        """Send all records and wait for the confirmation of each."""
        producer, topic = self._producer, self._settings.own["topic"]
        assert producer is not None
        try:
            waiting = [
                await producer.send(
                    topic, msgspec.json.encode(sent_form(record)), key=self._key(record), headers=_headers(record)
                )
                for _, record in portion.records
            ]
            await producer.flush()
            results = await asyncio.gather(*waiting, return_exceptions=True)
        except REFUSING as error:
            raise DeliveryRefused(f"Kafka refuses it: {_said(error)}") from error
        except (KafkaError, OSError) as error:
            raise DeliveryFailed(f"Kafka does not confirm: {_said(error)}") from error
        errors = [result for result in results if isinstance(result, BaseException)]
        for failed in errors:
            if not _refuses(failed):
                raise DeliveryFailed(f"Kafka does not confirm: {_said(failed)}") from failed
        if errors:
            raise DeliveryRefused(f"Kafka refuses it: {_said(errors[0])}") from errors[0]

    async def close(self) -> None:
        """Hang up."""
        if (producer := self._producer) is not None:
            self._producer = None
            with suppress(KafkaError, OSError, TimeoutError):  # whatever it still had to send comes again
                async with asyncio.timeout(2 * self._settings.timeout_s):  # its messages have expired long before
                    await producer.stop()

    def _key(self, record: StoredRecord) -> bytes:
        chosen: str = self._settings.own["message_key"]
        text = identity_of(record) if chosen == "id" else record.fields[chosen]
        return str(text).encode()


def _headers(record: StoredRecord) -> list[tuple[str, bytes]]:
    return [
        ("id", identity_of(record).encode()),
        ("origin", record.fields["origin"].encode()),
        ("sequence", str(record.fields["sequence"]).encode()),
        ("content-type", b"application/json"),
    ]


def _refuses(error: BaseException) -> bool:
    return isinstance(error, REFUSING) or getattr(error, "errno", None) == INVALID_RECORD


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
