"""Energy of this host: sensors (thin shells), meter and attribution (pure); imports `engine.protocol` of the agent."""
