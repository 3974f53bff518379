"""The door of a node's records: each passes the gate of the egress policy before it is encoded for the outbox.

So what may not leave is never on the disk that the relay is served from. The door counts what becomes of readings.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from meshnode.records.egress.drawing import Finished, PictureDrawing
from meshnode.records.egress.secret import pseudonym_key
from protocols.base.ids import NodeId
from protocols.records.egress.gate import EgressGate, KeptBack, WithPictures
from protocols.records.egress.rules import EgressPolicy
from protocols.wire.parcels import decode_alone, encode_alone
from protocols.wire.readings import Reading

_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes))


class EgressDoor:
    """The door of one node. :meth:`judged` and :meth:`count` are called under a lock of its owner."""

    def __init__(self, policy: EgressPolicy, node: NodeId, state: Path) -> None:
        """``state``: the folder in which the key of pseudonyms is kept.

        :raises StorageError: when it can't be used.
        """
        key = pseudonym_key(state)
        self._node = node
        self._gate = EgressGate(policy, node, lambda message: hmac.digest(key, message, "sha256"))
        self._drawing = PictureDrawing()
        self.digest: Final = policy.digest(lambda content: hashlib.sha256(content).digest()).hex()

    def judged(self, reading: Reading, alone: bytes | None) -> Reading | WithPictures | KeptBack:
        """What becomes of a reading; a reading that leaves as it is, is returned itself. ``alone``: the result of
        ``encode_alone`` for it, if there is one.

        :raises ValueUnsupported: when it can't be encoded.
        """
        plain = self._with_plain_value(reading, alone)
        outcome = self._gate.judged(plain)
        return reading if outcome is plain else outcome

    def payer(self, reading: Reading, utc_now: int) -> str:
        """See :meth:`EgressGate.payer`."""
        return self._gate.payer(reading, utc_now)

    def draw(self, given: WithPictures, payer: str, finished: Finished, gave_way: Callable[[], object]) -> bool:
        """See :meth:`PictureDrawing.draw`."""
        return self._drawing.draw(given, payer, finished, gave_way)

    def count(self, key: str, outcome: Reading | KeptBack) -> None:
        """Count what became of a reading with ``key``."""
        rule = self._gate.rule_for(key)
        self._gate.count("" if rule is None else rule.name, outcome if isinstance(outcome, KeptBack) else None)

    def close(self, patience_s: float) -> None:
        """Finish the pictures that wait. It blocks."""
        self._drawing.close(patience_s)

    def statistics(self) -> dict[str, int]:
        """Readings that left and that were kept back, together and by rule, and those that no rule matched."""
        gate = self._gate
        kept_back = gate.kept_back.copy()
        counters = {"egress_released": gate.released.total(), "egress_kept_back": kept_back.total(),
                    "egress_unmatched": kept_back["", "no rule"]}  # fmt: skip
        for rule in gate.policy.rules:
            counters[f"egress_rule_{rule.name}_released"] = gate.released[rule.name]
            counters[f"egress_rule_{rule.name}_kept_back"] = sum(
                count for (name, _), count in kept_back.items() if name == rule.name
            )
        return counters

    def view(self) -> Mapping[str, Any]:
        """The digest of the policy, and what each rule kept back, by reason."""
        kept_back: dict[str, dict[str, int]] = {}
        for (rule, reason), count in self._gate.kept_back.copy().items():
            kept_back.setdefault(rule, {})[reason] = count
        return {"digest": self.digest, "rules": [rule.name for rule in self._gate.policy.rules], "kept_back": kept_back}

    def _with_plain_value(self, reading: Reading, alone: bytes | None) -> Reading:
        """The reading as others decode it, if its rule looks at values: an own one may hold any object that can be
        encoded."""
        rule = self._gate.rule_for(reading.key)
        is_plain = type(reading.value) in _PLAIN or reading.origin != self._node
        if rule is None or is_plain or not self._gate.looks_at_values(rule):
            return reading
        return decode_alone(encode_alone(reading) if alone is None else alone)
