"""Words both sides share: messages, the wire, the session, status, energy records, configuration."""
