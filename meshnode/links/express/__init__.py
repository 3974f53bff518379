"""The link engine ``express``: NNG's wire spoken by Python's ``ssl``."""
