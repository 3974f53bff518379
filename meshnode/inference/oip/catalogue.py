"""The models that a node can have computed, as its clients see them: loaded here, or offered by a neighbour.

A node has one version of a model, called ``1``; its digest says which file that is.
"""

from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from meshnode.inference.oip.statistics import RequestStatistics
from meshnode.inference.result import InferenceResult
from meshnode.inference.section import InferenceSection, ModelsSection
from meshnode.models import LoadedModel
from meshnode.running import Host
from protocols.base.errors import ModelInvalid, ModelUnknown
from protocols.inference.signature import ModelSignature
from protocols.membership.neighbour import State
from protocols.wire.inference import Offer

VERSION: Final = "1"


class Inferring(Protocol):
    """What the handlers need of the part that they belong to."""

    requests: RequestStatistics
    """What became of this node's own requests."""

    @property
    def defaults(self) -> InferenceSection:
        """How this node computes."""

    @property
    def models(self) -> dict[str, LoadedModel]:
        """Models loaded here whole, by name."""

    @property
    def in_parts(self) -> frozenset[str]:
        """The models of which only stages are loaded here."""

    def why_not(self, model: str) -> str | None:
        """Why a model could not be loaded here; None: it was, or it has no file here."""

    def signature_of(self, model: str) -> ModelSignature | None:
        """What a model takes and gives, as it is loaded here or as neighbours say; None: nobody says so."""

    def infer(
        self, model: str, inputs: Mapping[str, Any], outputs: tuple[str, ...], deadline_ms: int | None
    ) -> Coroutine[Any, Any, InferenceResult]:
        """Have a model computed."""

    def infer_batch(
        self, model: str, inputs: Mapping[str, Any], outputs: tuple[str, ...], deadline_ms: int | None, *,
        shard: int | None,
    ) -> Coroutine[Any, Any, InferenceResult]:  # fmt: skip
        """Have a model computed for the rows of a batch."""


@dataclass(frozen=True, slots=True)
class ModelInReach:
    """A model that somebody in reach has."""

    name: str
    loaded: LoadedModel | None
    """None: only neighbours have it whole."""
    offers: tuple[tuple[str, Offer], ...]
    """Neighbours that compute it, and the relay if it does, and what they say about it."""
    in_parts: bool = False
    """Whether this node has it computed in stages, and has not loaded the whole."""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the list of models."""

    name: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str = ""


class Catalogue:
    """The models in reach of one node."""

    def __init__(self, host: Host, inference: Inferring) -> None:
        self._host, self._inference = host, inference

    def models(self) -> list[ModelInReach]:
        """Every model in reach, by name."""
        offered, loaded, in_parts = self._offered(), self._inference.models, self._inference.in_parts
        return [
            ModelInReach(name, loaded.get(name), tuple(offered.get(name, ())), name in in_parts)
            for name in sorted({*loaded, *offered, *in_parts})
        ]

    def _offered(self) -> dict[str, list[tuple[str, Offer]]]:
        offered: dict[str, list[tuple[str, Offer]]] = {}
        for peer in self._host.peers():
            if peer.state in (State.ALIVE, State.SUSPECT):
                for offer in peer.offers:
                    offered.setdefault(offer.model, []).append((peer.node, offer))
        relay, offers = self._host.driver.look(lambda engine, _: engine.inference.relay_offers()) or ("", ())
        for offer in offers:
            offered.setdefault(offer.model, []).append((relay, offer))
        return offered

    def to_compute(self, name: str, version: str) -> ModelInReach:
        """As :meth:`find`, without the offers for a model that is loaded here: to list them, all neighbours are looked
        at."""
        loaded = self._inference.models.get(name)
        return ModelInReach(name, loaded, ()) if loaded is not None and version == VERSION else self.find(name, version)

    def find(self, name: str, version: str) -> ModelInReach:
        """The model of that name.

        :raises ModelUnknown: nobody in reach has it, or not in that version.
        :raises ModelInvalid: it could not be loaded here, and no neighbour offers it.
        """
        offered = self._offered()
        loaded, offers = self._inference.models.get(name), tuple(offered.get(name, ()))
        in_parts = name in self._inference.in_parts
        if loaded is None and not offers and not in_parts:
            if (why := self._inference.why_not(name)) is not None:
                raise ModelInvalid(f"{why}; and nobody else in reach computes it")
            known = sorted({*self._inference.models, *offered})
            relay = self._host.driver.look(lambda engine, _: engine.inference.relay_lack(name))
            raise ModelUnknown(
                f"no model {name[:80]!r} here or at a neighbour; known: {', '.join(known) or 'none'}. Add "
                f"[models.<name>] to the configuration of a node in reach{relay}"
            )
        if version != VERSION:
            raise ModelUnknown(
                f"model {name!r} has no version {version[:40]!r}: a node has one version of a model, {VERSION!r}. Ask "
                "for it, or for none; the digest in the metadata says which file it is"
            )
        return ModelInReach(name, loaded, offers, in_parts)

    def digest_of(self, model: str) -> str | None:
        """The file that this node means by that name; None when nobody in reach has it."""
        loaded = self._inference.models.get(model)
        if loaded is not None:
            return loaded.digest
        return self._host.driver.look(lambda engine, _: engine.inference.digest_of(model))

    def why_not_ready(self, model: ModelInReach) -> str | None:
        """Why a model in reach can't be computed at the moment; None: it can."""
        if model.offers or (model.loaded is not None and self._inference.defaults.local):
            return None
        if not model.in_parts:
            return "this node leaves it to neighbours, and none is there"
        plans = self._host.driver.look(lambda engine, _: engine.inference.split.views())
        if any(plan.model == model.name and plan.state == "in force" for plan in plans):
            return None
        return "no plan for its stages is in force: 'meshnode plans' says why"

    def index(self) -> list[IndexEntry]:
        """Every model in reach or in the configuration, and whether it can be computed."""
        reached = {model.name: model for model in self.models()}
        configured = self._host.config.of(ModelsSection).models
        return [
            self._entry(reached[name]) if name in reached else self._missing(name, configured[name].path is not None)
            for name in sorted({*reached, *configured})
        ]

    def _entry(self, model: ModelInReach) -> IndexEntry:
        why = self.why_not_ready(model)
        return IndexEntry(model.name, "READY") if why is None else IndexEntry(model.name, "UNAVAILABLE", why)

    def _missing(self, name: str, has_file: bool) -> IndexEntry:
        why = self._inference.why_not(name)
        if why is not None:
            return IndexEntry(name, "UNAVAILABLE", why)
        if has_file:
            return IndexEntry(name, "LOADING", "its file is being loaded")
        return IndexEntry(name, "UNAVAILABLE", "the configuration leaves it to neighbours, and none offers it")
