"""Words both sides share: messages, the wire, the session, status, energy records, configuration."""

__version__ = "0.1.0"
