"""A toy capability: neighbours send a number back. It exists to show that a capability adds and does not edit."""
