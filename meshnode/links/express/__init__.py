"""The express link engine: NNG's wire spoken by Python's ``ssl``."""
