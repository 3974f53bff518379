"""How much a client wants a media type, as its ``Accept`` says (RFC 9110, section 12.5.1)."""


def weight_of(accepted: str, kind: str) -> float:
    """From 0 (not at all) to 1. The most exact name decides; without a header everything is wanted."""
    if not accepted.strip():
        return 1.0
    weights = dict(_weighed(part) for part in accepted.lower().split(","))
    for name in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        if name in weights:
            return weights[name]
    return 0.0


def is_named(accepted: str, kind: str) -> bool:
    """Whether it is there by its own name."""
    return any(part.partition(";")[0].strip() == kind for part in accepted.lower().split(","))


def _weighed(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip() for piece in part.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, min(max(float(value), 0.0), 1.0)
            except ValueError:
                return name, 0.0
    return name, 1.0
