"""The connection to the coordinator, and who this agent is to it; imports nothing else of the agent."""
