"""Sketches by Apache DataSketches.

Percentiles: KLL with k = 200, whose rank is wrong by at most 1.65 % with 99 % confidence. Distinct values: HyperLogLog
with 4,096 registers, whose standard error is 1.6 %. KLL throws coins, so two runs may give different percentiles of
more than ``EXACT`` readings.
"""

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from protocols.records.windows.summary import DistinctSketch, PercentileSketch, Sketches

_KLL_K: Final = 200
_HLL_LG_K: Final = 12


class _Percentiles:
    __slots__ = ("kll", "update")

    def __init__(self, saved: bytes | None) -> None:
        from datasketches import kll_doubles_sketch  # numpy's size again, which only such a rule pays for

        self.kll: Any = kll_doubles_sketch(_KLL_K) if saved is None else kll_doubles_sketch.deserialize(saved)
        self.update = self.kll.update

    def merge(self, other: "PercentileSketch") -> None:
        self.kll.merge(cast("_Percentiles", other).kll)

    def saved(self) -> bytes:
        return bytes(self.kll.serialize())

    def percentile(self, share: float) -> float:
        return float(self.kll.get_quantile(share, True))


class _Distinct:
    __slots__ = ("hll", "update")

    def __init__(self, saved: bytes | None) -> None:
        from datasketches import hll_sketch, tgt_hll_type

        self.hll: Any = (
            hll_sketch(_HLL_LG_K, tgt_hll_type.HLL_8) if saved is None else hll_sketch.deserialize(saved)
        )  # fmt: skip
        self.update = self.hll.update

    def merge(self, other: "DistinctSketch") -> None:
        from datasketches import hll_union, tgt_hll_type

        union = hll_union(_HLL_LG_K)
        union.update(self.hll)
        union.update(cast("_Distinct", other).hll)
        self.hll = union.get_result(tgt_hll_type.HLL_8)
        self.update = self.hll.update

    def saved(self) -> bytes:
        return bytes(self.hll.serialize_updatable())

    def estimate(self) -> float:
        return float(self.hll.get_estimate())


class _DataSketches:
    def percentiles(self, saved: bytes | None = None) -> "PercentileSketch":
        return _Percentiles(saved)

    def distinct(self, saved: bytes | None = None) -> "DistinctSketch":
        return _Distinct(saved)

    def digest(self, encoded: bytes) -> int:
        return int.from_bytes(blake2b(encoded, digest_size=8).digest()) >> 1


DATA_SKETCHES: Final["Sketches"] = _DataSketches()
"""Makes sketches."""
