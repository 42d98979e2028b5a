"""The connections to the coordinators, who this agent is to them, and its reports; may import `settings`."""
