"""The link engine ``express``: NNG's wire protocol on Python's ``ssl``."""
